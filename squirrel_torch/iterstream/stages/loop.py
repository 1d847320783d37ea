"""Several passes over one upstream."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, TypeVar

from squirrel_torch.checks import require_at_least
from squirrel_torch.errors import PipelineError
from squirrel_torch.iterstream.stage import Context, Stage

__all__ = ["Loop"]

T = TypeVar("T")


@dataclass(frozen=True)
class Loop(Stage[T, T]):
    """The upstream, `times` times or for ever. Order: kept. Holds: nothing. State: the pass."""

    times: int | None = None
    moves_only: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.times is not None:
            require_at_least("n", self.times, 0)

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        """Refused: an iterator gives its items once."""
        raise PipelineError("a Loop needs an upstream that it can start again: use it in a pipeline, not on an iterator")

    def start(self, upstream: Iterable[T], context: Context) -> Iterator[T]:
        return self._passes(upstream)

    def _passes(self, upstream: Iterable[T]) -> Iterator[T]:
        for _ in count() if self.times is None else range(self.times):
            empty = True
            for item in upstream:
                empty = False
                yield item
            # A `take` may have left generators, threads too, that wait to be asked for more.
            getattr(upstream, "release", lambda: None)()
            if empty:
                return  # passes over nothing would go on for ever without giving anything
