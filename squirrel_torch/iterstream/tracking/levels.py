"""The places of a tracked run: what each gives, with ids, and what it remembers."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Protocol

import numpy as np

from squirrel_torch.errors import ReplayMismatch, StateError
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.digest import digest_of
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.iterstream.planned import Numbered, Planned, position_blocks
from squirrel_torch.iterstream.run import open_links
from squirrel_torch.iterstream.stage import Context, Following, Id, Stage, Step
from squirrel_torch.storage import Ids

__all__ = ["Level", "Memory", "NumberedLevel", "PlannedLevel", "ReplayedLevel", "StageLevel", "remade"]

_log = logging.getLogger(__name__)

Memory = dict[str, Any]

_BLOCK: Final = 4096


class Level(ABC):
    """One place of a tracked run, or several that are remembered as one.

    Args:
        memory: What it remembers: empty at the beginning, or as it was saved.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    @abstractmethod
    def steps(self) -> Iterator[Step]:
        """(id, item), from where the memory says on. Asked for once."""

    @abstractmethod
    def remake(self, ids: Sequence[Id]) -> list[Any]:
        """The items that it gave under these ids, made again."""

    def snapshot(self) -> list[Memory]:
        """What this place and those before it remember, the first one's first: fresh copies."""
        return [_copied(self.memory)]


def _copied(memory: Memory) -> Memory:
    return {name: _fresh(value) if type(value) in (list, dict) else value for name, value in memory.items()}


def _fresh(value: Any) -> Any:
    """A copy as deep as it can change: ids are tuples, and can't."""
    if type(value) is dict:
        return _copied(value)
    return [_fresh(part) for part in value] if value and type(value[0]) in (list, dict) else list(value)


class PlannedLevel(Level):
    """The beginning of a chain whose order is arithmetic: it remembers a count.

    Args:
        links: The places of the chain, as far as the plan covers them.
        planned: The plan.
        context: The epoch, and the path of the chain.
        lifetime: Closes what is opened.
        memory: "at": how many items have been given.
    """

    def __init__(
        self, links: Sequence[Composable[Any]], planned: Planned, context: Context, lifetime: Lifetime, memory: Memory
    ) -> None:
        super().__init__(memory)
        self._links = links
        self._planned = planned
        self._context = context
        self._lifetime = lifetime

    def steps(self) -> Iterator[Step]:
        ids: deque[int] = deque()
        order, memory = self._planned.order, self.memory
        at = memory.get("at", 0)
        blocks = (order.ids(positions) for positions in position_blocks(order, start=at))
        for item in self._open(_noted(blocks, ids), self._lifetime):
            at += 1
            memory["at"] = at
            yield ids.popleft(), item

    def _open(self, numbers: Iterator[Ids], lifetime: Lifetime) -> Iterator[Any]:
        return self._planned.open(self._links, self._context, lifetime, numbers)

    def remake(self, ids: Sequence[Id]) -> list[Any]:
        rows = len(self._planned.rows)
        for own in ids:
            if type(own) is not int or not 0 <= own < rows:
                raise StateError(f"{own!r:.80} is no number of a sample: there are {rows}")
        numbers = (np.array(ids[at : at + _BLOCK], np.int64) for at in range(0, len(ids), _BLOCK))
        lifetime = self._lifetime.child("items that are made again")
        with lifetime:
            items = list(self._open(numbers, lifetime))
            lifetime.close("exhausted")
        return items


def _noted(numbers: Iterable[Ids], ids: deque[int]) -> Iterator[Ids]:
    """The numbers, each block noted before it is given."""
    for block in numbers:
        ids.extend(block.tolist())
        yield block


class NumberedLevel(Level):
    """A source of given numbers, as a loader deals them: what is left of them, the loader knows."""

    def __init__(self, source: Numbered, context: Context, lifetime: Lifetime) -> None:
        super().__init__({})
        self._source = source
        self._context = context
        self._lifetime = lifetime

    def steps(self) -> Iterator[Step]:
        ids: deque[int] = deque()
        numbers = _noted(self._source.numbers(), ids)
        items = self._source.items_of(numbers, self._lifetime)
        self._lifetime.opened(self._source, 0, items)
        for item in items:
            yield ids.popleft(), item

    def remake(self, ids: Sequence[Id]) -> list[Any]:
        raise AssertionError("nothing behind such a source is gone on with")


