"""A number by which other items are told from these, in the order in which they come."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
import xxhash

__all__ = ["digest_of"]

_BITS: Final = (1 << 63) - 1
_DEEPEST: Final = 20


def digest_of(item: Any, before: int = 0) -> int:
    """A number below 2^63 of all that `before` stands for, and behind that `item`.

    Numbers, text, bytes, arrays, tensors, and dicts, lists and tuples of these count by what is in them; of other objects
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
    if depth < _DEEPEST and kind in (list, tuple, dict):
        parts = [part for pair in item.items() for part in pair] if kind is dict else item
        inside = [_bytes_of(part, depth + 1) for part in parts]
        return f"{kind.__name__}{[len(part) for part in inside]}".encode() + b"".join(inside)
    return f"{kind.__module__}.{kind.__qualname__}".encode()
