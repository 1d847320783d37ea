"""Pipelines on their way to other processes: what plain pickle can't carry goes by cloudpickle."""

import io
import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

__all__ = ["by_value", "from_portable", "importable", "to_portable"]


class _ByValue:
    """A callable as cloudpickle's bytes. They only ever travel between processes of one job, never to storage."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def load(self) -> Any:
        import cloudpickle

        return cloudpickle.loads(self.data)


def importable(thing: Any) -> bool:
    """Whether plain pickle can name this function or class, so that the other process imports it."""
    found: Any = sys.modules.get(thing.__module__)
    if thing.__module__ == "__main__" and not hasattr(found, "__file__"):
        return False  # a notebook or `python -c`: the other process has nothing to import it from
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is thing


def to_portable(state: dict[str, Any], *, inside: bool = False) -> dict[str, Any]:
    """A copy of `state` that plain pickle can carry if cloudpickle can carry its callables.

    Args:
        state: The attributes of an object.
        inside: Whether tuples and dicts among them may hold callables too.
    """
    return _changed(state, _portable, inside=inside)


def from_portable(state: dict[str, Any], *, inside: bool = False) -> dict[str, Any]:
    """What `to_portable` was given; `inside` as it was there."""
    return _changed(state, _loaded, inside=inside)


def _changed(state: dict[str, Any], change: Callable[[Any], Any], *, inside: bool) -> dict[str, Any]:
    changed = {key: change(value) for key, value in state.items()}
    if inside:
        for key, value in state.items():
            if type(value) is tuple:
                changed[key] = tuple(map(change, value))
            elif type(value) is dict:
                changed[key] = _changed(value, change, inside=False)
    return changed


def _loaded(value: Any) -> Any:
    return value.load() if isinstance(value, _ByValue) else value


def _portable(value: Any) -> Any:
    if not callable(value):
        return value
    # Classes and functions that can be imported travel by name, as pickle does it. Anything else that can be called may
    # hold a lambda somewhere inside (a partial, a bound method).
    if isinstance(value, FunctionType | type) and importable(value):
        return value
    if isinstance(value, MethodType) and importable(type(value.__self__)):
        return value  # travels as its object and its name; the object may be large, and knows best how to travel
    if hasattr(type(value), "__iter__") and not isinstance(value, FunctionType | type):
        # A container that can also be called: a dataset or composable, which takes care of itself.
        return value
    return _ByValue(_dumps(value))


def _dumps(value: Any) -> bytes:
    """By cloudpickle, but classes of the main module go by name: by value the other side would get another class."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, type) and thing.__module__ in ("__main__", "__mp_main__") and importable(thing):
                return NotImplemented
            return super().reducer_override(thing)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def by_value(cls: type) -> tuple[Any, tuple[bytes]]:
    """The first two parts of what `__reduce__` returns for an object of a class that can't be imported."""
    import cloudpickle

    return _new, (cloudpickle.dumps(cls),)


def _new(data: bytes) -> Any:
    cls = _ByValue(data).load()
    return cls.__new__(cls)
