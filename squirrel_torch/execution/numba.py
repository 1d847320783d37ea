"""Callbacks compiled by numba."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, TypeVar

from squirrel_torch.errors import MissingDependencyError

__all__ = ["compiled", "require_numba"]

T = TypeVar("T")
U = TypeVar("U")

_log = logging.getLogger(__name__)


def require_numba() -> None:
    """Raise MissingDependencyError unless numba is installed. It is not imported."""
    if find_spec("numba") is None:
        raise MissingDependencyError("numba", "numba")


def compiled(callback: Callable[[T], U]) -> Callable[[T], U]:
    """`callback` as machine code that runs without the GIL, compiled at its first call in this process.

    What numba can't compile (dicts, most Python objects, calls into torch) runs as it is, after one warning in the log
    that says why. Object mode is not used: around a callback it costs microseconds and gains nothing.
    """
    require_numba()
    from numba.core.errors import NumbaError

    try:
        fast = _dispatcher(callback)
    except (TypeError, NumbaError) as error:
        _warn(callback, error)
        return callback

    usable = True

    def call(item: T) -> U:
        nonlocal usable
        if usable:
            try:
                result: U = fast(item)
            except NumbaError as error:  # raised while compiling: the callback has not run
                usable = False
                _warn(callback, error)
            else:
                return result
        return callback(item)

    return call


@lru_cache(maxsize=64)
def _dispatcher(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's function, which keeps what it has compiled: the next epoch need not compile it again."""
    import numba

    dispatcher: Callable[..., Any] = numba.njit(nogil=True)(callback)
    return dispatcher


def _warn(callback: Callable[..., Any], error: Exception) -> None:
    reason = " ".join(str(error).split())[:300]
    _log.warning("numba can't compile %r, it runs as plain Python: %s", callback, reason)
