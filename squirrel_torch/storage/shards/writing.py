"""Samples into shards: a few at a time, or a whole stream in parallel."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

from squirrel_torch.checksum import checksum_of
from squirrel_torch.errors import CorruptDataError, DatasetExistsError, SchemaError, ShardingError, StoreError
from squirrel_torch.metrics import size_of
from squirrel_torch.sharding import Shard, can_gather, gathered, rank_shard
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.shards.encoding import encode
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry
from squirrel_torch.storage.shards.manifest import entry_from_json, entry_to_json, parse_json
from squirrel_torch.storage.shards.schema import Field, field_from_json, find_field, unify
from squirrel_torch.storage.shards.written import write_shard
from squirrel_torch.storage.store import Group, Writing, Written

__all__ = ["GroupWriter", "Journal", "ShardFormat", "ShardWriting", "grouped", "new_name", "shards_of"]

T = TypeVar("T")

_JOB: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_JOURNALS: Final = "writing"
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


def shards_of(files: Files, samples: Iterable[Any], shape: ShardFormat, first: int = 0) -> list[ShardEntry]:
    """Write samples into as many shards as they need; nothing is committed.

    Args:
        files: The folder of the dataset.
        samples: Any number.
        shape: How they are written.
        first: The number of the first sample, for messages.
    """
    groups = grouped(iter(samples), shape)
    return [write_shard(files, group.name, group.samples, None, shape.compression, first + group.first) for group in groups]


class Journal:
    """What a job with a name has written and not committed yet: it goes on from there when it is started again.

    Args:
        files: The folder of the dataset.
        job: Its name.
        share: Which of how many writers this is. A job is resumed by as many as have begun it.

    Raises:
        ValueError: If the name can't be one.
    """

    def __init__(self, files: Files, job: str, share: Shard) -> None:
        if not isinstance(job, str) or _JOB.fullmatch(job) is None:
            raise ValueError(f"the name of a job must be letters, digits, '.', '_' and '-', at most 100, got {job!r}")
        self._files = files
        self.job = job
        self._share = share
        self._folder = f"{_JOURNALS}/{job}/{share.index}-of-{share.count}"
        self.marks: dict[str, tuple[str, ...]] = {}
        """What each origin that is done is known by."""

    def add(self, origin: str, entries: Sequence[ShardEntry], marks: Sequence[str] = ()) -> None:
        """Remember that what `origin` names, and is known by `marks`, has been written as these shards."""
        told = [{**entry_to_json(entry), "field": entry.field.to_json()} for entry in entries]
        content = json.dumps({"origin": origin, "marks": list(marks), "shards": told}).encode()
        self._files.write(f"{self._folder}/{checksum_of(origin, 128)}.json", content)

    def done(self) -> dict[str, list[ShardEntry]]:
        """What has been written, by its origin. A shard that is not there as it was written is none.

        Raises:
            StoreError: If the job was begun by another number of writers.
        """
        self._check_share()
        done = {}
        for name in self._files.names(self._folder):
            if name.endswith(".json") and not name.startswith("."):
                origin, entries, marks = self._read(f"{self._folder}/{name}")
                if all(self._is_there(entry) for entry in entries):
                    done[origin] = entries
                    self.marks[origin] = marks
        return done

    def _check_share(self) -> None:
        marker = f"{_JOURNALS}/{self.job}/writers.json"
        own = json.dumps({"writers": self._share.count}).encode()
        if not self._files.create(marker, own) and self._files.read(marker) != own:
            raise StoreError(
                f"the job {self.job!r} was begun by another number of writers than {self._share.count}: "
                f"{self._files.read(marker).decode(errors='replace')!r}; resume with as many, or take a new name"
            )

    def _read(self, name: str) -> tuple[str, list[ShardEntry], tuple[str, ...]]:
        where = self._files.path(name)
        told = parse_json(self._files.read(name), where)
        try:
            entries = []
            for one in told["shards"]:
                field = field_from_json(one["field"])
                entries.append(entry_from_json(one, [field]))
            return str(told["origin"]), entries, tuple(map(str, told["marks"]))
        except (KeyError, TypeError, AttributeError, IndexError, CorruptDataError) as error:
            raise CorruptDataError(f"{where} is no journal of a writing job: {error}") from error

    def _is_there(self, entry: ShardEntry) -> bool:
        try:
            return self._files.size(f"{FOLDER}/{entry.name}") == entry.size
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Forget it all: it has been committed."""
        for name in self._files.names(self._folder):
            self._files.remove(f"{self._folder}/{name}")
        if self._share.index == 0:
            self._files.remove(f"{_JOURNALS}/{self.job}/writers.json")
        if self._files.is_local:
            for folder in (self._folder, f"{_JOURNALS}/{self.job}"):
                with suppress(OSError):  # other ranks have something in it still
                    Path(self._files.path(folder)).rmdir()


