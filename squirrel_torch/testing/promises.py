"""What checks are made of: promises that are kept or not, values that are the same or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from squirrel_torch.describe import describe_item

__all__ = ["difference", "promised", "require", "require_error", "require_same"]


@contextmanager
def promised(promise: str) -> Iterator[None]:
    """What is raised inside, that was not foreseen, breaks the promise."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{promise}: {type(error).__name__} was raised: {error}") from error


def require(kept: bool, promise: str) -> None:
    """Raise AssertionError, with the promise, unless it is kept."""
    if not kept:
        raise AssertionError(promise)


def require_error(kind: type[Exception], promise: str, action: Callable[[], Any]) -> None:
    """Raise AssertionError unless `action` raises an error of this kind."""
    try:
        result = action()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{promise}: it must be a {kind.__name__}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{promise}: it must be a {kind.__name__}, and was none: it gave {describe_item(result)}")


def require_same(given: Any, expected: Any, promise: str) -> None:
    """Raise AssertionError, with what differs, unless two samples are the same."""
    found = difference(given, expected, "sample")
    require(found is None, f"{promise}: {found}")


def difference(given: Any, expected: Any, place: str) -> str | None:
    """Where two values differ in type, dtype, shape or value, in words; None if they don't."""
    if type(given) is not type(expected):
        return f"{place} is a {type(given).__name__}, and a {type(expected).__name__} was set"
    if isinstance(expected, np.ndarray | np.generic | torch.Tensor):
        return _array_difference(given, expected, place)
    if isinstance(expected, dict):
        if given.keys() != expected.keys():
            return f"{place} has the keys {list(given)}, and {list(expected)} were set"
        pairs = [(given[key], expected[key], f"{place}[{key!r}]") for key in expected]
    elif isinstance(expected, list | tuple):
        if len(given) != len(expected):
            return f"{place} has {len(given)} items, and {len(expected)} were set"
        pairs = [(*pair, f"{place}[{index}]") for index, pair in enumerate(zip(given, expected, strict=True))]
    else:
        # As text: nan is not itself, and zero has a sign.
        same = repr(given) == repr(expected) if isinstance(expected, float | complex) else given == expected
        return None if same else f"{place} is {given!r}, and {expected!r} was set"
    return next((found for pair in pairs if (found := difference(*pair)) is not None), None)


def _array_difference(given: Any, expected: Any, place: str) -> str | None:
    (dtype, shape), (dtype_set, shape_set) = ((array.dtype, tuple(array.shape)) for array in (given, expected))
    if dtype != dtype_set or shape != shape_set:
        return f"{place} has dtype {dtype}, shape {shape}, and {dtype_set}, {shape_set} was set"
    if isinstance(expected, torch.Tensor):
        given, expected = (
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in (given, expected)
        )
    return None if given.tobytes() == expected.tobytes() else f"{place} has other values than those that were set"
