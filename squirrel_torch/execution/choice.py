"""Which place an executor stands for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Any

from squirrel_torch.execution.borrowed import BorrowedWork
from squirrel_torch.execution.numba import NumbaWork, require_numba
from squirrel_torch.execution.threads import ThreadWork
from squirrel_torch.execution.work import Work

__all__ = ["check_executor", "open_work"]


def _is_dask_client(executor: object) -> bool:
    # Whoever has a client has imported distributed; nobody else should pay for that.
    distributed = sys.modules.get("distributed")
    return distributed is not None and isinstance(executor, distributed.Client)


def check_executor(executor: object) -> None:
    """Raise TypeError or ValueError unless `async_map` knows what to do with `executor`."""
    if isinstance(executor, str):
        if executor not in ("thread", "numba"):
            raise ValueError(f'executor must be "thread" or "numba" where it is a name, got {executor!r}')
        if executor == "numba":
            require_numba()
    elif executor is not None and not isinstance(executor, Executor) and not _is_dask_client(executor):
        raise TypeError(
            'executor must be None, "thread", "numba", a concurrent.futures.Executor or a dask.distributed.Client, '
            f"got {executor!r} ({type(executor).__name__})"
        )


def open_work(executor: Any, max_workers: int | None, callback: Callable[[Any], Any]) -> AbstractContextManager[Work]:
    """The work of `callback` on `executor`, opened in this process."""
    if executor is None or executor == "thread":
        return ThreadWork(callback, max_workers)
    if executor == "numba":
        return NumbaWork(callback)
    if _is_dask_client(executor):
        # Two equal calls are two calls: dask would otherwise make them one, whatever the callback does.
        return BorrowedWork(executor, callback, pure=False)
    return BorrowedWork(executor, callback)
