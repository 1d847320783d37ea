"""One shard: rows in an Arrow IPC file, written once, checked before they are read."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from squirrel_torch.errors import CorruptDataError, SampleEncodingError, StoreError
from squirrel_torch.metrics import size_of
from squirrel_torch.storage.files import Files, sync_folder
from squirrel_torch.storage.shards.columns import Column, column, columns_of
from squirrel_torch.storage.shards.encoding import arrow_type, encode
from squirrel_torch.storage.shards.schema import Field, find_field

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "COMPRESSIONS",
    "FOLDER",
    "Block",
    "OpenShard",
    "ShardEntry",
    "check_fits",
    "open_local",
    "open_ranges",
    "write_shard",
]

COMPRESSIONS: Final = (None, "lz4", "zstd")
FOLDER: Final = "shards"
_BLOCK_BYTES: Final = 1 << 20
_MOST_ROWS: Final = 8192
_SAMPLED: Final = 64


@dataclass(frozen=True)
class ShardEntry:
    """What a manifest says of a shard.

    Args:
        name: The name of its file.
        rows: How many samples it holds.
        size: Its bytes.
        checksum: xxh3 (128 bits, hexadecimal) of its bytes.
        field: What its samples are made of.
        block_rows: How many rows each block has, the last one perhaps fewer.
        ends: Where the first block begins and where each one ends, in bytes.
        sums: xxh3 (64 bits, hexadecimal) of the bytes of each block.
        keyed: Whether the samples have keys of their own.
        compression: None, "lz4" or "zstd".
    """

    name: str
    rows: int
    size: int
    checksum: str
    field: Field
    block_rows: int
    ends: tuple[int, ...]
    sums: tuple[str, ...]
    keyed: bool
    compression: str | None = None

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return len(self.sums)

    def rows_of(self, block: int) -> int:
        """How many rows a block has."""
        return min(self.block_rows, self.rows - block * self.block_rows)

    def schema(self) -> pa.Schema:
        """The schema of its file."""
        import pyarrow as pa

        fields = [pa.field("key", pa.large_string())] if self.keyed else []
        if is_struct(self.field):
            parts = zip(self.field.names, self.field.parts, strict=True)
            fields += [pa.field(name, arrow_type(part)) for name, part in parts]
        else:
            fields.append(pa.field("value", arrow_type(self.field)))
        return pa.schema(fields)


def is_struct(field: Field) -> bool:
    """Whether the fields of the samples are columns of the file: not if samples may be None, or are no dicts."""
    return field.kind == "dict" and not field.nullable and bool(field.parts)


# -- writing ----------------------------------------------------------------------------------------------------------


class _Sink(io.RawIOBase):
    """Where Arrow writes to: counts and sums up what passes.

    Args:
        write: Takes the bytes.
        begin: Where the first block begins; what comes before belongs to none.
    """

    def __init__(self, write: Callable[[Any], Any], begin: int) -> None:
        import xxhash

        self._write = write
        self._before = begin
        self._sum = xxhash.xxh3_128()
        self._block = xxhash.xxh3_64()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(data)
        self._sum.update(data)
        before = min(self._before, len(data))
        self._before -= before
        self._block.update(memoryview(data)[before:])
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def checksum(self) -> str:
        return str(self._sum.hexdigest())

    def block_sum(self) -> str:
        """The sum of what came since it was last asked for."""
        value = str(self._block.hexdigest())
        self._block.reset()
        return value


def write_shard(
    files: Files, name: str, samples: Sequence[Any], keys: Sequence[str] | None, compression: str | None, first: int = 0
) -> ShardEntry:
    """Write `samples` into one new file. It is there whole, with all its bytes on the disk, or not at all.

    Args:
        files: The folder of the dataset.
        name: The name of the file, which no other writer uses.
        samples: At least one.
        keys: A key for each, if they have any.
        compression: None, "lz4" or "zstd".
        first: The number of the first sample, for messages.

    Raises:
        SampleEncodingError: If a sample holds something that can't be kept.
        SchemaError: If the samples differ in their fields or types.
        StoreError: If the file can't be written.
    """
    field = find_field(samples, first)
    try:
        if files.is_local:
            return _write_local(files, name, samples, keys, compression, field, first)
        parts: list[bytes] = []
        entry = _write_blocks(lambda data: parts.append(bytes(data)), name, samples, keys, compression, field, first)
        files.write(f"{FOLDER}/{name}", b"".join(parts))
    except OSError as error:
        raise StoreError(
            f"can't write shard {files.path(f'{FOLDER}/{name}')} with {len(samples)} samples from number {first} on: {error}"
        ) from error
    return entry


def _write_local(
    files: Files,
    name: str,
    samples: Sequence[Any],
    keys: Sequence[str] | None,
    compression: str | None,
    field: Field,
    first: int,
) -> ShardEntry:
    path = Path(files.path(f"{FOLDER}/{name}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.tmp")
    try:
        with temporary.open("xb") as file:
            entry = _write_blocks(file.write, name, samples, keys, compression, field, first)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return entry


def _write_blocks(
    write: Callable[[Any], Any],
    name: str,
    samples: Sequence[Any],
    keys: Sequence[str] | None,
    compression: str | None,
    field: Field,
    first: int,
) -> ShardEntry:
    import pyarrow as pa

    step = max(1, len(samples) // _SAMPLED)
    mean = sum(map(size_of, samples[::step])) / len(samples[::step])
    block_rows = int(max(1, min(_MOST_ROWS, len(samples), _BLOCK_BYTES // max(1.0, mean))))
    entry = ShardEntry(name, len(samples), 0, "", field, block_rows, (), (), keys is not None, compression)
    schema = entry.schema().with_metadata({"squirrel_torch": json.dumps(field.to_json())})
    begin = 8 + schema.serialize().size  # behind the file's mark and the schema's message
    sink, ends, sums = _Sink(write, begin), [begin], []
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for start in range(0, len(samples), block_rows):
            part = slice(start, start + block_rows)
            columns = _encoded(samples[part], field, first + start)
            if keys is not None:
                columns.insert(0, pa.array(keys[part], type=pa.large_string()))
            writer.write_batch(pa.record_batch(columns, schema=schema))
            ends.append(sink.size)
            sums.append(sink.block_sum())
    return replace(entry, size=sink.size, checksum=sink.checksum(), ends=tuple(ends), sums=tuple(sums))


def _encoded(samples: Sequence[Any], field: Field, first: int) -> list[Any]:
    try:
        if not is_struct(field):
            return [encode(samples, field)]
        return [encode([sample[name] for sample in samples], part) for name, part in zip(field.names, field.parts, strict=True)]
    except SampleEncodingError:
        for number, sample in enumerate(samples, first):
            check_fits(sample, field, number)
        raise


def check_fits(sample: Any, field: Field, number: int) -> None:
    """Raise SampleEncodingError, with its number, if a sample of the right types can't be kept for its values."""
    try:
        encode([sample], field)
    except SampleEncodingError as error:
        raise SampleEncodingError(f"sample number {number}: {error}") from None


# -- reading ----------------------------------------------------------------------------------------------------------


class Block:
    """The rows of a block.

    Args:
        batch: The block as Arrow has it, validated.
        entry: The shard's.
        writable: Whether arrays are copies.
    """

    def __init__(self, batch: pa.RecordBatch, entry: ShardEntry, writable: bool) -> None:
        self.keys: list[str] | None = None
        self.count, self.size = batch.num_rows, batch.nbytes
        if entry.keyed:
            self.keys, batch = batch.column(0).to_pylist(), batch.remove_column(0)
        self.column: Column = (columns_of if is_struct(entry.field) else column)(
            batch if is_struct(entry.field) else batch.column(0), entry.field, writable
        )
        self.row = self.column.row


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
