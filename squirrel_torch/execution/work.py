"""The protocol between `async_map` and the places where its callback runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Literal, Protocol

__all__ = ["ExecutorLike", "Pending", "Submits", "Work"]


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
