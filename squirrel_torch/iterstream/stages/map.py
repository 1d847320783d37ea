"""One item in, one or several items out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from squirrel_torch.checks import require_callable
from squirrel_torch.errors import ReplayMismatch, StateError
from squirrel_torch.execution.numba import compiled, require_numba
from squirrel_torch.iterstream.keyed import Keys, Wanted, wanted_by
from squirrel_torch.iterstream.stage import Following, Id, Stage, Step

if TYPE_CHECKING:
    from dask.delayed import Delayed

__all__ = ["Called", "DaskMap", "FlatMap", "Flatten", "Map", "NumbaMap", "pair_of"]

T = TypeVar("T")
U = TypeVar("U")


class Called(Stage[T, U]):
    """A stage with a callback, which may ask for a generator."""

    callback: Callable[..., Any]

    @property
    def wanted(self) -> Wanted | None:
        wanted: Wanted | None = self.__dict__.get("_wanted")
        return wanted

    def _prepare(self) -> None:
        require_callable("callback", self.callback)
        # Looked at where the chain is built: a frozen dataclass refuses setattr, its __dict__ does not.
        self.__dict__["_wanted"] = wanted_by(self.callback)

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return ids

    def _by_id(self, following: Following) -> Callable[[Id, T], Any]:
        """The callback, given what it asks for."""
        callback = self.callback
        if self.wanted is None:
            return lambda _, item: callback(item)
        keys = following.keys(self.wanted)
        return lambda own, item: callback(item, **keys.arguments(own))


@dataclass(frozen=True)
class Map(Called[T, U]):
    """`callback` of each item. Order: kept. Holds: nothing. State: none."""

    callback: Callable[[T], U]
    one_to_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._prepare()

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        callback = self.callback
        for item in items:
            yield callback(item)

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        if self.wanted is None:
            callback = self.callback
            for own, item in steps:
                yield own, callback(item)
            return
        keyed = self._by_id(following)
        for own, item in steps:
            yield own, keyed(own, item)

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        return [item for _, item in self.follow(zip(ids, following.remake(ids), strict=True), {}, following)]


class _Several(Stage[T, U]):
    """A stage that makes any number of items of each: ids are (id of the one, place)."""

    remembers: ClassVar[Mapping[str, str]] = {"open": "id", "next": "count"}

    @abstractmethod
    def _made(self, own: Id, item: Any, following: Following) -> Iterable[Any]:
        """The items of one."""

    def check(self, memory: Mapping[str, Any]) -> None:
        if memory and (memory.get("open") is None or "next" not in memory):
            raise StateError(f"{self.describe()} remembers which item is open, and how far it has come, or nothing")

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return list(dict.fromkeys(pair_of(self, own)[0] for own in ids))

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        own, begin = memory.get("open"), memory.get("next", 0)
        if own is not None:
            (item,) = following.remake([own])
            rest = iter(self._made(own, item, following))
            if sum(1 for _ in islice(rest, begin)) < begin:
                raise _fewer(self, own, begin)
            yield from self._placed(own, rest, begin, memory)
        for own, item in steps:
            yield from self._placed(own, self._made(own, item, following), 0, memory)

    def _placed(self, own: Id, made: Iterable[Any], begin: int, memory: dict[str, Any]) -> Iterator[Step]:
        for place, item in enumerate(made, begin):
            memory["open"], memory["next"] = own, place + 1
            yield (own, place), item

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        wanted: dict[Id, dict[int, list[int]]] = {}
        for index, made_id in enumerate(ids):
            own, place = pair_of(self, made_id)
            wanted.setdefault(own, {}).setdefault(place, []).append(index)
        items: list[Any] = [None] * len(ids)
        for own, item in zip(wanted, following.remake(list(wanted)), strict=True):
            places = wanted[own]
            for place, made in enumerate(islice(self._made(own, item, following), max(places) + 1)):
                for index in places.pop(place, ()):
                    items[index] = made
            if places:
                raise _fewer(self, own, max(places) + 1)
        return items


def pair_of(stage: Stage[Any, Any], made_id: Id) -> tuple[Id, int]:
    """The two parts of an id that is made of an id and a number.

    Raises:
        StateError: If it is none.
    """
    if isinstance(made_id, tuple) and len(made_id) == 2 and made_id[0] is not None and type(made_id[1]) is int:
        return made_id[0], made_id[1]
    raise StateError(f"{made_id!r:.80} is no id of an item of {stage.describe()}")


def _fewer(stage: Stage[Any, Any], own: Id, count: int) -> ReplayMismatch:
    return ReplayMismatch(
        f"{stage.describe()} made at least {count} items of sample {own!r} before, and makes fewer now: a callback must make "
        "the same of a sample each time it is called"
    )


@dataclass(frozen=True)
class FlatMap(_Several[T, U], Called[T, U]):
    """Each item of what `callback` gives for each item. Order: kept. Holds: one result. State: which one, and how far."""

    callback: Callable[[T], Iterable[U]]

    def __post_init__(self) -> None:
        self._prepare()

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        callback = self.callback
        for item in items:
            yield from callback(item)

    def _made(self, own: Id, item: Any, following: Following) -> Iterable[Any]:
        made: Iterable[Any] = self._by_id(following)(own, item)
        return made


@dataclass(frozen=True)
class Flatten(_Several[Iterable[T], T]):
    """The items of the items. Order: kept. Holds: one item. State: which one, and how far."""

    def apply(self, items: Iterator[Iterable[T]]) -> Iterator[T]:
        for item in items:
            yield from item

    def _made(self, own: Id, item: Any, following: Following) -> Iterable[Any]:
        made: Iterable[Any] = item
        return made


@dataclass(frozen=True)
class NumbaMap(Called[T, U]):
    """`callback` of each item, compiled by numba where it can be. Order: kept. Holds: nothing. State: none."""

    callback: Callable[[T], U]
    one_to_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._prepare()
        require_numba()

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        return Map(compiled(self.callback)).apply(items)

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        if self.wanted is None:
            return super().follow(steps, memory, following)
        # Compiled with its second argument by position: numba knows numpy's generators.
        return self._keyed(steps, following.keys(self.wanted))

    def _keyed(self, steps: Iterator[Step], keys: Keys) -> Iterator[Step]:
        for own, item in steps:
            yield own, self.callback(item, **keys.arguments(own))

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        return [item for _, item in self.follow(zip(ids, following.remake(ids), strict=True), {}, following)]


@dataclass(frozen=True)
class DaskMap(Stage[T, Any]):
    """A `dask.delayed` of `callback` and each item. Order: kept. Holds: nothing. State: none."""

    callback: Callable[[T], Any]
    one_to_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_callable("callback", self.callback)

    def apply(self, items: Iterator[T]) -> Iterator[Delayed]:
        from squirrel_torch.execution.dask import delayed

        delay = delayed(self.callback)
        for item in items:
            yield delay(item)
