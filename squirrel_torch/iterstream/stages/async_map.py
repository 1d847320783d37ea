"""A callback on many items at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Final, TypeVar

from squirrel_torch.checks import require_at_least, require_callable
from squirrel_torch.execution import ExecutorLike, Pending, check_executor, open_work
from squirrel_torch.iterstream.stage import Stage

__all__ = ["AsyncMap"]

T = TypeVar("T")
U = TypeVar("U")

_END: Final = object()


@dataclass(frozen=True)
class AsyncMap(Stage[T, U]):
    """`callback` of each item, many at once. Order: kept. Holds: `buffer` items. State: none."""

    callback: Callable[[T], U]
    buffer: int = 100
    max_workers: int | None = None
    executor: ExecutorLike = None
    holds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_callable("callback", self.callback)
        require_at_least("buffer", self.buffer, 1)
        if self.max_workers is not None:
            require_at_least("max_workers", self.max_workers, 1)
        check_executor(self.executor)

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        pending: deque[Pending] = deque()  # oldest first: pending[0] leaves next
        with open_work(self.executor, self.max_workers, self.callback) as work:
            try:
                for position in count():  # noqa: B007  # read by messages
                    # At least two in for one out, so that the buffer fills up though the first item does not wait for it.
                    wanted = 2
                    while len(pending) < self.buffer and (wanted > 0 or not pending[0].done()):
                        pulled: Any = next(items, _END)
                        if pulled is _END:
                            break
                        pending.append(work.submit(pulled))
                        wanted -= 1
                    pulled = None  # a stream that waits must not keep it alive
                    if not pending:
                        return
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()
