"""Which items pass: filter, take, skip."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, TypeVar

from squirrel_torch.checks import require_at_least, require_callable
from squirrel_torch.errors import ReplayMismatch, StateError
from squirrel_torch.iterstream.keyed import Wanted, wanted_by
from squirrel_torch.iterstream.stage import Following, Id, Stage, Step

__all__ = ["Filter", "Skip", "Take"]

T = TypeVar("T")


@dataclass(frozen=True)
class Filter(Stage[T, T]):
    """The items for which `predicate` is true. Order: kept. Holds: nothing. State: none."""

    predicate: Callable[..., object]

    def __post_init__(self) -> None:
        require_callable("predicate", self.predicate)
        self.__dict__["_wanted"] = wanted_by(self.predicate)

    @property
    def wanted(self) -> Wanted | None:
        wanted: Wanted | None = self.__dict__.get("_wanted")
        return wanted

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        predicate = self.predicate
        for item in items:
            if predicate(item):
                yield item

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        predicate = self.predicate
        keys = None if self.wanted is None else following.keys(self.wanted)
        for own, item in steps:
            if predicate(item, **({} if keys is None else keys.arguments(own))):
                yield own, item

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return ids

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        steps = zip(ids, following.remake(ids), strict=True)
        items = [item for _, item in self.follow(steps, {}, following)]
        if len(items) < len(ids):
            raise ReplayMismatch(
                f"{self.describe()} leaves out {len(ids) - len(items)} of {len(ids)} samples that it let pass before: "
                "a predicate must say the same of a sample each time it is asked"
            )
        return items


@dataclass(frozen=True)
class Take(Stage[T, T]):
    """The first `count` items; no more are asked for. Order: kept. Holds: nothing. State: a count."""

    count: int
    moves_only: ClassVar[bool] = True
    needs_whole: ClassVar[bool | None] = True
    remembers: ClassVar[Mapping[str, str]] = {"given": "count"}

    def check(self, memory: Mapping[str, Any]) -> None:
        if memory.get("given", 0) > self.count:
            raise StateError(f"{self.describe()} can't have given {memory['given']} items")

    def __post_init__(self) -> None:
        require_at_least("n", self.count, 0)

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        return islice(items, self.count)

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        given = memory.get("given", 0)
        for step in islice(steps, max(0, self.count - given)):
            given += 1
            memory["given"] = given
            yield step


@dataclass(frozen=True)
class Skip(Stage[T, T]):
    """All but the first `count` items. Order: kept. Holds: nothing. State: a count."""

    count: int
    moves_only: ClassVar[bool] = True
    needs_whole: ClassVar[bool | None] = True
    remembers: ClassVar[Mapping[str, str]] = {"skipped": "flag"}

    def __post_init__(self) -> None:
        require_at_least("n", self.count, 0)

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        return islice(items, self.count, None)

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        begin = 0 if memory.get("skipped") else self.count
        for step in islice(steps, begin, None):
            memory["skipped"] = True
            yield step