@dataclass(frozen=True)
class GroupWriter:
    """Writes a group as one shard, in whatever process.

    Args:
        files: The folder of the dataset.
        shape: How.
        journal: Where it is remembered, if the job has a name.
    """

    files: Files
    shape: ShardFormat
    journal: Journal | None

    def __call__(self, group: Group) -> list[ShardEntry]:
        """The shard, in a list."""
        entry = write_shard(self.files, group.name, group.samples, None, self.shape.compression, group.first)
        if self.journal is not None:
            marks = marks_of(group.samples[0], group.samples[-1])
            self.journal.add(f"{group.first}+{entry.rows}", [entry], marks)
        return [entry]


class ShardWriting(Writing):
    """A stream on its way into shards, committed once at its end.

    Under several ranks each writes shards of its own, and rank 0 commits them all.

    Args:
        files: The folder of the dataset.
        shape: How shards are written.
        check: Raises if there may be no commit, as far as that can be known before; else what samples must be made of, if that
            is known.
        commit: Commits shards under the name of a job.
        committed: Called then, on all ranks.
        job: The name of the job, if it has one.
    """

    holds: int | None = 1

    def __init__(
        self,
        files: Files,
        shape: ShardFormat,
        check: Callable[[str | None], Field | None],
        commit: Callable[[Sequence[ShardEntry], str | None], object],
        committed: Callable[[], object],
        job: str | None,
    ) -> None:
        self._share = rank_shard()
        if self._share.count > 1 and not can_gather():
            raise ShardingError(
                f"rank {self._share.index} of {self._share.count} can't commit with the others: call "
                "torch.distributed.init_process_group before sink"
            )
        self._known = check(job)
        self._files = files
        self._shape = shape
        self._commit = commit
        self._committed = committed
        self._journal = None if job is None else Journal(files, job, self._share)
        done = {} if self._journal is None else self._journal.done()
        self._written: dict[int, ShardEntry] = {}
        for origin, entries in done.items():
            first, _, count = origin.partition("+")
            if len(entries) != 1 or not first.isdecimal() or int(count) != entries[0].rows:
                raise StoreError(f"the job {job!r} was begun by another kind of writer: take a new name")
            self._written[int(first)] = entries[0]
        self._done = [
            Done(first, entry.rows, self._journal.marks[f"{first}+{entry.rows}"] if self._journal else ())
            for first, entry in sorted(self._written.items())
        ]
        self.resumed = sum(entry.rows for entry in self._written.values())
        self._field: Field | None = None
        self._names: list[str] = []

    def groups(self, items: Iterator[Any]) -> Iterator[Group]:
        """What is left to be written."""
        for group in grouped(items, self._shape, self._done):
            self._names.append(group.name)
            yield group

    @property
    def write(self) -> GroupWriter:
        """Writes a group."""
        return GroupWriter(self._files, self._shape, self._journal)

    def receive(self, first: int, result: list[ShardEntry]) -> int:
        """Take what has been written; how many samples that was.

        Raises:
            SchemaError: If the samples differ from those before.
        """
        for entry in result:
            self._written[first] = entry  # first of all, so that `abort` removes it
            what = f"shard {entry.name} (samples from number {first} on)"
            self._field = entry.field if self._field is None else unify(self._field, entry.field, what)
            if self._known is not None:
                unify(self._known, entry.field, what, others="in the dataset that is there")
        return sum(entry.rows for entry in result)

    def commit(self) -> Written:
        """Make all that was written the dataset, or part of it."""
        own = [self._written[first] for first in sorted(self._written)]
        job = None if self._journal is None else self._journal.job
        together = self._from_all_ranks(own)
        error: Exception | None = None
        if self._share.index == 0:
            try:
                self._commit([entry for entries in together for entry in entries], job)
            except Exception as reason:  # noqa: BLE001  # raised on all ranks
                error = reason
        error = self._from_all_ranks(error)[0]
        if isinstance(error, SchemaError | DatasetExistsError):
            self.abort()  # after other errors it is not known whether they have been committed
        if error is not None:
            raise error
        self._committed()
        if self._journal is not None:
            self._journal.clear()
        return Written(sum(entry.rows for entry in own), tuple(entry.name for entry in own), sum(entry.size for entry in own))

    def _from_all_ranks(self, value: T) -> list[T]:
        try:
            return gathered(value)
        except RuntimeError as error:
            raise StoreError(
                f"rank {self._share.index} of {self._share.count} has written to {self._files.path('')}, but another one "
                f"did not come to the commit: nothing was committed ({error})"
            ) from error

    def abort(self) -> None:
        """Remove what was written, also what has not come back, unless it can be gone on with."""
        for name in self._names if self._journal is None else ():
            with suppress(StoreError):
                self._files.remove(f"{FOLDER}/{name}")
            if self._files.is_local:  # of a process that was killed
                Path(self._files.path(f"{FOLDER}/.{name}.tmp")).unlink(missing_ok=True)
