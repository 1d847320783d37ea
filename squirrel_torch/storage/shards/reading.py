"""Rows out of shards: in order, by their numbers, or as batches of columns."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress, repeat
from math import inf
from operator import index as as_index
from operator import length_hint
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from squirrel_torch.sharding import Shard
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.rows import Rows
from squirrel_torch.storage.shards.cache import ShardCache
from squirrel_torch.storage.shards.columns import NotCollatableError, collate
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry
from squirrel_torch.storage.shards.manifest import Manifest
from squirrel_torch.storage.shards.opened import Block, OpenShard, check_size, missing, open_local, open_ranges
from squirrel_torch.storage.store import PartOfRows, Readable

__all__ = ["PartOfShards", "Place", "ReadOptions", "Selection", "ShardReader", "Spans", "check_rows", "places_of", "spans_of"]

T = TypeVar("T")

_OPEN: Final = 4096
"""Mapped files that stay open. They hold no descriptor, and are verified only once."""

_FEWEST: Final = 2
_HELD_BYTES: Final = 64 << 20
_VIEW_BYTES: Final = 8 << 10
"""What a block takes whose data are a view on a mapped file."""

_AHEAD_SHARDS: Final = 1
_AHEAD_RANGES: Final = 8
_RANGE_BYTES: Final = 4 << 20
_WINDOW_VIEWS: Final = 4096
_WINDOW_COPIES: Final = 128


@dataclass(frozen=True)
class ReadOptions:
    """How shards are read.

    Args:
        verify: "shard", "block" or "never".
        writable: Whether arrays are copies.
        cache: Where remote shards are copied to, if anywhere.
        ahead: Whether what comes next is read while rows are given.
    """

    verify: str = "shard"
    writable: bool = False
    cache: ShardCache | None = None
    ahead: bool = True


class _Wanted(NamedTuple):
    """A block of which some rows are read: its shard, its number, the number of its first row, which of its rows."""

    shard: int
    block: int
    start: int
    part: slice


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


class ShardReader:
    """The shards of one manifest, opened when they are needed, in one process.

    Args:
        files: The folder of the dataset.
        manifest: What it holds.
        options: How it is read.
    """

    def __init__(self, files: Files, manifest: Manifest, options: ReadOptions) -> None:
        self.manifest = manifest
        self.options = options
        self._files = files
        self._lock = threading.RLock()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], tuple[Block, int]] = OrderedDict()
        self._held = 0
        rows = np.array([shard.rows for shard in manifest.shards], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(rows)])
        """The number of each shard's first row, and behind them that of all rows."""
        self.block_rows = np.array([shard.block_rows for shard in manifest.shards], dtype=np.int64)
        self.keyed = any(shard.keyed for shard in manifest.shards)
        self._starts: list[int] = self.starts.tolist()
        self.rows = self._starts[-1]

    @property
    def url(self) -> str:
        """Where the dataset is."""
        return self._files.path("")

    @property
    def by_ranges(self) -> bool:
        """Whether shards are read by ranges, none of them as a whole."""
        return not self._files.is_local and self.options.cache is None

    @property
    def window(self) -> int:
        """How many rows are put into order at a time: few, if each of them may hold a block in memory, or if they are large."""
        shards = self.manifest.shards
        copies = self.options.cache
        mapped = self._files.is_local or (copies is not None and copies.fits(sum(shard.size for shard in shards)))
        views = mapped and all(shard.compression is None for shard in shards)
        # Compressed rows are larger than their share of the file; how much, can only be guessed.
        mean = sum(shard.size * (1 if shard.compression is None else 4) for shard in shards) / max(1, self.rows)
        return int(max(1, min(_WINDOW_VIEWS if views else _WINDOW_COPIES, _HELD_BYTES // max(1.0, mean))))

    def shard(self, index: int) -> OpenShard:
        """A shard, verified."""
        with self._lock:
            if index in self._open:
                self._open.move_to_end(index)
                return self._open[index]
        opened = self._opened(self.manifest.shards[index])
        with self._lock:
            known = self._open.setdefault(index, opened)
            most = inf if self.options.cache is None else self.options.cache.most_held
            while len(self._open) > _OPEN or (len(self._open) > _FEWEST and self._open_bytes() > most):
                self._close_oldest()
        if known is not opened:
            opened.close()
        return known

    def _close_oldest(self) -> None:
        index, shard = self._open.popitem(last=False)
        shard.close()
        for key in [key for key in self._blocks if key[0] == index]:  # they keep it mapped
            self._held -= self._blocks.pop(key)[1]

    def _open_bytes(self) -> int:
        return sum(shard.entry.size for shard in self._open.values())

    def _opened(self, entry: ShardEntry) -> OpenShard:
        name, options = f"{FOLDER}/{entry.name}", self.options
        if self._files.is_local:
            return open_local(self._files.path(name), entry, options.verify)

        def download() -> bytes:
            try:
                check_size(self._files.path(name), self._files.size(name), entry)
                return self._files.read(name, 0, entry.size)  # fewer bytes are the transport's fault: it is tried again
            except FileNotFoundError:
                raise missing(self._files.path(name), entry) from None

        cached = None if options.cache is None else options.cache.open(entry, download, options.verify)
        return open_ranges(self._files, entry, options.verify) if cached is None else cached

    def block(self, index: int, number: int) -> Block:
        """A block of a shard; those used last are kept."""
        with self._lock:
            if (index, number) in self._blocks:
                self._blocks.move_to_end((index, number))
                return self._blocks[index, number][0]
        shard = self.shard(index)
        block = shard.block(number, self.options.writable)
        is_view = shard.is_mapped and shard.entry.compression is None
        size = _VIEW_BYTES if is_view else block.size
        with self._lock:
            if (index, number) not in self._blocks and index in self._open:
                self._blocks[index, number] = block, size
                self._held += size
            while self._held > _HELD_BYTES and len(self._blocks) > 1:
                self._held -= self._blocks.popitem(last=False)[1][1]
        return block

    def place(self, row: int) -> tuple[int, int, int]:
        """Where a row is: the shard, the block in it, the row in that."""
        index = bisect_right(self._starts, row) - 1
        block, inside = divmod(row - self._starts[index], self.manifest.shards[index].block_rows)
        return index, block, inside

    def row(self, row: int) -> Any:
        """One row by its number."""
        index, number, inside = self.place(row)
        return self.block(index, number).row(inside)

    def close(self) -> None:
        """Let go of all that is open; rows that were given stay as they are."""
        with self._lock:
            for shard in self._open.values():
                shard.close()
            self._open.clear()
            self._blocks.clear()
            self._held = 0


def ahead(tasks: Iterator[Callable[[], T]], depth: int) -> Generator[T, None, None]:
    """The results of `tasks`, in order, `depth` of them at work in threads before they are needed."""
    pool = ThreadPoolExecutor(depth, thread_name_prefix="squirrel_torch_read")
    waiting: deque[Future[T]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
        depth = _AHEAD_RANGES if reader.options.ahead else 1
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

        with closing(ahead(tasks(), 2 * _AHEAD_RANGES)) as blocks:
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
