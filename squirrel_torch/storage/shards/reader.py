"""The shards of a dataset, opened as they are needed; blocks and rows of them by their numbers."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from typing import Any, Final, TypeVar

import numpy as np

from squirrel_torch.storage.files import Files
from squirrel_torch.storage.shards.cache import ShardCache
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry
from squirrel_torch.storage.shards.manifest import Manifest
from squirrel_torch.storage.shards.opened import Block, OpenShard, check_size, missing, open_local, open_ranges

__all__ = ["AHEAD_RANGES", "ReadOptions", "ShardReader", "ahead"]

T = TypeVar("T")

_OPEN: Final = 4096
"""Mapped files that stay open. They hold no descriptor, and are verified only once."""

_FEWEST: Final = 2
_HELD_BYTES: Final = 64 << 20
_VIEW_BYTES: Final = 8 << 10
"""What a block takes whose data are a view on a mapped file."""

AHEAD_RANGES: Final = 8
"""Reads of a remote file that are under way at a time."""

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
        self.starts: np.ndarray[Any, np.dtype[np.int64]] = np.concatenate([[0], np.cumsum(rows)])
        """The number of each shard's first row, and behind them that of all rows."""
        block_rows = [shard.block_rows for shard in manifest.shards]
        self.block_rows: np.ndarray[Any, np.dtype[np.int64]] = np.array(block_rows, dtype=np.int64)
        self.keyed: bool = any(shard.keyed for shard in manifest.shards)
        self._starts: list[int] = self.starts.tolist()
        self.rows: int = self._starts[-1]

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
