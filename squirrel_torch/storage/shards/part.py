"""The rows of a share, in order: one by one, or as batches out of the columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import compress, repeat
from operator import length_hint
from typing import Any, Final, NamedTuple

from squirrel_torch.sharding import Shard
from squirrel_torch.storage.shards.column import NotCollatableError, collate
from squirrel_torch.storage.shards.opened import Block, OpenShard
from squirrel_torch.storage.shards.reader import AHEAD_RANGES, ShardReader, ahead

__all__ = ["PartOfShards"]

_AHEAD_SHARDS: Final = 1
_RANGE_BYTES: Final = 4 << 20


class _Wanted(NamedTuple):
    """A block of which some rows are read: its shard, its number, the number of its first row, which of its rows."""

    shard: int
    block: int
    start: int
    part: slice


class PartOfShards:
    """The rows of a share, in order.

    Args:
        reader: Opens shards.
        share: Which rows: every count-th, from the index on.
    """

    def __init__(self, reader: ShardReader, share: Shard) -> None:
        self._reader = reader
        self._share = share
        self._passed = 0
        self._left: Iterator[bool] = iter(())

    def position(self) -> int:
        """How many rows of the whole have been passed."""
        return max(0, self._passed - length_hint(self._left) * self._share.count)

    def rows(self) -> Iterator[Iterator[Any]]:
        """The rows of each block, made one by one as they are asked for."""
        for start, block, part in self._blocks():
            count = len(range(part.start, block.count, part.step))
            self._passed = start + part.start + (count - 1) * self._share.count + 1
            self._left = repeat(True, count)
            # Nothing but a count of what is left, in C.
            yield compress(block.column.rows(part), self._left)

    def collated(self, size: int, drop_last: bool) -> Iterator[Any] | None:
        """See `PartOfRows.collated`."""
        field = self._reader.manifest.field
        return None if field is None else self._batches(size, drop_last)

    def _batches(self, size: int, drop_last: bool) -> Iterator[Any]:
        parts: list[tuple[Block, slice]] = []
        lacking = size
        for _, block, part in self._blocks():
            rows = range(part.start, block.count, part.step)
            while len(rows) >= lacking:
                parts.append((block, _slice(rows[:lacking])))
                yield _batch(parts)
                rows, parts, lacking = rows[lacking:], [], size
            if rows:
                parts.append((block, _slice(rows)))
                lacking -= len(rows)
        if parts and not drop_last:
            yield _batch(parts)

    def _blocks(self) -> Iterator[tuple[int, Block, slice]]:
        """The number of the first row of each block, the block, and which of its rows are of the share."""
        numbers = [number for number in range(len(self._reader.manifest.shards)) if next(self._wanted(number), None)]
        if self._reader.by_ranges:
            return self._ranges(wanted for number in numbers for wanted in self._wanted(number))
        return self._shards(numbers)

    def _wanted(self, number: int) -> Iterator[_Wanted]:
        """The blocks of a shard that have rows of the share."""
        index, count = self._share.index, self._share.count
        entry, begin = self._reader.manifest.shards[number], int(self._reader.starts[number])
        for block in range(entry.blocks):
            start = begin + block * entry.block_rows
            offset = (index - start) % count
            if offset < entry.rows_of(block):
                yield _Wanted(number, block, start, slice(offset, None, count))

    def _shards(self, numbers: Sequence[int]) -> Iterator[tuple[int, Block, slice]]:
        """Shard by shard, the next one opened meanwhile."""
        reader = self._reader
        tasks: Iterator[Callable[[], OpenShard]] = (partial(reader.shard, number) for number in numbers)
        is_alone = len(numbers) == 1 or not reader.options.ahead
        opened = (task() for task in tasks) if is_alone else ahead(tasks, _AHEAD_SHARDS)
        with closing(opened):
            for number, shard in zip(numbers, opened, strict=True):
                if shard.is_mapped:
                    for _, block, start, part in self._wanted(number):
                        yield start, shard.block(block, reader.options.writable), part
                else:  # there was no room for a copy
                    yield from self._ranges(self._wanted(number))

    def _ranges(self, wanted: Iterable[_Wanted]) -> Iterator[tuple[int, Block, slice]]:
        """Neighbouring blocks in one range, several ranges ahead."""
        reader = self._reader

        def fetched(group: list[_Wanted]) -> list[tuple[int, Block, slice]]:
            shard = reader.shard(group[0][0])
            data = shard.fetch_blocks(group[0][1], group[-1][1], reader.options.writable)
            return [(start, block, part) for (_, _, start, part), block in zip(group, data, strict=True)]

        tasks: Iterator[Callable[[], list[tuple[int, Block, slice]]]] = (
            partial(fetched, group) for group in self._neighbours(wanted)
        )
        depth = AHEAD_RANGES if reader.options.ahead else 1
        with closing(ahead(tasks, depth)) as fetching:
            for blocks in fetching:
                yield from blocks

    def _neighbours(self, wanted: Iterable[_Wanted]) -> Iterator[list[_Wanted]]:
        group: list[_Wanted] = []
        for one in wanted:
            number, block = one[:2]
            ends = self._reader.manifest.shards[number].ends
            follows = bool(group) and group[-1][:2] == (number, block - 1)
            if group and not (follows and ends[block + 1] - ends[group[0][1]] <= _RANGE_BYTES):
                yield group
                group = []
            group.append(one)
        if group:
            yield group


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop, rows.step)


def _batch(parts: Sequence[tuple[Block, slice]]) -> Any:
    try:
        return collate([(block.column, part) for block, part in parts])
    except NotCollatableError:
        from torch.utils.data import default_collate

        return default_collate([row for block, part in parts for row in block.column.rows(part)])
