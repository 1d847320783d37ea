"""What a sample may be made of."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from squirrel_torch.errors import SampleEncodingError

__all__ = ["check_sample"]

_LEAVES = (bool, int, float, complex, str, bytes, bytearray, memoryview, type(None))
_DTYPE_KINDS = "biufcmMSU"
_OF_THIS_MACHINE = ("f16", "f12", "c32", "c24")  # long doubles differ between machines
_MAX_DEPTH = 64


def check_sample(value: Any) -> None:
    """Raise unless a store can keep `value`: the same rule for all stores, so that one can stand in for another.

    Raises:
        SampleEncodingError: With the place inside the sample and the type of what can't be kept.
    """
    _check(value, (), {})


def _check(value: Any, path: tuple[Any, ...], checked: dict[int, int]) -> None:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        _check_array(value, path)
    elif isinstance(value, _LEAVES) or checked.get(id(value), -1) >= len(path):
        return
    elif len(path) >= _MAX_DEPTH:
        raise _error(path[:3], f"nested more than {_MAX_DEPTH} deep", "flatten it, or look for a container that holds itself")
    elif isinstance(value, dict | list | tuple):
        for key, inside in _parts(value, path):
            _check(inside, (*path, key), checked)
        checked[id(value)] = len(path)  # after its parts: a container that holds itself is not done yet
    else:
        raise _error(
            path,
            f"a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", ""),
            "a store keeps numbers, text, bytes, None, numpy arrays, torch tensors, and dicts, lists and tuples of these",
        )


def _check_array(value: Any, path: tuple[Any, ...]) -> None:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise _error(
                path, f"a tensor of layout {value.layout}, dtype {value.dtype}", "only dense tensors with data can be kept"
            )
    elif isinstance(value, np.ma.MaskedArray):
        raise _error(path, "a masked array", "its mask can't be kept; keep it as an array beside the data")
    elif value.dtype.kind not in _DTYPE_KINDS or value.dtype.str[1:] in _OF_THIS_MACHINE:
        raise _error(path, f"a numpy array of dtype {value.dtype}", "use one of numbers or text, or lists and dicts of them")


def _parts(container: Any, path: tuple[Any, ...]) -> Iterable[tuple[Any, Any]]:
    if not isinstance(container, dict):
        return enumerate(container)
    for key in container:
        if not isinstance(key, str):
            raise _error(path, f"a dict with the key {key!r} ({type(key).__name__})", "keys must be text")
    return container.items()


def _error(path: tuple[Any, ...], what: str, cure: str) -> SampleEncodingError:
    place = "sample" + "".join(f"[{key!r}]" for key in path)
    return SampleEncodingError(f"{place} is {what}: {cure}")
