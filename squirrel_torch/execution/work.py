"""The protocol between `async_map` and the places where its callback runs, and the choice among them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

__all__ = ["ExecutorLike", "Pending", "Submits", "Work", "check_executor", "open_work"]


class Pending(Protocol):
    """A result that may not be there yet; `concurrent.futures.Future` is one, so is dask's."""

    def done(self) -> bool:
        """Whether `result` would return at once."""

    def result(self) -> Any:
        """The result, waited for; an exception of the callback is raised here."""

    def cancel(self) -> object:
        """Never start it, if it has not been started."""


class Work(Protocol):
    """A callback in the place where it runs. Leaving its ``with`` gives back what was opened for it, and only that."""

    def submit(self, item: Any) -> Pending:
        """Have the callback work on `item`."""

    def __enter__(self) -> Work: ...

    def __exit__(self, *error: object) -> None: ...


class Submits(Protocol):
    """A live executor, as far as it is used here: `dask.distributed.Client` is one too."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Start `function` and return its future."""


ExecutorLike = Literal["thread", "numba"] | Executor | Submits | None


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
            from squirrel_torch.execution.numba import require_numba

            require_numba()
    elif executor is not None and not isinstance(executor, Executor) and not _is_dask_client(executor):
        raise TypeError(
            'executor must be None, "thread", "numba", a concurrent.futures.Executor or a dask.distributed.Client, '
            f"got {executor!r} ({type(executor).__name__})"
        )


def open_work(executor: Any, max_workers: int | None, callback: Callable[[Any], Any]) -> AbstractContextManager[Work]:
    """The work of `callback` on `executor`, opened in this process."""
    from squirrel_torch.execution.borrowed import BorrowedWork
    from squirrel_torch.execution.threads import ThreadWork

    if executor is None or executor == "thread":
        return ThreadWork(callback, max_workers)
    if executor == "numba":
        from squirrel_torch.execution.numba import NumbaWork

        return NumbaWork(callback)
    if _is_dask_client(executor):
        # Two equal calls are two calls: dask would otherwise make them one, whatever the callback does.
        return BorrowedWork(executor, callback, pure=False)
    return BorrowedWork(executor, callback)
