"""A shard that is read: its file opened, its blocks verified."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from squirrel_torch.errors import CorruptDataError, SampleEncodingError, StoreError
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.shards.column import Column
from squirrel_torch.storage.shards.columns import column, columns_of
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry, is_struct

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Block", "OpenShard", "check_size", "check_sum", "missing", "open_local", "open_ranges"]


class Block:
    """The rows of a block.

    Args:
        batch: The block as Arrow has it, validated.
        entry: The shard's.
        writable: Whether arrays are copies.
    """

    def __init__(self, batch: pa.RecordBatch, entry: ShardEntry, writable: bool) -> None:
        self.keys: list[str] | None = None
        self.count: int = batch.num_rows
        self.size: int = batch.nbytes
        if entry.keyed:
            self.keys, batch = batch.column(0).to_pylist(), batch.remove_column(0)
        self.column: Column = (columns_of if is_struct(entry.field) else column)(
            batch if is_struct(entry.field) else batch.column(0), entry.field, writable
        )
        self.row: Callable[[int], Any] = self.column.row


class OpenShard:
    """A shard that is read.

    Args:
        entry: What the manifest says of it.
        where: Its path or URL, for messages.
        fetch: Gives the bytes of a part of its file.
        check_blocks: Verify each block before its first row is given; else all of the file has been verified.
        release: Called when the shard is not needed any more.
        is_mapped: Whether what `fetch` gives takes no memory: a view on a mapped file.
    """

    def __init__(
        self,
        entry: ShardEntry,
        where: str,
        fetch: Callable[[int, int], Any],
        check_blocks: bool,
        release: Callable[[], None] | None = None,
        is_mapped: bool = False,
    ) -> None:
        self.entry = entry
        self.is_mapped = is_mapped
        self._where = where
        self._fetch = fetch
        self._check_blocks = check_blocks
        try:
            self._schema = entry.schema()
        except (SampleEncodingError, ValueError) as error:
            raise CorruptDataError(f"{where}: the manifest lists it with a schema that can't be: {error}") from error
        self._release = release

    def close(self) -> None:
        """Give back what holds the file; blocks that were read stay as they are."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def block(self, number: int, writable: bool = False) -> Block:
        """A block.

        Raises:
            CorruptDataError: If its bytes are not what was written.
        """
        return self.fetch_blocks(number, number, writable)[0]

    def fetch_blocks(self, first: int, last: int, writable: bool) -> list[Block]:
        """Blocks that follow one another, from `first` to `last`, whose bytes are fetched together.

        Raises:
            CorruptDataError: If their bytes are not what was written.
        """
        ends = self.entry.ends[first : last + 2]
        data = self._fetch(ends[0], ends[-1])
        view = memoryview(data)
        parts = (view[start - ends[0] : end - ends[0]] for start, end in pairwise(ends))
        return [self._parse(number, part, writable) for number, part in enumerate(parts, first)]

    def _parse(self, number: int, data: Any, writable: bool) -> Block:
        import pyarrow as pa

        if self._check_blocks:
            import xxhash

            if xxhash.xxh3_64_hexdigest(data) != self.entry.sums[number]:
                raise self._corrupt(number, "its bytes have another checksum than when they were written")
        try:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(data)), self._schema)
            batch.validate(full=True)
            if batch.num_rows != self.entry.rows_of(number):
                raise self._corrupt(number, f"it holds {batch.num_rows} rows instead of {self.entry.rows_of(number)}")
            return Block(batch, self.entry, writable)
        except (pa.ArrowException, OSError, EOFError, ValueError, MemoryError) as error:
            raise self._corrupt(number, f"{type(error).__name__}: {error}") from error

    def _corrupt(self, block: int, what: str) -> CorruptDataError:
        first = block * self.entry.block_rows
        last = first + self.entry.rows_of(block) - 1
        return CorruptDataError(f"{self._where}, rows {first} to {last}: {what}")


def open_local(path: str, entry: ShardEntry, verify: str, release: Callable[[], None] | None = None) -> OpenShard:
    """Open a local file, mapped into memory.

    Args:
        path: Where it is.
        entry: What the manifest says of it.
        verify: "shard": its checksum now. "block": each block's, before its first row. "never": neither.
        release: Called when the shard is not needed any more.

    Raises:
        CorruptDataError: If it is missing, of another size, or its bytes are not what was written.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(path) as mapped:
            # The map lives as long as the buffer; no file stays open.
            buffer = mapped.read_buffer()
    except FileNotFoundError:
        raise missing(path, entry) from None
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"can't map {path}: {error}") from error
    check_size(path, buffer.size, entry)
    if verify == "shard":
        check_sum(path, buffer, entry)
    return OpenShard(
        entry, path, lambda start, end: buffer.slice(start, end - start), verify == "block", release, is_mapped=True
    )


def open_ranges(files: Files, entry: ShardEntry, verify: str) -> OpenShard:
    """Open a file that is read by ranges. Its blocks are verified one by one, unless `verify` is "never".

    Raises:
        CorruptDataError: If it is missing or of another size.
        StoreError: If storage does not answer.
    """
    name = f"{FOLDER}/{entry.name}"
    where = files.path(name)
    try:
        check_size(where, files.size(name), entry)
    except FileNotFoundError:
        raise missing(where, entry) from None

    def fetch(start: int, end: int) -> bytes:
        try:
            return files.read(name, start, end)
        except FileNotFoundError:
            raise missing(where, entry) from None

    return OpenShard(entry, where, fetch, verify != "never")


def missing(where: str, entry: ShardEntry) -> CorruptDataError:
    """The error for a shard that is listed and not there."""
    return CorruptDataError(f"{where} is missing: the manifest lists it with {entry.rows} rows; was the dataset overwritten?")


def check_size(where: str, size: int, entry: ShardEntry) -> None:
    """Raise CorruptDataError unless the file has the size that it had when it was written."""
    if size != entry.size:
        raise CorruptDataError(f"{where} has {size} bytes, {entry.size} were written ({entry.rows} rows)")


def check_sum(where: str, data: Any, entry: ShardEntry) -> None:
    """Raise CorruptDataError unless the bytes are those that were written."""
    import xxhash

    if xxhash.xxh3_128_hexdigest(data) != entry.checksum:
        raise CorruptDataError(
            f"{where} (rows 0 to {entry.rows - 1}) has another checksum than when it was written: its bytes have changed"
        )
