"""Callbacks as dask graphs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from squirrel_torch.errors import MissingDependencyError

__all__ = ["compute", "delayed", "require_dask"]


def require_dask() -> None:
    """Raise MissingDependencyError unless dask is installed. It is not imported."""
    if find_spec("dask") is None:
        raise MissingDependencyError("dask", "dask")


def delayed(callback: Callable[..., Any]) -> Callable[..., Any]:
    """`dask.delayed` of `callback`."""
    from dask.delayed import delayed as delay

    result: Callable[..., Any] = delay(callback)
    return result


def compute(item: Any) -> Any:
    """The value of one `dask.delayed` object; anything else is given back as it is."""
    from dask.base import compute as compute_all

    return compute_all(item)[0]  # type: ignore[no-untyped-call]  # dask's
