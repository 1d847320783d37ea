"""Stages, callables and items in few words, for messages and repr."""

import functools
import inspect
import reprlib
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

__all__ = ["describe_call", "describe_callable", "describe_item", "describe_value"]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = 4
_SHORT.maxlevel = 2


def describe_callable(function: Any) -> str:
    """`decode at train.py:31`; a partial by what it calls, a builtin by its name."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    name = name.rpartition("<locals>.")[2]
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return str(name)
    return f"{name} at {Path(code.co_filename).name}:{code.co_firstlineno}"


def describe_value(value: Any) -> str:
    """An argument of a stage: callables by name and place, large things by their kind and size."""
    if callable(value) and not isinstance(value, type):
        return describe_callable(value)
    if isinstance(value, type):
        return value.__qualname__
    return describe_item(value)


def describe_call(name: str, arguments: Mapping[str, Any]) -> str:
    """`Name(first=..., second=...)`."""
    return f"{name}({', '.join(f'{key}={describe_value(value)}' for key, value in arguments.items())})"


def describe_item(item: Any) -> str:
    """An item of the stream in at most about 100 characters, without printing the contents of arrays."""
    shape, dtype = getattr(item, "shape", None), getattr(item, "dtype", None)
    if shape is not None and dtype is not None and tuple(shape) != ():
        return f"{type(item).__name__}(shape={tuple(shape)}, dtype={dtype})"
    if type(item) is dict:
        inside = ", ".join(f"{_SHORT.repr(key)}: {_leaf(value)}" for key, value in list(item.items())[:4])
        return "{" + inside + (", ..." if len(item) > 4 else "") + "}"
    return _leaf(item)


def _leaf(value: Any) -> str:
    if isinstance(value, Sized) and not isinstance(value, str | bytes):
        if getattr(value, "shape", None) is not None:
            return f"{type(value).__name__}(shape={tuple(getattr(value, 'shape'))})"  # noqa: B009
        if len(value) > 4 or type(value) is dict:
            return f"<{type(value).__name__} of {len(value)}>"
    return _SHORT.repr(value)
