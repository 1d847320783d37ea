"""A shard that is written: rows in an Arrow IPC file, once and for all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from squirrel_torch.errors import SampleEncodingError, StoreError
from squirrel_torch.metrics import size_of
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.local import sync_folder
from squirrel_torch.storage.shards.encoding import encode
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry, is_struct
from squirrel_torch.storage.shards.field import Field
from squirrel_torch.storage.shards.schema import find_field

__all__ = ["COMPRESSIONS", "check_fits", "write_shard"]

COMPRESSIONS: Final = (None, "lz4", "zstd")
_BLOCK_BYTES: Final = 1 << 20
_MOST_ROWS: Final = 8192
_SAMPLED: Final = 64


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


class _Rows(NamedTuple):
    """What one file is to hold; see `write_shard`."""

    name: str
    samples: Sequence[Any]
    keys: Sequence[str] | None
    compression: str | None
    field: Field
    first: int


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
    rows = _Rows(name, samples, keys, compression, find_field(samples, first), first)
    try:
        if files.is_local:
            return _write_local(files, rows)
        parts: list[bytes] = []
        entry = _write_blocks(lambda data: parts.append(bytes(data)), rows)
        files.write(f"{FOLDER}/{name}", b"".join(parts))
    except OSError as error:
        raise StoreError(
            f"can't write shard {files.path(f'{FOLDER}/{name}')} with {len(samples)} samples from number {first} on: {error}"
        ) from error
    return entry


def _write_local(files: Files, rows: _Rows) -> ShardEntry:
    path = Path(files.path(f"{FOLDER}/{rows.name}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{rows.name}.tmp")
    try:
        with temporary.open("xb") as file:
            entry = _write_blocks(file.write, rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return entry


def _write_blocks(write: Callable[[Any], Any], rows: _Rows) -> ShardEntry:
    import pyarrow as pa

    name, samples, keys, compression, field, first = rows
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
