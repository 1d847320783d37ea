"""A stream of samples in groups, each of which makes one shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final
from uuid import uuid4

from squirrel_torch.errors import StoreError
from squirrel_torch.metrics import size_of
from squirrel_torch.storage.shards.encoding import encode
from squirrel_torch.storage.shards.schema import find_field
from squirrel_torch.storage.writing import Group

__all__ = ["Done", "ShardFormat", "grouped", "marks_of", "new_name"]

_CHUNK: Final = 256


@dataclass(frozen=True)
class ShardFormat:
    """How shards are written.

    Args:
        compression: None, "lz4" or "zstd".
        most_bytes: A shard is full when its samples take so many bytes in memory.
        most_rows: A shard is full when it has so many rows; None is no limit.
    """

    compression: str | None
    most_bytes: int
    most_rows: int | None


def new_name() -> str:
    """The name of a shard that no other writer gives, on any machine."""
    return f"{uuid4().hex[:20]}.arrow"


@dataclass(frozen=True)
class Done:
    """A group that has been written.

    Args:
        first: The number of its first sample.
        rows: How many it has.
        marks: What its first and last sample are known by.
    """

    first: int
    rows: int
    marks: tuple[str, ...]


def grouped(items: Iterator[Any], shape: ShardFormat, done: Sequence[Done] = ()) -> Iterator[Group]:
    """The items in groups, each of which makes one shard.

    Args:
        items: The samples.
        shape: When a group is full.
        done: What has been written already, sorted; it is read and left out.
    """
    position = 0
    left = list(done)[::-1]
    while True:
        while left and left[-1].first == position:
            position += _pass(items, left.pop())
        limit = left[-1].first - position if left else None
        samples = _next_group(items, shape, limit)
        if not samples:
            return
        yield Group(position, samples, new_name())
        position += len(samples)


def _pass(items: Iterator[Any], done: Done) -> int:
    """Read what has been written, and make sure that it is the same; how many samples that is."""
    samples = deque(islice(items, 1))
    first = samples[0] if samples else None
    count = len(samples)
    for sample in islice(items, done.rows - count):
        count += 1
        samples = deque([sample])
    if count < done.rows or marks_of(first, samples[0]) != done.marks:
        raise StoreError(
            f"items {done.first} to {done.first + done.rows - 1} of the stream are others than those that an earlier run of "
            "this job has written: resume with the same stream, or with a new name"
        )
    return count


def marks_of(first: Any, last: Any) -> tuple[str, ...]:
    """What two samples are told by from others: sums of their bytes as Arrow has them."""
    import pyarrow as pa
    import xxhash

    marks = []
    for sample in (first, last):
        field = find_field([sample])
        batch = pa.record_batch([encode([sample], field)], names=["sample"])
        marks.append(str(xxhash.xxh3_64_hexdigest(field.describe().encode() + memoryview(batch.serialize()))))
    return tuple(marks)


def _next_group(items: Iterator[Any], shape: ShardFormat, limit: int | None) -> list[Any]:
    samples: list[Any] = []
    most = min((one for one in (shape.most_rows, limit) if one is not None), default=None)
    size, chunk = 0, 1
    while size < shape.most_bytes and (most is None or len(samples) < most):
        more = list(islice(items, chunk if most is None else min(chunk, most - len(samples))))
        if not more:
            break
        size += sum(map(size_of, more))
        samples += more
        # So many that the last chunk goes over the limit by little.
        chunk = max(1, min(_CHUNK, int((shape.most_bytes - size) / max(1.0, size / len(samples)))))
    return samples
