"""The command ``convert``: from whatever can be read into a dataset in shards."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Final

from squirrel_torch.cli.opening import file_info, format_of, is_inside, open_shards, open_source, options_of
from squirrel_torch.cli.output import complain, counted, say
from squirrel_torch.cli.work import bar, is_watched, work_off
from squirrel_torch.errors import SampleEncodingError, SchemaError, ShardingError, StoreError
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.iterable import IterableSource
from squirrel_torch.sharding import WHOLE, rank_shard
from squirrel_torch.storage import Readable, ShardStore, Written
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.formats import FileReader, ImageFolder
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry
from squirrel_torch.storage.shards.field import Field
from squirrel_torch.storage.shards.grouping import ShardFormat, grouped, new_name
from squirrel_torch.storage.shards.journal import Journal
from squirrel_torch.storage.shards.unify import unify
from squirrel_torch.storage.shards.written import write_shard

__all__ = ["convert"]

_IMAGES_AHEAD: Final = 256
_STAMPS: Final = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated")


def convert(arguments: Namespace) -> int:
    """Write all samples of a source into a dataset in shards, committed once at the end."""
    given = options_of(arguments.storage_option, arguments.source_option)
    source = open_source(arguments.source, arguments, given, verify="shard")
    if isinstance(source, FileReader) and is_inside(arguments.target, arguments.source):
        raise ValueError(f"the target {arguments.target!r} is inside of the source {arguments.source!r}: give one outside")
    target = open_shards(
        arguments.target,
        options_of(arguments.storage_option, arguments.target_option),
        mode=arguments.mode,
        shard_bytes=arguments.shard_bytes,
        shard_rows=arguments.shard_rows,
        compression=arguments.compression,
        metadata=(source.metadata or None) if isinstance(source, ShardStore) and arguments.mode != "append" else None,
    )
    if isinstance(source, FileReader) and not isinstance(source, ImageFolder) and len(source.files) > 1:
        written = _FileByFile(source, target, arguments, given).run()
    else:
        written = _as_one_stream(source, target, arguments)
    size = f"{counted(len(written.shards), 'shard')}, {counted(written.bytes, 'byte')}"
    say(f"{counted(written.rows, 'row')} in {size}, written to {target.url}")
    return 0


# -- one stream -------------------------------------------------------------------------------------------------------


def _as_one_stream(source: ShardStore | FileReader, target: ShardStore, arguments: Namespace) -> Written:
    if isinstance(source, ShardStore) and any(shard.keyed for shard in source.manifest.shards):
        complain(f"the samples of {source.url} have keys of their own: these are not kept, there are new ones")
    stream = _stream(source)
    path = source.files[0] if isinstance(source, FileReader) and len(source.files) == 1 else None
    with nullcontext() if path is None else _named(path):
        return stream.sink(target, max_workers=arguments.jobs, progress=is_watched(arguments.quiet), resume=arguments.resume)


def _stream(source: Readable) -> Composable[Any]:
    if isinstance(source, ImageFolder):  # small files, which are waited for
        return IterableSource(range(len(source))).async_map(source.__getitem__, buffer=_IMAGES_AHEAD)
    return IterableSource(source)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Have errors about samples say which file these are of."""
    try:
        yield
    except (SampleEncodingError, SchemaError) as error:
        raise type(error)(f"{path!r}, {error}") from error


# -- file by file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A file, its place in the order, and what is remembered of it."""

    number: int
    path: str
    origin: str


@dataclass(frozen=True)
class _FileWriter:
    """Writes the samples of a file into shards of their own, in whatever process."""

    reader: FileReader
    files: Files
    shape: ShardFormat
    journal: Journal | None

    def __call__(self, task: _Task) -> tuple[int, list[ShardEntry]]:
        entries: list[ShardEntry] = []
        samples: Any = self.reader.read_file(task.path)
        try:
            with closing(samples), _named(task.path):
                for group in grouped(samples, self.shape):
                    name, compression = new_name(), self.shape.compression
                    entries.append(write_shard(self.files, name, group.samples, None, compression, group.first))
            if self.journal is not None:
                self.journal.add(task.origin, entries)
        except BaseException:
            _remove(self.files, entries)
            raise
        return task.number, entries


