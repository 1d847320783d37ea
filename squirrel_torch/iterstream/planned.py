"""The part of a chain whose order is arithmetic: a source with numbered items, and the stages that only order and choose."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.iterable import IterableSource, Source
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.iterstream.mix import IterableSamplerSource, Mix
from squirrel_torch.iterstream.mixed_rows import MixedRows, PlannedBranch
from squirrel_torch.iterstream.multiplexer import Multiplexer
from squirrel_torch.iterstream.rows import rows_of
from squirrel_torch.iterstream.stage import Context, Stage
from squirrel_torch.iterstream.stages import Loop, Shuffled, Skip, SplitStage, Take
from squirrel_torch.plan import (
    Applied,
    Drawn,
    InTurn,
    Looped,
    Order,
    Permuted,
    Sampled,
    Skipped,
    Straight,
    Strided,
    Taken,
    Windowed,
    permutation_key,
)
from squirrel_torch.seeding import DEFAULT_SEED, Seed
from squirrel_torch.sharding import WHOLE, Shard
from squirrel_torch.storage import Ids, Located, Rows

__all__ = ["Numbered", "Planned", "is_opaque", "makes_one", "planned_prefix", "position_blocks", "seed_before"]

_FIRST_BLOCK: Final = 64
_BLOCK: Final = 4096


@dataclass(frozen=True)
class Planned:
    """The beginning of a chain, as arithmetic.

    Stages that make one item of each (`data`) may stand between those that order and choose: what these do can be done before.

    Args:
        count: How many places of the chain it covers, from the source on.
        order: The number of the item at each position of the epoch.
        rows: The items of the source.
        ordering: The places covered whose work the order does, the source being the first.
        data: The places covered that make items.
    """

    count: int
    order: Order
    rows: Rows
    ordering: tuple[Composable[Any], ...]
    data: tuple[Composable[Any], ...] = ()

    def locate(self, numbers: Ids) -> list[Located]:
        """Where the items of some numbers lie. A source without a name is told as the chain describes it."""
        name = self.ordering[0]._describe()
        return [one if one.source else replace(one, source=name) for one in self.rows.locate(numbers)]

    def open(
        self, links: Sequence[Composable[Any]], context: Context, lifetime: Lifetime, numbers: Iterator[Ids]
    ) -> Iterator[Any]:
        """The items of some numbers.

        Args:
            links: The places of the chain: those that it covers, and perhaps more that make one item of each.
            context: The epoch, and the path of the chain.
            lifetime: Closes what is opened.
            numbers: The numbers, block by block.
        """
        items = _items_of(links[0], self.rows, numbers, lifetime)
        for place, link in enumerate(links):
            entry = lifetime.opened(link, place, items)
            makes = (place >= self.count or link in self.data) and link._stage is not None
            if makes and link._stage is not None:
                own = context.below(sum(other._draws for other in links[:place]))
                items = entry.iterator = link._stage.start(items, own)
            if makes or place == 0:
                items = lifetime.seen(entry, items)
        return items


def _items_of(source: Any, rows: Rows, numbers: Iterator[Ids], lifetime: Lifetime) -> Iterator[Any]:
    """The items of a source that have these numbers."""
    if isinstance(rows, MixedRows):
        return rows.open(numbers, lifetime)
    items: Iterator[Any] = source._numbered(rows, numbers, lifetime)
    return items


def planned_prefix(links: Sequence[Composable[Any]], context: Context) -> Planned | None:
    """The longest beginning of a chain that is planned; None if its source has no numbers.

    Args:
        links: The places of the chain, from its source on.
        context: The epoch, and the path of the chain.
    """
    begun = _begun(links[0], context)
    if begun is None:
        return None
    order, rows = begun
    found = Planned(1, order, rows, (links[0],))
    ordering, data = [links[0]], []
    for place, link in enumerate(links[1:], start=1):
        stage = None if link._custom else link._stage
        if makes_one(link):
            data.append(link)
            continue
        further = None if stage is None else _further(order, rows, stage, links[:place], context)
        if further is None:
            break
        order = further
        ordering.append(link)
        found = Planned(place + 1, order, rows, tuple(ordering), tuple(data))
    return found


class Numbered(Source[Any]):
    """A source whose items are given in the order of a plan, at some positions of it.

    Args:
        first: The source.
        planned: What covers it and the stages that order it.
        draws: How many of these draw random numbers: stages behind them go by it.
        positions: The positions, block by block.
    """

    def __init__(self, first: Composable[Any], planned: Planned, draws: int, positions: Iterable[Ids]) -> None:
        super().__init__(first)
        self._first = first
        self._site = first._site
        self.planned = planned
        self._before = draws
        self._positions = positions

    @property
    def _draws(self) -> Any:
        """How many places it stands for draw random numbers."""
        return self._before

    def numbers(self) -> Iterator[Ids]:
        """The numbers of its items, block by block."""
        return (self.planned.order.ids(positions) for positions in self._positions)

    @property
    def seed(self) -> Seed:
        """The seed that callbacks behind it go by."""
        return seed_before(self.planned.ordering)

    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[Any]:
        return self.items_of(self.numbers(), lifetime)

    def items_of(self, numbers: Iterator[Ids], lifetime: Lifetime) -> Iterator[Any]:
        """The items of these numbers."""
        return _items_of(self, self.planned.rows, numbers, lifetime)

    def _describe(self) -> str:
        return self._first._describe()


def _begun(first: Composable[Any], context: Context) -> tuple[Order, Rows] | None:
    """The order in which a source gives its items, and these."""
    if first._custom or first._stage is not None:
        return None
    if type(first) is IterableSource:
        rows = rows_of(first.source)
        return None if rows is None else (Straight(len(rows)), rows)
    return _mixed(first, context.below(0)) if isinstance(first, Mix) else None


def _mixed(mix: Mix[Any], context: Context) -> tuple[Order, Rows] | None:
    """The order of a mix whose streams are all planned."""
    branches: list[PlannedBranch] = []
    for index, branch in enumerate(mix.branches):
        links, own = branch._links(), context.below("branch", index, 0)
        planned = planned_prefix(links, own)
        if planned is None or not all(makes_one(link) for link in links[planned.count :]):
            return None
        branches.append(PlannedBranch(links, planned, own))

    def order_of(index: int, opening: int) -> Order:
        again = planned_prefix(branches[index].links, context.below("branch", index, opening)) if opening else None
        return branches[index].planned.order if again is None else again.order

    orders = tuple(partial(order_of, index) for index in range(len(branches)))
    rows = MixedRows(branches)
    seed, epoch, path = getattr(mix, "seed", None), context.epoch, context.path
    if isinstance(mix, IterableSamplerSource):
        return Sampled(orders, tuple(mix.probs), seed, epoch, path), rows
    if not isinstance(mix, Multiplexer):
        return None
    if not mix._draws:
        return InTurn(orders), rows
    reinits = None if mix.max_reinits == sys.maxsize else mix.max_reinits
    return Drawn(orders, tuple(mix.sampling_probas), seed, epoch, path, reinits), rows


def makes_one(link: Composable[Any]) -> bool:
    """Whether a place makes one item of each, and needs not know which one it is."""
    stage = None if link._custom else link._stage
    return stage is not None and stage.one_to_one and stage.wanted is None


def _further(
    order: Order, rows: Rows, stage: Stage[Any, Any], before: Sequence[Composable[Any]], context: Context
) -> Order | None:
    """The order behind a stage, given that before it; None if that is not arithmetic."""
    match stage:
        case Shuffled():
            return _shuffled(order, rows, stage, context.below(sum(link._draws for link in before)))
        case Take(count):
            return Taken(order, count)
        case Skip(count):
            return Skipped(order, count)
        case SplitStage():
            return Strided(order, stage.shard())
        case Loop(times):
            return Looped(partial(_pass, order, before, context), times)
    return None


def _shuffled(order: Order, rows: Rows, stage: Shuffled[Any], context: Context) -> Order | None:
    if order.length is None or not rows.scattered:
        return None  # an endless stream, or reading in any order would cost too much: through a buffer
    key = permutation_key(stage.seed, context.epoch, context.path)
    groups = rows.groups
    if groups is None:
        return Applied(Permuted(order.length, key), order)
    if isinstance(order, Straight):
        return Windowed(groups, stage.size, key)
    # What is left of the files when some has been taken or skipped: one run of neighbours.
    return Applied(Windowed(np.array([order.length]), stage.size, key), order)


def _pass(order: Order, before: Sequence[Composable[Any]], context: Context, number: int) -> Order:
    """The order of pass `number` of a loop over the places `before`, as `run.Upstream` opens them; the first is `order`."""
    if number == 0 or not any(link._draws for link in before):
        return order
    draws = sum(link._draws or link._repeats for link in before)
    again = planned_prefix(before, context.below("pass", draws, number))
    return order if again is None else again.order


def is_opaque(link: Composable[Any]) -> bool:
    """Whether what a stage remembers is not known, so that it has to be run again from the beginning."""
    stage = link._stage
    if link._custom or stage is None:
        return True
    return not stage.one_to_one and not stage.repeats and type(stage).follow is Stage.follow


def seed_before(links: Iterable[Composable[Any]]) -> Seed:
    """The seed of the last of `links` that has one."""
    seed: Seed = DEFAULT_SEED
    for link in links:
        seed = getattr(link if link._stage is None else link._stage, "seed", seed)
    return seed


def position_blocks(order: Order, shard: Shard = WHOLE, start: int = 0) -> Iterator[Ids]:
    """The positions of a share, in blocks that grow, so that the first item comes soon.

    Args:
        order: Of the epoch.
        shard: The share: every count-th position, from the index on.
        start: How many positions of the share have been dealt with.
    """
    size, left = _FIRST_BLOCK, None if order.length is None else len(range(shard.index, order.length, shard.count))
    while left is None or start < left:
        end = start + size if left is None else min(start + size, left)
        yield shard.index + shard.count * np.arange(start, end, dtype=np.int64)
        start, size = end, min(2 * size, _BLOCK)
