"""Which items pass: filter, take, skip."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, TypeVar

from squirrel_torch.checks import require_at_least, require_callable
from squirrel_torch.iterstream.stage import Stage

__all__ = ["Filter", "Skip", "Take"]

T = TypeVar("T")


@dataclass(frozen=True)
class Filter(Stage[T, T]):
    """The items for which `predicate` is true. Order: kept. Holds: nothing. State: none."""

    predicate: Callable[[T], object]

    def __post_init__(self) -> None:
        require_callable("predicate", self.predicate)

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        predicate = self.predicate
        for item in items:
            if predicate(item):
                yield item


@dataclass(frozen=True)
class Take(Stage[T, T]):
    """The first `count` items; no more are asked for. Order: kept. Holds: nothing. State: a count."""

    count: int
    moves_only: ClassVar[bool] = True
    needs_whole: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        require_at_least("n", self.count, 0)

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        return islice(items, self.count)


@dataclass(frozen=True)
class Skip(Stage[T, T]):
    """All but the first `count` items. Order: kept. Holds: nothing. State: a count."""

    count: int
    moves_only: ClassVar[bool] = True
    needs_whole: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        require_at_least("n", self.count, 0)

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        return islice(items, self.count, None)
