"""Several passes over one upstream."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, TypeVar

from squirrel_torch.checks import require_at_least
from squirrel_torch.describe import describe_item
from squirrel_torch.errors import PipelineError, StateError
from squirrel_torch.iterstream.stage import Context, Following, Id, Stage, Step

__all__ = ["Loop"]

T = TypeVar("T")


@dataclass(frozen=True)
class Loop(Stage[T, T]):
    """The upstream, `times` times or for ever. Order: kept. Holds: nothing. State: the pass."""

    times: int | None = None
    moves_only: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    remembers: ClassVar[Mapping[str, str]] = {"pass": "count", "gave": "flag"}

    def __post_init__(self) -> None:
        if self.times is not None:
            require_at_least("n", self.times, 0)

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        """Refused: an iterator gives its items once."""
        raise PipelineError("a Loop needs an upstream that it can start again: use it in a pipeline, not on an iterator")

    def start(self, upstream: Iterable[T], context: Context) -> Iterator[T]:
        return self._passes(upstream)

    def follow(self, steps: Any, memory: dict[str, Any], following: Following) -> Iterator[Step]:
        """See `Stage.follow`; `steps` gives one pass after the other."""
        first = memory.get("pass", 0)
        gave = memory.get("gave", False)
        for number in count(first) if self.times is None else range(first, self.times):
            for step in steps.of_pass(number):
                memory["pass"], memory["gave"], gave = number, True, True
                # What was made in one pass may be other than in another: callbacks may draw.
                yield (number, step[0]), step[1]
            if not gave:
                return
            gave = False

    def check(self, memory: Mapping[str, Any]) -> None:
        if self.times is not None and memory.get("pass", 0) >= max(1, self.times):
            raise StateError(f"{self.describe()} can't be in pass {memory['pass']}, the first being 0")

    def parents(self, ids: Sequence[Any]) -> Sequence[Id] | None:
        for own in ids:
            if not (isinstance(own, tuple) and len(own) == 2 and type(own[0]) is int and own[1] is not None):
                raise StateError(f"{describe_item(own)} is no id of an item of {self.describe()}")
        return [own[1] for own in ids]

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
