"""Callbacks as dask graphs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from squirrel_torch.errors import MissingDependencyError

__all__ = ["compute", "delayed", "require_dask"]


def require_dask(*, cluster: bool = False) -> None:
    """Raise MissingDependencyError unless dask is installed, with `cluster` its scheduler too. It is not imported."""
    for package in ("dask", "distributed") if cluster else ("dask",):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "dask")


def delayed(callback: Callable[..., Any]) -> Callable[..., Any]:
    """`dask.delayed` of `callback`."""
    from dask.delayed import delayed as delay

    result: Callable[..., Any] = delay(callback)
    return result


def compute(item: Any) -> Any:
    """The value of one `dask.delayed` object; anything else is given back as it is."""
    from dask.base import compute as compute_all

    return compute_all(item)[0]  # type: ignore[no-untyped-call]  # dask's
