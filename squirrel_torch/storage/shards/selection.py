"""Rows of a store by their numbers, in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from operator import index as as_index
from operator import length_hint
from typing import Any, NamedTuple

import numpy as np

from squirrel_torch.sharding import Shard
from squirrel_torch.storage.rows import Rows
from squirrel_torch.storage.shards.opened import Block
from squirrel_torch.storage.shards.reader import AHEAD_RANGES, ShardReader, ahead
from squirrel_torch.storage.store import PartOfRows, Readable

__all__ = ["Place", "Selection", "Spans", "check_rows", "places_of", "spans_of"]


class Place(NamedTuple):
    """A block of which rows are picked: its shard, its number, the rows in it, where each goes in the window."""

    shard: int
    block: int
    inside: list[int]
    order: list[int]


class Spans(NamedTuple):
    """Rows that are picked, in the order in which they lie.

    Args:
        order: Where each one goes in the window.
        inside: The number of each one in its block.
        blocks: The shard, the number of the block, and which of these rows are in it: from where to where.
    """

    order: Any
    inside: Any
    blocks: list[tuple[int, int, int, int]]


class Selection(Readable):
    """Rows of a store by their numbers, in the order of the numbers; a row may be there several times.

    Sized, as often iterable as one likes, and a map-style dataset: `selection[i]` is row `rows[i]`.

    Args:
        reader: Gives the reader of the process it is called in.
        rows: The numbers.
    """

    def __init__(self, reader: Callable[[], ShardReader], rows: Any) -> None:
        self._reader = reader
        self._numbers = rows

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Any:
        place = as_index(index)
        if not -len(self._numbers) <= place < len(self._numbers):
            raise IndexError(f"there is no row {place} in a selection of {len(self._numbers)}")
        return self._reader().row(int(self._numbers[place]))

    def __repr__(self) -> str:
        return f"<{len(self)} rows selected>"

    def _part(self, shard: Shard) -> PartOfRows:
        return PartOfRows(_SelectedRows(self._reader(), self._numbers, shard))

    def _by_number(self) -> Rows:
        from squirrel_torch.storage.shards.rows import SelectedRows

        return SelectedRows(self._reader, self._numbers)


class _SelectedRows:
    """Some of the rows of a selection, window by window: those of one window are read in the order in which they lie."""

    def __init__(self, reader: ShardReader, numbers: Any, share: Shard) -> None:
        self._reader = reader
        self._numbers = numbers[share.index :: share.count]
        self._share = share
        self._given = 0
        self._rows: Iterator[Any] = iter(())

    def position(self) -> int:
        given = self._given - length_hint(self._rows)
        return self._share.index + (given - 1) * self._share.count + 1 if given else 0

    def collated(self, size: int, drop_last: bool) -> Iterator[Any] | None:
        return None

    def rows(self) -> Iterator[Iterator[Any]]:
        size = self._reader.window
        windows = [self._numbers[start : start + size] for start in range(0, len(self._numbers), size)]
        if not self._reader.by_ranges:
            loaded: Iterator[list[Any]] = (self._ordered(window, places_of(self._reader, window)) for window in windows)
        else:
            loaded = self._ordered_ahead(windows)
        for rows in loaded:
            self._given += len(rows)
            self._rows = iter(rows)
            del rows
            yield self._rows

    def _ordered(self, window: Any, places: Iterable[Place], blocks: Iterator[Block] | None = None) -> list[Any]:
        rows: list[Any] = [None] * len(window)
        for index, number, inside, order in places:
            block = self._reader.block(index, number) if blocks is None else next(blocks)
            for target, row in zip(order, block.column.pick(inside), strict=True):
                rows[target] = row
        return rows

    def _ordered_ahead(self, windows: Sequence[Any]) -> Iterator[list[Any]]:
        places: deque[list[Place]] = deque()

        def tasks() -> Iterator[Callable[[], Block]]:
            for window in windows:
                places.append(places_of(self._reader, window))
                for index, number, *_ in places[-1]:
                    yield partial(self._reader.block, index, number)

        with closing(ahead(tasks(), 2 * AHEAD_RANGES)) as blocks:
            for window in windows:
                first = next(blocks)  # by now its places are known
                yield self._ordered(window, places.popleft(), chain([first], blocks))


def spans_of(reader: ShardReader, rows: Any) -> Spans:
    """Each block that holds some of these rows, in the order in which they lie."""
    order = np.argsort(rows)
    shards = np.searchsorted(reader.starts, rows[order], side="right") - 1
    blocks, inside = np.divmod(rows[order] - reader.starts[shards], reader.block_rows[shards])
    cuts = np.flatnonzero((np.diff(shards) != 0) | (np.diff(blocks) != 0)) + 1
    begins = np.concatenate([[0], cuts])
    ends = [*cuts.tolist(), len(rows)]
    return Spans(order, inside, list(zip(shards[begins].tolist(), blocks[begins].tolist(), begins.tolist(), ends, strict=True)))


def places_of(reader: ShardReader, rows: Any) -> list[Place]:
    """The same as lists."""
    order, inside, spans = spans_of(reader, rows)
    inside_list, order_list = inside.tolist(), order.tolist()
    return [Place(shard, block, inside_list[begin:end], order_list[begin:end]) for shard, block, begin, end in spans]


def check_rows(rows: Any, count: int) -> Any:
    """Row numbers as an array of int64.

    Raises:
        TypeError: If they are no whole numbers.
        IndexError: If one is not below `count`, or negative.
    """
    numbers = np.asarray(rows if isinstance(rows, np.ndarray | Sequence) else list(rows))
    if numbers.size == 0:
        return np.empty(0, np.int64)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise TypeError(f"rows must be whole numbers, got {numbers.dtype} of shape {list(numbers.shape)}")
    outside = numbers[(numbers < 0) | (numbers >= count)]
    if outside.size:
        raise IndexError(f"row {outside[0]} is not in the dataset, which has {count} rows: from 0 to {count - 1}")
    return numbers.astype(np.int64)
