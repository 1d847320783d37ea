"""A number by which other items are told from these, in the order in which they come."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
import xxhash

__all__ = ["digest_of"]

_BITS: Final = (1 << 63) - 1
_DEEPEST: Final = 20


def digest_of(item: Any, before: int = 0) -> int:
    """A number below 2^63 of all that `before` stands for, and behind that `item`.

    Numbers, text, bytes, arrays, tensors, and dicts, lists, tuples and sets of these count by what is in them; of other objects
    the type alone does.
    """
    return xxhash.xxh3_64_intdigest(_bytes_of(item, 0), before) & _BITS


def _bytes_of(item: Any, depth: int) -> bytes:
    kind = type(item)
    if kind in (int, float, bool, str, bytes, complex) or item is None:
        return repr(item).encode(errors="surrogatepass")
    if isinstance(item, np.ndarray) and not item.dtype.hasobject:
        return f"{item.dtype.str}{item.shape}".encode() + np.ascontiguousarray(item).tobytes()
    if isinstance(item, torch.Tensor) and item.layout is torch.strided and not item.is_quantized:
        flat = item.detach().cpu().contiguous().reshape(-1).view(torch.uint8) if item.numel() else torch.empty(0)
        return f"{item.dtype}{tuple(item.shape)}".encode() + flat.numpy().tobytes()
    if isinstance(item, np.generic):
        return item.dtype.str.encode() + item.tobytes()
    if isinstance(item, bytearray):
        return b"bytearray" + bytes(item)
    if depth < _DEEPEST and isinstance(item, list | tuple | Mapping | set | frozenset):
        inside = [
            _bytes_of(part, depth + 1) for part in (chain.from_iterable(item.items()) if isinstance(item, Mapping) else item)
        ]
        if isinstance(item, set | frozenset):
            inside.sort()  # the order in a set is another in each process
        return f"{kind.__name__}{[len(part) for part in inside]}".encode() + b"".join(inside)
    return f"{kind.__module__}.{kind.__qualname__}".encode()
