"""The words between `async_map` and the places where its callback runs: chunks go there, outcomes come back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from squirrel_torch.execution.call import Outcome

if TYPE_CHECKING:
    from distributed import Client  # in a text below

__all__ = ["Chunk", "Deliver", "ExecutorLike", "Place"]

ExecutorLike: TypeAlias = 'Literal["thread", "process", "numba"] | str | Executor | Client | None'


class Chunk:
    """Neighbouring items on their way through a place.

    Args:
        start: Index of the first of them among all items of the stage.
        items: The items.
        limit: Seconds after which a callee should give the rest of them back.
    """

    __slots__ = ("_left", "_share", "done", "items", "limit", "outcome", "rest", "sent", "start")

    def __init__(self, start: int, items: list[Any], limit: float) -> None:
        self.start: int = start
        self.items: list[Any] = items
        self.limit: float = limit
        self.outcome: Outcome = Outcome()
        self.rest: list[Chunk] = []
        self.done: bool = False
        self.sent: float = 0.0
        """When it was given to the place, by `perf_counter`; only kept up while somebody records."""
        self._left = 0.0
        self._share = 1.0

    def leaves(self, workers: int, beside: int) -> None:
        """It is sent away now, to `workers` who have `beside` chunks to work on, this one among them."""
        self._left = perf_counter()
        self._share = min(1.0, workers / beside)

    def turnaround(self) -> float:
        """Seconds that it took, with the way there and back but about without waiting for its turn."""
        return (perf_counter() - self._left) * self._share

    @property
    def size(self) -> int:
        """How many items it stands for, now that it is back: those that travel on are not among them."""
        return self.outcome.count if self.rest else len(self.items)


Deliver = Callable[[Chunk, Outcome], None]


class Place(Protocol):
    """Where a callback runs."""

    @property
    def kind(self) -> str:
        """What it is made of: "thread", "process", "coroutine", "executor" or "dask"."""

    workers: int
    """About how many calls run at a time. May be changed if it is below `most_workers`."""

    most_workers: int
    """The bound of `workers`."""

    @property
    def depth(self) -> int:
        """How many chunks it should have at a time, so that nobody waits for the next."""

    overhead: float
    """About how many seconds it costs to send a chunk there and back."""

    def submit(self, chunk: Chunk) -> None:
        """Have the callback work on the chunk; the outcome is delivered later, from any thread. Does not block."""

    def close(self, *, wait: bool = True) -> None:
        """Start nothing more and give back what was opened; wait for the calls that run, unless told not to.

        It is called twice, and told not to wait in a thread of the place itself.
        """
