"""The part of a chain whose order is arithmetic: a source with numbered items, and the stages that only order and choose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.rows import rows_of
from squirrel_torch.iterstream.run import Lifetime
from squirrel_torch.iterstream.source import IterableSource, Source
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.iterstream.stages import Loop, Shuffled, Skip, SplitStage, Take
from squirrel_torch.plan import Applied, Looped, Order, Permuted, Skipped, Straight, Strided, Taken, permutation_key
from squirrel_torch.sharding import WHOLE, Shard
from squirrel_torch.storage import Ids, Rows

__all__ = ["Numbered", "Planned", "planned_prefix", "position_blocks"]

_FIRST_BLOCK: Final = 64
_BLOCK: Final = 4096


@dataclass(frozen=True)
class Planned:
    """The beginning of a chain, as arithmetic.

    Args:
        count: How many places of the chain it covers, from the source on.
        order: The number of the item at each position of the epoch.
        rows: The items.
    """

    count: int
    order: Order
    rows: Rows


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
    for count in range(1, len(links)):
        further = _further(order, rows, links[: count + 1], context)
        if further is None:
            return Planned(count, order, rows)
        order = further
    return Planned(len(links), order, rows)


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
        self._planned_prefix = planned
        self._before = draws
        self._positions = positions

    @property
    def _draws(self) -> Any:
        """How many places it stands for draw random numbers."""
        return self._before

    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[Any]:
        planned = self._planned_prefix
        return self._numbered(planned.rows, (planned.order.ids(positions) for positions in self._positions))

    def _describe(self) -> str:
        return self._first._describe()


def _begun(first: Composable[Any], context: Context) -> tuple[Order, Rows] | None:
    """The order in which a source gives its items, and these."""
    if first._custom or first._stage is not None:
        return None
    if type(first) is IterableSource:
        rows = rows_of(first.source)
        return None if rows is None else (Straight(len(rows)), rows)
    return None


def _further(order: Order, rows: Rows, links: Sequence[Composable[Any]], context: Context) -> Order | None:
    """The order behind the last of `links`, given that before it; None if that is not arithmetic."""
    *before, last = links
    stage = None if last._custom else last._stage
    match stage:
        case Shuffled():
            own = context.below(sum(link._draws for link in before))
            return _shuffled(order, rows, stage, own)
        case Take(count):
            return Taken(order, count)
        case Skip(count):
            return Skipped(order, count)
        case SplitStage():
            return Strided(order, stage.shard())
        case Loop(times):
            return Looped(partial(_pass, order, rows, before, context), times)
    return None


def _shuffled(order: Order, rows: Rows, stage: Shuffled[Any], context: Context) -> Order | None:
    if order.length is None or not rows.scattered:
        return None  # an endless stream, or reading in any order would cost too much: through a buffer
    key = permutation_key(stage.seed, context.epoch, context.path)
    groups = rows.groups
    if groups is None or True:
        return Applied(Permuted(order.length, key), order)
    if isinstance(order, Straight):
        return Windowed(tuple(groups.tolist()), stage.size, key)
    # What is left of the files when some has been taken or skipped: one run of neighbours.
    return Applied(Windowed((order.length,), stage.size, key), order)


def _pass(order: Order, rows: Rows, before: Sequence[Composable[Any]], context: Context, number: int) -> Order:
    """The order of pass `number` of a loop over the places `before`, as `run.Upstream` opens them; the first is `order`."""
    if number == 0 or not any(link._draws for link in before):
        return order
    draws = sum(link._draws or link._repeats for link in before)
    again = planned_prefix(before, context.below("pass", draws, number))
    return again.order if again is not None else order


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
