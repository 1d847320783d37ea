"""Streams of samples into shards, in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from squirrel_torch.errors import DatasetExistsError, SchemaError, ShardingError, StoreError
from squirrel_torch.sharding import can_gather, gathered, rank_shard
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry
from squirrel_torch.storage.shards.field import Field
from squirrel_torch.storage.shards.grouping import Done, ShardFormat, grouped, marks_of
from squirrel_torch.storage.shards.journal import Journal
from squirrel_torch.storage.shards.unify import unify
from squirrel_torch.storage.shards.written import write_shard
from squirrel_torch.storage.writing import Group, Writing, Written

__all__ = ["GroupWriter", "ShardWriting"]

T = TypeVar("T")


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
        self.resumed: int = sum(entry.rows for entry in self._written.values())
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