class ReplayedLevel(Level):
    """The beginning of a chain that has to be run again from its beginning: it remembers a count and a digest.

    Args:
        links: The places of the chain, as far as they are run again.
        context: The epoch, and the path of the chain.
        lifetime: Closes what is opened.
        memory: "given": how many items; "digest": of these.
        needed: The numbers of those that will be made again, as far as they are known: they are kept while it runs up to
            where it was.
    """

    def __init__(
        self,
        links: Sequence[Composable[Any]],
        context: Context,
        lifetime: Lifetime,
        memory: Memory,
        needed: frozenset[Any] = frozenset(),
    ) -> None:
        super().__init__(memory)
        self._links = links
        self._context = context
        self._lifetime = lifetime
        self._needed = needed
        self._kept: dict[Any, Any] = {}
        self._items: Iterator[Any] | None = None

    def steps(self) -> Iterator[Step]:
        memory = self.memory
        items = self._replayed() if self._items is None else self._items
        self._kept.clear()  # who reads on has got back what it held
        given, digest = memory.get("given", 0), memory.get("digest", 0)
        for item in items:
            own = given
            digest = digest_of(item, digest)
            given += 1
            memory["given"], memory["digest"] = given, digest
            yield own, item

    def remake(self, ids: Sequence[Id]) -> list[Any]:
        for own in ids:
            if type(own) is not int or own < 0:
                raise StateError(f"{own!r:.80} is no number of an item")
        wanted = frozenset(ids)
        if wanted and max(wanted) < self.memory.get("given", 0):
            if self._items is None:
                self._needed |= wanted
                self._items = self._replayed()
            if wanted <= self._kept.keys():
                return [self._kept[own] for own in ids]
        # An async_map above notes where this place was before it gave them.
        made = self._made_aside(wanted)
        return [made[own] for own in ids]

    def _made_aside(self, wanted: frozenset[Any]) -> dict[Any, Any]:
        """Some items by their numbers, from a run of their own."""
        made: dict[Any, Any] = {}
        if not wanted:
            return made
        lifetime, last, number = self._lifetime.child("items that are made again"), max(wanted), 0
        with lifetime:
            for number, item in enumerate(islice(open_links(self._links, self._context, lifetime), last + 1), 1):
                if number - 1 in wanted:
                    made[number - 1] = item
            lifetime.close("closed")
        if number <= last:
            raise ReplayMismatch(f"{self._links[-1]._describe()} ends after {number} items; item {last} had come before")
        return made

    def _replayed(self) -> Iterator[Any]:
        """The items behind those that were given; those that are needed are kept on the way."""
        given = self.memory.get("given", 0)
        items = open_links(self._links, self._context, self._lifetime)
        if given:
            _log.warning(
                "%s is run again from the beginning to go on: %d items are dropped; pipeline.explain() says how to avoid it",
                self._links[-1]._describe(),
                given,
            )
        needed, digest, number = self._needed, 0, 0
        for number, item in enumerate(islice(items, given), 1):
            digest = digest_of(item, digest)
            if number - 1 in needed:
                self._kept[number - 1] = item
        if number < given or digest != self.memory.get("digest", 0):
            what = f"ends after {number} items" if number < given else f"gives other items among its first {given}"
            raise ReplayMismatch(
                f"{self._links[-1]._describe()} {what}; {given} had been delivered when the state was saved: it must give "
                "the same items in the same order in each run of an epoch, or the epoch must be begun anew"
            )
        return items


def remade(ids: Sequence[Any], level: Callable[[int], Level]) -> list[Any]:
    """The items under ids that are (opening, id there), for what is opened several times in a run, one time after the other.

    Args:
        ids: The ids.
        level: Gives what was opened, by the number of the opening.
    """
    places: dict[int, list[int]] = {}
    for index, (number, _) in enumerate(ids):
        places.setdefault(number, []).append(index)
    items: list[Any] = [None] * len(ids)
    for number, indices in places.items():
        for index, item in zip(indices, level(number).remake([ids[index][1] for index in indices]), strict=True):
            items[index] = item
    return items


class Passes(Protocol):
    """What a stage that reads its upstream several times gets instead of steps."""

    def of_pass(self, number: int) -> Iterator[Step]:
        """The steps of a pass."""


class StageLevel(Level):
    """A stage.

    Args:
        link: Its place in the chain.
        place: The number of that.
        below: Gives the place before it, anew for each pass of a loop; the first time with what it remembers.
        context: The epoch, and the path of the stage.
        lifetime: Closes what is opened.
        memory: What the stage remembers.
        seed: For generators that it asks for.
        number: How many stages before it ask for such.
    """

    def __init__(
        self,
        link: Composable[Any],
        place: int,
        below: Callable[[int], Level],
        context: Context,
        lifetime: Lifetime,
        memory: Memory,
        seed: Any,
        number: int,
    ) -> None:
        super().__init__(memory)
        self._link = link
        self._place = place
        self._make_below = below
        self._below = below(memory.get("pass", 0))
        self._pass = memory.get("pass", 0)
        self._passes = [self._below]
        self._lifetime = lifetime
        self._following = Following(context, self._states_below, self._remake_below, seed, number)

    @property
    def _stage(self) -> Stage[Any, Any]:
        assert self._link._stage is not None  # noqa: S101  # places without one are run again
        return self._link._stage

    def steps(self) -> Iterator[Step]:
        entry = self._lifetime.opened(self._link, self._place)
        steps: Any = self if self._stage.repeats else self._below.steps()
        entry.iterator = self._stage.follow(steps, self.memory, self._following)
        return self._lifetime.seen(entry, entry.iterator)

    def of_pass(self, number: int) -> Iterator[Step]:
        """The steps of a pass of the places before."""
        if self._passes:
            return self._passes.pop().steps()
        # A `take` may have left generators, threads too, that wait to be asked for more.
        self._lifetime.release([entry for entry in self._lifetime.remembered() if entry.place < self._place])
        self._below, self._pass = self._make_below(number), number
        return self._below.steps()

    def _states_below(self) -> list[Memory]:
        return self._below.snapshot()

    def _remake_below(self, ids: Sequence[Id]) -> list[Any]:
        if not self._stage.repeats:
            return self._below.remake(ids)
        return remade(ids, lambda number: self._below if number == self._pass else self._make_below(number))

    def remake(self, ids: Sequence[Id]) -> list[Any]:
        return self._stage.remake(ids, self._following)

    def snapshot(self) -> list[Memory]:
        own = _copied(self.memory)
        # A stage that pulls ahead in another thread knows itself where those before it were.
        below = own.pop("below", None)
        return [*(self._below.snapshot() if below is None else below), own]
