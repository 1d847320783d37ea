"""A dataset in shards, as a store."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import torch

from squirrel_torch.checks import bytes_from, require_at_least, require_one_of
from squirrel_torch.errors import SampleNotFoundError, StoreError
from squirrel_torch.metrics import size_of
from squirrel_torch.sharding import Shard
from squirrel_torch.storage.files import Files, folder_url
from squirrel_torch.storage.sample import check_sample
from squirrel_torch.storage.shards.cache import ShardCache
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry
from squirrel_torch.storage.shards.field import Field
from squirrel_torch.storage.shards.grouping import ShardFormat, new_name
from squirrel_torch.storage.shards.manifest import MODES, Manifest, check_mode, commit, latest, numbered
from squirrel_torch.storage.shards.part import PartOfShards
from squirrel_torch.storage.shards.reader import ReadOptions, ShardReader
from squirrel_torch.storage.shards.rows import ShardKeys, ShardRows
from squirrel_torch.storage.shards.schema import find_field
from squirrel_torch.storage.shards.selection import Selection, check_rows
from squirrel_torch.storage.shards.unify import unify
from squirrel_torch.storage.shards.writing import ShardWriting
from squirrel_torch.storage.shards.written import COMPRESSIONS, check_fits, write_shard
from squirrel_torch.storage.store import PartOfRows, Store, check_key

__all__ = ["ShardStore"]

_KEY = re.compile(r"([0-9a-f]{20}):(0|[1-9]\d{0,15})")


class ShardStore(Store):
    """A dataset in shards: Arrow IPC files with checksums, on any filesystem that fsspec knows, listed in a manifest.

    Samples of one dataset have one schema: the same fields of the same types; shapes may vary, and any field may be None in
    some samples. Arrays come back as read-only views on the file's memory, tensors as copies.

    Shards are written once and never changed. What was set is there after `flush`, all of it at once, for all processes; a
    sample can't be replaced. `sink` writes in parallel and commits at its end.

    Args:
        url: A folder.
        mode: What to do if there is a dataset already and something is written. "create": refuse. "append": add to it, as a
            whole; of several writers at a time each adds its own. "overwrite": take its place, with the commit.
        shard_bytes: A shard is full when its samples take so much memory, as a number or as "64MB".
        shard_rows: A shard is full when it has so many rows; None is no limit.
        compression: None, "lz4" or "zstd". Rows of compressed shards are no views on the file.
        metadata: What to keep with the dataset: plain JSON types. None leaves what is kept.
        writable: Make arrays copies, which may be changed.
        verify: "shard": the size and checksum of each shard are verified before its first row is given, once for each
            opened store. "block": those of each block of about 1 MB; for few rows out of large shards. "never" says what it
            does. Shards that are read by ranges are verified by blocks.
        cache: A folder for copies of remote shards, shared by all processes of the machine. Without one, remote shards are
            read by ranges.
        cache_limit: What the copies may take together, as a number of bytes or as "50GB"; None is no limit. The copy that was
            used longest ago goes first. A shard for which there is no room is read by ranges.
        attempts: How often a read or write of a file is tried, with growing pauses, before it is an error.
        **storage_options: Passed to the filesystem of fsspec.

    Raises:
        ValueError: If an argument is none of these.

    Example:
        >>> import numpy as np, tempfile
        >>> from squirrel_torch import IterableSource
        >>> store = ShardStore(tempfile.mkdtemp())
        >>> IterableSource([{"x": np.arange(3), "label": n} for n in range(5)]).sink(store).rows
        5
        >>> [sample["label"] for sample in store], store.row(3)["x"]
        ([0, 1, 2, 3, 4], array([0, 1, 2]))
        >>> [sample["label"] for sample in store.select([4, 0, 4])]
        [4, 0, 4]
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        mode: str = "create",
        shard_bytes: int | str = "64MB",
        shard_rows: int | None = None,
        compression: str | None = None,
        metadata: dict[str, Any] | None = None,
        writable: bool = False,
        verify: str = "shard",
        cache: str | os.PathLike[str] | None = None,
        cache_limit: int | str | None = None,
        attempts: int = 5,
        **storage_options: Any,
    ) -> None:
        require_one_of("mode", mode, MODES)
        require_one_of("compression", compression, COMPRESSIONS)
        require_one_of("verify", verify, ("shard", "block", "never"))
        require_at_least("attempts", attempts, 1)
        if shard_rows is not None:
            require_at_least("shard_rows", shard_rows, 1)
        if cache_limit is not None and cache is None:
            raise ValueError(f"cache_limit={cache_limit!r} needs a cache: give cache='folder'")
        self._files = Files(folder_url(url), storage_options, attempts)
        self.shared: bool = not self._files.is_memory
        self._mode = mode
        self._format = ShardFormat(compression, bytes_from("shard_bytes", shard_bytes), shard_rows)
        self._metadata = _plain_json(metadata)
        limit = None if cache_limit is None else bytes_from("cache_limit", cache_limit)
        copies = None if cache is None else ShardCache(cache, limit)
        self._options = ReadOptions(verify, writable, None if self._files.is_local else copies)
        self._begin()

    def _begin(self) -> None:
        """What belongs to this process alone."""
        self._pid = self._reader_pid = os.getpid()
        self._lock = threading.RLock()
        self._reader: ShardReader | None = None
        # Each with the reader that it is of: another thread may refresh at any time.
        self._places: tuple[ShardReader, dict[str, int]] | None = None
        self._index: tuple[ShardReader, dict[str, int]] | None = None
        self._own: int | None = None
        self._is_copy = False
        self._forget()

    def _forget(self) -> None:
        """Begin anew: what was set and not flushed is dropped."""
        self._pending: list[Any] = []
        self._pending_keys: list[str] = []
        self._pending_bytes = 0
        self._pending_keyed = False
        self._name = new_name()
        self._written: list[ShardEntry] = []
        self._new_keys: set[str] = set()
        self._has_keys = True
        self._field: Field | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = {name: self.__dict__[name] for name in ("_files", "shared", "_mode", "_format", "_metadata", "_options")}
        # Whoever reads a copy sees the same dataset, whatever is appended meanwhile.
        return {**state, "manifest": None if self._reader is None else self._reader.manifest}

    def _prepare(self) -> None:
        self._read()

    def __setstate__(self, state: dict[str, Any]) -> None:
        manifest = state.pop("manifest")
        self.__dict__.update(state)
        self._begin()
        self._is_copy = True
        if manifest is not None:
            self._reader = ShardReader(self._files, manifest, self._options)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._files.path("")

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read(self) -> ShardReader:
        """The reader of this process."""
        self._after_fork()
        with self._lock:
            if self._reader is None:
                reader = ShardReader(self._files, latest(self._files), self._options)
                if reader.manifest.number == 0:
                    return reader  # somebody may be writing it
                self._reader = reader
            return self._reader

    def _existing(self) -> ShardReader:
        """The reader of a dataset that is there."""
        reader = self._read()
        if reader.manifest.number == 0:
            raise StoreError(f"there is no dataset at {self.url}: no manifest in {self._files.path('manifest')}")
        return reader

    def _after_fork(self) -> None:
        if self._reader_pid != os.getpid():
            # A thread of the parent may have held the lock when this process was forked.
            manifest = None if self._reader is None else self._reader.manifest
            self._lock, self._reader_pid = threading.RLock(), os.getpid()
            self._reader = None if manifest is None else ShardReader(self._files, manifest, self._options)

    def refresh(self) -> None:
        """Look again what is there: an open store goes on with what was there when it was first read."""
        self._after_fork()
        with self._lock:
            if self._reader is not None:
                self._reader.close()
            self._reader = self._places = self._index = None

    @property
    def manifest(self) -> Manifest:
        """What the dataset consists of."""
        return self._read().manifest

    @property
    def metadata(self) -> dict[str, Any]:
        """What was kept with the dataset."""
        return cast("dict[str, Any]", json.loads(json.dumps(self.manifest.metadata)))

    @property
    def schema(self) -> str:
        """What its samples are made of, in words."""
        field = self.manifest.field
        return "nothing yet" if field is None else field.describe()

    def row(self, row: int) -> Any:
        """A sample by its number, from 0 to `len(store)` - 1.

        Raises:
            IndexError: If there is none.
            CorruptDataError: If its bytes are not what was written.
        """
        reader = self._existing()
        if type(row) is not int or not 0 <= row < reader.rows:
            row = int(check_rows([row], reader.manifest.rows)[0])
        return reader.row(row)

    def select(self, rows: Sequence[int] | Iterable[int]) -> Selection:
        """Samples by their numbers, in the order of the numbers: sized, as often iterable as one likes, a source of streams.

        Some 4,000 of them at a time are read in the order in which they lie (128 where each may hold its block in memory).

        Args:
            rows: The numbers, as an array or any iterable of integers.

        Raises:
            TypeError: If they are no whole numbers.
            IndexError: If there is no such row.
        """
        manifest = self._existing().manifest
        return Selection(partial(self._reader_of, manifest), check_rows(rows, manifest.rows))

    def _reader_of(self, manifest: Manifest) -> ShardReader:
        """A reader of the dataset as it was, whatever has been committed or refreshed since."""
        reader = self._read()
        return reader if reader.manifest.number == manifest.number else ShardReader(self._files, manifest, self._options)

    def get(self, key: str) -> Any:
        """The sample under `key`; see `Store.get`."""
        reader = self._read()
        row = self._find(key, reader)
        if row is None:
            raise SampleNotFoundError(f"no sample under {key!r} in {self!r}")
        return reader.row(row)

    def get_many(self, keys: Iterable[str]) -> list[Any]:
        """The samples under `keys`, read in the order in which they lie; see `Store.get_many`."""
        rows = []
        reader = self._read()
        for key in keys:
            row = self._find(key, reader)
            if row is None:
                raise SampleNotFoundError(f"no sample under {key!r} in {self!r}")
            rows.append(row)
        return list(Selection(lambda: reader, check_rows(rows, reader.manifest.rows)))

    def _find(self, key: object, reader: ShardReader) -> int | None:
        """The number of the row under `key`."""
        if not isinstance(key, str):
            return None
        if reader.keyed:
            row = self._keyed(reader).get(key)
            if row is not None:
                return row
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        shards = reader.manifest.shards
        with self._lock:
            if self._places is None or self._places[0] is not reader:
                self._places = reader, {shard.name: place for place, shard in enumerate(shards)}
            place = self._places[1].get(f"{match[1]}.arrow")
        if place is None or shards[place].keyed or int(match[2]) >= shards[place].rows:
            return None
        return int(reader.starts[place]) + int(match[2])

    def _keyed(self, reader: ShardReader) -> dict[str, int]:
        """The rows of all samples that have keys of their own, by these."""
        with self._lock:
            if self._index is None or self._index[0] is not reader:
                self._index = reader, dict(_keys_of(reader))
            return self._index[1]

    def __contains__(self, key: object) -> bool:
        return self._find(key, self._read()) is not None

    def __len__(self) -> int:
        return self._read().manifest.rows

    def _iterate_keys(self) -> Iterator[str]:
        reader = self._read()
        for place, shard in enumerate(reader.manifest.shards):
            if shard.keyed:
                for block in range(shard.blocks):
                    yield from reader.shard(place).block(block).keys or ()
            else:
                stem = shard.name.removesuffix(".arrow")
                yield from (f"{stem}:{row}" for row in range(shard.rows))

    def _part(self, shard: Shard) -> PartOfRows:
        reader = self._existing()
        return PartOfRows(PartOfShards(reader, shard))

    def _by_number(self) -> ShardRows:
        return ShardRows(*self._as_it_is())

    def _keys_by_number(self) -> ShardKeys:
        return ShardKeys(*self._as_it_is())

    def _as_it_is(self) -> tuple[Callable[[], ShardReader], Manifest, Callable[[int], Manifest], str]:
        manifest = self._existing().manifest
        return partial(self._reader_of, manifest), manifest, partial(numbered, self._files), self.url

    # -- writing ------------------------------------------------------------------------------------------------------

    def set(self, value: Any, key: str | None = None) -> str:
        """Keep a sample; see `Store.set`. It can be read after `flush`.

        Raises:
            SampleEncodingError: If the sample holds something that can't be kept.
            SchemaError: If it differs from those before it in its fields or their types.
            DatasetExistsError: If there is a dataset already, and the mode is "create".
            StoreError: If there is a sample under `key` already; if this is a copy of the store in another process, which
                nobody would flush.
        """
        check_sample(value)
        if key is not None:
            check_key(key)
        self._after_fork()
        with self._lock:
            self._check_writer()
            number = sum(entry.rows for entry in self._written) + len(self._pending)
            field = find_field([value], number)
            known = field if self._field is None else unify(self._field, field, f"sample number {number}")
            check_fits(value, field, number)
            if key is not None:
                self._check_new(key)
                self._new_keys.add(key)
                self._pending_keyed = True
            self._field = known
            own = f"{self._name.removesuffix('.arrow')}:{len(self._pending)}" if key is None else key
            size = size_of(value)
            self._pending.append(_copied(value))
            self._pending_keys.append(own)
            self._pending_bytes += size
            if self._pending_bytes >= self._format.most_bytes or len(self._pending) == self._format.most_rows:
                try:
                    self._write_pending()
                except BaseException:
                    # Whoever sees an error may set the sample again; those before it stay.
                    self._pending.pop()
                    self._pending_bytes -= size
                    self._new_keys.discard(self._pending_keys.pop())
                    raise
            return own

    def _check_writer(self) -> None:
        if self._is_copy or self._pid != os.getpid():
            raise StoreError(
                f"{self!r} collects samples until flush, and this is a copy of it in another process: write with sink, or make "
                "a store there and flush it"
            )
        if not self._pending and not self._written:
            before = latest(self._files)
            check_mode(self._files, self._mode, before, None, self._own)
            self._has_keys = before.number > 0 and (self._mode != "overwrite" or self._own is not None)

    def _check_sink(self, job: str | None) -> Field | None:
        before = latest(self._files)
        check_mode(self._files, self._mode, before, job, None)
        return before.field if self._mode == "append" else None

    def _check_new(self, key: str) -> None:
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise StoreError(f"the key {key!r} is no Unicode: {error}") from None
        known = key in self._new_keys or (self._has_keys and self._find(key, self._read()) is not None)
        # Keys that were made for samples which are not committed yet, and that may be made for the next ones.
        match = _KEY.fullmatch(key)
        made = match is not None and f"{match[1]}.arrow" in {self._name, *(entry.name for entry in self._written)}
        if known or made:
            raise StoreError(f"there is a sample under {key!r} in {self!r} already: shards are never changed")

    def _write_pending(self) -> None:
        if self._pending:
            first = sum(entry.rows for entry in self._written)
            keys = self._pending_keys if self._pending_keyed else None
            entry = write_shard(self._files, self._name, self._pending, keys, self._format.compression, first)
            self._written.append(entry)
            self._pending, self._pending_keys, self._pending_bytes, self._pending_keyed = [], [], 0, False
            self._name = new_name()

    def flush(self) -> None:
        """Commit all that was set: it is there at once, for all processes. After an error it can be tried again."""
        if self._pid != os.getpid():
            return  # what was set before the fork is for the parent to flush
        with self._lock:
            self._write_pending()
            if self._written:
                self._own = self._commit(self._written, None, self._own, self._new_keys)
                self._written, self._new_keys = [], set()
                self.refresh()

    def _commit(self, entries: Sequence[ShardEntry], job: str | None, own: int | None, keys: AbstractSet[str]) -> int:
        def check(before: Manifest) -> None:
            theirs = _keys_of(ShardReader(self._files, before, self._options)) if keys else ()
            if both := [key for key, _ in theirs if key in keys]:
                raise StoreError(f"there is a sample under {min(both)!r} in {self!r} already: shards are never changed")

        return commit(self._files, self._mode, entries, self._metadata, job, own, check).number

    def _commit_stream(self, entries: Sequence[ShardEntry], job: str | None) -> None:
        with self._lock:
            self._commit(entries, job, None, set())

    def _writing(self, job: str | None) -> ShardWriting:
        return ShardWriting(self._files, self._format, self._check_sink, self._commit_stream, self.refresh, job)

    def remove_unlisted(self, older_than: float = 86400.0) -> list[str]:
        """Remove shards that no manifest lists: writers that were killed have left them. Local files only.

        Args:
            older_than: Seconds. What is younger may belong to a writer at work.

        Returns:
            The names of what was removed.
        """
        if not self._files.is_local:
            raise StoreError(f"unlisted shards can be removed from local folders only, not from {self.url}")
        listed = {shard.name for shard in latest(self._files).shards}
        removed = []
        for name in self._files.names(FOLDER):
            path = self._files.path(f"{FOLDER}/{name}")
            if name not in listed and time.time() - os.stat(path).st_mtime > older_than:  # noqa: PTH116  # the path is text
                self._files.remove(f"{FOLDER}/{name}")
                removed.append(name)
        return removed

    # -- the end ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self._drop()
        self.refresh()

    def _drop(self) -> None:
        """Forget what has not been committed, and remove its shards."""
        self._after_fork()
        with self._lock:
            for entry in self._written if self._pid == os.getpid() else ():
                with suppress(StoreError):
                    self._files.remove(f"{FOLDER}/{entry.name}")
            self._forget()

    def __del__(self) -> None:
        lost = len(self.__dict__.get("_pending", ())) + sum(entry.rows for entry in self.__dict__.get("_written", ()))
        if lost and self._pid == os.getpid():
            warnings.warn(
                f"{lost} samples were set in {self!r} and never flushed: they are lost", ResourceWarning, stacklevel=1
            )

    def __repr__(self) -> str:
        return f"ShardStore({self.url!r})"


def _copied(value: Any) -> Any:
    """A sample that stays as it is when the one that was set is changed."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {key: _copied(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_copied(inside) for inside in value]
    return tuple(_copied(inside) for inside in value) if isinstance(value, tuple) else value


def _keys_of(reader: ShardReader) -> Iterator[tuple[str, int]]:
    for place, shard in enumerate(reader.manifest.shards):
        if shard.keyed:
            start = int(reader.starts[place])
            for block in range(shard.blocks):
                keys = reader.shard(place).block(block).keys or ()
                yield from zip(keys, range(start + block * shard.block_rows, start + shard.rows), strict=False)


def _plain_json(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    if metadata is None:
        return None
    try:
        plain = json.loads(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be made of plain JSON types: {error}") from error
    if not isinstance(metadata, dict) or plain != metadata:
        raise ValueError(f"metadata must be a dict of plain JSON types, got {metadata!r}")
    return cast("dict[str, Any]", plain)