class _FileByFile:
    """Files into shards, several at a time.

    Args:
        reader: Reads the files.
        target: The dataset.
        arguments: Of the command.
        storage_options: For the files' filesystem.
    """

    def __init__(
        self, reader: FileReader, target: ShardStore, arguments: Namespace, storage_options: Mapping[str, Any]
    ) -> None:
        if rank_shard().count > 1:
            raise ShardingError("convert works in processes of its own: run it once, not on several ranks")
        self._reader = reader
        self._target = target
        self._arguments = arguments
        self._files = target._files
        self._job: str | None = arguments.resume
        self._field: Field | None = target._check_sink(self._job)
        self._journal = None if self._job is None else Journal(self._files, self._job, WHOLE)
        stamp = "" if self._job is None else format_of(reader)
        self._tasks = [
            _Task(number, path, f"file {stamp} {_stamp(path, storage_options)} {path}" if stamp else path)
            for number, path in enumerate(reader.files)
        ]

    def run(self) -> Written:
        """Write what is left to be written, and commit it all."""
        written, stale = self._resumed()
        left = [task for task in self._tasks if task.number not in written]
        if self._journal is not None and (written or stale):
            complain(f"{len(written)} of {len(self._tasks)} files have been written by an earlier run of {self._job!r}")
        try:
            self._write(left, written)
        except BaseException:
            if self._journal is None:
                _remove(self._files, [entry for entries in written.values() for entry in entries])
            raise
        entries = [entry for number in sorted(written) for entry in written[number]]
        self._target._commit_stream(entries, self._job)
        self._target.refresh()
        if self._journal is not None:
            _remove(self._files, stale)
            self._journal.clear()
        return Written(sum(entry.rows for entry in entries), tuple(entry.name for entry in entries), _size(entries))

    def _resumed(self) -> tuple[dict[int, list[ShardEntry]], list[ShardEntry]]:
        """What an earlier run has written, by the number of the file; and of files that are others now."""
        if self._journal is None:
            return {}, []
        done = self._journal.done()
        if any(not origin.startswith("file ") for origin in done):
            raise StoreError(f"the job {self._job!r} was begun by another kind of writer: take a new name")
        numbers = {task.origin: task.number for task in self._tasks}
        written = {numbers[origin]: entries for origin, entries in done.items() if origin in numbers}
        for number in sorted(written):
            self._check(number, written[number])
        return written, [entry for origin, entries in done.items() if origin not in numbers for entry in entries]

    def _write(self, left: Sequence[_Task], written: dict[int, list[ShardEntry]]) -> None:
        writer = _FileWriter(self._reader, self._files, self._target._format, self._journal)
        rows = sum(entry.rows for entries in written.values() for entry in entries)
        with bar("converting", " files", len(self._tasks), self._arguments.quiet, len(written)) as progress:

            def receive(result: tuple[int, list[ShardEntry]]) -> None:
                nonlocal rows
                number, entries = result
                written[number] = entries
                self._check(number, entries)
                rows += sum(entry.rows for entry in entries)
                progress.set_postfix_str(f"{rows} rows", refresh=False)
                progress.update()

            work_off(writer, left, self._arguments.jobs, receive)

    def _check(self, number: int, entries: Sequence[ShardEntry]) -> None:
        """Raise SchemaError unless the samples of a file are like those of the others."""
        for entry in entries:
            what, others = f"{self._tasks[number].path!r}", "in what was written before"
            self._field = entry.field if self._field is None else unify(self._field, entry.field, what, others=others)


def _stamp(path: str, storage_options: Mapping[str, Any]) -> str:
    """What changes if a file does."""
    told = file_info(path, storage_options)
    return ",".join(f"{name}={told[name]}" for name in _STAMPS if name in told).replace(" ", "_")


def _size(entries: Sequence[ShardEntry]) -> int:
    return sum(entry.size for entry in entries)


def _remove(files: Files, entries: Sequence[ShardEntry]) -> None:
    for entry in entries:
        with suppress(StoreError):
            files.remove(f"{FOLDER}/{entry.name}")
