"""Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from squirrel_torch.errors import StoreError
from squirrel_torch.storage import rows as numbered
from squirrel_torch.storage.formats.columns import arrow_errors, check_names, rows_of, taken
from squirrel_torch.storage.formats.opening import Urls, open_file
from squirrel_torch.storage.formats.reader import GroupReader, Rows, corrupt, own_rows

__all__ = ["ArrowFiles", "ParquetFiles"]

_DECODED_BYTES: Final = 16 << 20
_MOST_ROWS: Final = 8192


class _TableReader(GroupReader):
    def __init__(self, url: Urls, columns: Sequence[str] | None, storage_options: dict[str, Any]) -> None:
        if isinstance(columns, str) or (columns is not None and not columns):
            raise ValueError(f"columns must be a list of one name or more, or None for all, got {columns!r}")
        self._columns = None if columns is None else list(columns)
        super().__init__(url, storage_options)

    def _options(self) -> dict[str, Any]:
        return {} if self._columns is None else {"columns": self._columns}

    def _pick(self, loaded: Any, row: int, path: str) -> Any:
        with arrow_errors(path, f"row {row} of its group"):
            (batch,) = loaded.slice(row, 1).combine_chunks().to_batches()
            return rows_of(batch)[0]


class ParquetFiles(_TableReader):
    """Rows of Parquet files, as dicts.

    It has a length and can be indexed; an index reads the row group that holds the row, and the latest one is kept. All
    shards together read a file as often as there are shards, but each decodes only its own rows.

    Values: numbers, text and bytes as Python's; lists of numbers as writable numpy arrays, shape [length] (a list in which a
    value is missing as a Python list); other lists as lists; structs as dicts; maps as lists of pairs; dates and timestamps
    as `numpy.datetime64` of the column's unit, in UTC where the column has a time zone; times of the day and durations as
    `numpy.timedelta64`; decimals as `decimal.Decimal`; dictionary-encoded values as what they stand for; tensors of fixed
    shape as arrays of it; other extension types as what they are stored as; missing values as None. Values that stand in
    names of folders (``year=2020/``) are no columns.

    Args:
        url: A file, a glob, a folder (its ``*.parquet`` and ``*.pq`` at any depth, in the order of their paths), or a list of
            these; on any filesystem that fsspec knows.
        columns: The names of those to read; by default all.
        **storage_options: For the filesystem.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is named twice or `columns` is empty; while reading, if a file lacks one of `columns`.
        CorruptDataError: While reading, if a file is not what was written. Checksums of pages are checked where there are any.
        StoreError: While reading, if a file has two columns of one name.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    def __init__(self, url: Urls, columns: Sequence[str] | None = None, **storage_options: Any) -> None:
        super().__init__(url, columns, storage_options)

    @contextmanager
    def _opened(self, path: str) -> Iterator[Any]:
        import pyarrow.parquet as pq

        with open_file(path, self._storage_options) as file:
            with arrow_errors(path):
                parquet = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
                names = parquet.schema_arrow.names
                counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
            check_names(path, names, self._columns)
            if min(counts, default=0) < 0 or sum(counts) != parquet.metadata.num_rows:
                raise corrupt(path, "the footer", f"its groups have {sum(counts)} rows, the file {parquet.metadata.num_rows}")
            yield parquet, counts

    def _count(self, path: str) -> list[int]:
        with self._opened(path) as (_, counts):
            return list(counts)

    def _load(self, path: str, group: int) -> Any:
        with self._opened(path) as (parquet, counts):
            self._expect(path, group, counts[group] if group < len(counts) else 0)
            with arrow_errors(path, f"row group {group}"):
                table = parquet.read_row_group(group, columns=self._columns)
            self._check_rows(path, group, table.num_rows, counts[group])
            return table

    def _rows(self, path: str, start: int, step: int) -> Rows:
        with self._opened(path) as (parquet, counts):
            passed = 0
            for group, rows in enumerate(counts):
                self._expect(path, group, rows)
                own = own_rows(rows, (start - passed) % step, step)
                if own:
                    yield from self._of_group(parquet, path, group, rows, own)
                passed += rows
            return passed

    def _of_group(self, parquet: Any, path: str, group: int, rows: int, own: range) -> Generator[Any, None, None]:
        read = 0
        with arrow_errors(path, f"row group {group}"):
            size = max(1, min(_MOST_ROWS, _DECODED_BYTES * rows // max(1, parquet.metadata.row_group(group).total_byte_size)))
            batches = iter(parquet.iter_batches(size, row_groups=[group], columns=self._columns))
        while True:
            # Not around the yield: an error of whoever takes the samples is not the file's.
            with arrow_errors(path, f"row group {group}, from row {read} on"):
                batch = next(batches, None)
                if batch is None:
                    break
                made = rows_of(taken(batch, (own.start - read) % own.step, own.step))
                read += batch.num_rows
            if read > rows:
                break
            yield from made
        self._check_rows(path, group, read, rows)

    @staticmethod
    def _check_rows(path: str, group: int, read: int, rows: int) -> None:
        if read != rows:
            raise corrupt(path, f"row group {group}", f"{read} rows came out of it, {rows} are announced")


class ArrowFiles(_TableReader):
    """Rows of Arrow's IPC files (Feather, version 2) and IPC streams, as dicts.

    Which of both a file is is seen in its content. Files have a length and can be indexed: an index reads the record batch
    that holds the row, and the latest one is kept. Streams have neither, and nor has a reader one of whose files is a
    stream. Each batch is validated before anything in it is used. A stream has to have its end-of-stream marker: one
    that was cut off between two batches is else like a shorter one.

    Values are as in `ParquetFiles`.

    Args:
        url: A file, a glob, a folder (its ``*.arrow``, ``*.feather``, ``*.ipc`` and ``*.arrows``), or a list of these.
        columns: The names of those to give; by default all.
        **storage_options: For the filesystem.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is named twice or `columns` is empty; while reading, if a file lacks one of `columns`.
        CorruptDataError: While reading, if a file is not what was written.
        StoreError: While reading, if a file has two columns of one name, or is Feather version 1.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".arrow", ".feather", ".ipc", ".arrows")

    def __init__(self, url: Urls, columns: Sequence[str] | None = None, **storage_options: Any) -> None:
        super().__init__(url, columns, storage_options)
        self._has_index: bool | None = None  # not looked at yet

    def _by_number(self) -> numbered.Rows | None:
        """None if one of the files is a stream, which has no index."""
        if self._has_index is None:
            try:
                self._groups()
                self._has_index = True
            except TypeError:  # of `_count`
                self._has_index = False
        return super()._by_number() if self._has_index else None

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[Any, Any]]:
        """Pyarrow's file, and a reader of it if it is an IPC file; None for a stream."""
        import pyarrow as pa

        with open_file(path, self._storage_options) as file:
            head = file.read(8)
            file.seek(0)
            if head.startswith(b"FEA1"):
                raise StoreError(f"{path!r} is Feather version 1: write it again with pyarrow.feather.write_feather")
            source = pa.PythonFile(file, "r")
            if not head.startswith(b"ARROW1"):
                yield source, None
                return
            with arrow_errors(path):
                reader = pa.ipc.open_file(source)
                names = reader.schema.names
            check_names(path, names, self._columns)
            yield source, reader

    def _count(self, path: str) -> list[int]:
        with self._opened(path) as (source, reader):
            if reader is None:
                raise TypeError(f"{self!r} has no length and can't be indexed: {path!r} is an IPC stream, which has no index")
            import pyarrow as pa

            # The number of rows stands in front of each batch; as little as can be is read besides.
            with arrow_errors(path):
                narrow = pa.ipc.IpcReadOptions(included_fields=[_narrowest(reader.schema)]) if reader.schema.names else None
                counter = pa.ipc.open_file(source, options=narrow)
                return [counter.get_batch(number).num_rows for number in range(counter.num_record_batches)]

    def _load(self, path: str, group: int) -> Any:
        import pyarrow as pa

        with self._opened(path) as (_, reader):
            if reader is None or group >= reader.num_record_batches:
                raise corrupt(path, f"record batch {group}", "it is gone, after it was counted: was the file replaced?")
            batch = self._checked(path, group, reader.get_batch, group)
            self._expect(path, group, batch.num_rows)
            return pa.Table.from_batches([batch])

    def _checked(self, path: str, number: int, read: Any, *arguments: int) -> Any:
        with arrow_errors(path, f"record batch {number}"):
            batch = read(*arguments)
            batch.validate(full=True)
            return batch if self._columns is None else batch.select(self._columns)

    def _rows(self, path: str, start: int, step: int) -> Rows:
        with self._opened(path) as (source, reader):
            passed = 0
            batches = self._of_stream(path, source) if reader is None else self._of_file(path, reader)
            for number, batch in enumerate(batches):
                own = own_rows(batch.num_rows, (start - passed) % step, step)
                for first in range(own.start, batch.num_rows, _MOST_ROWS * step) if own else ():
                    with arrow_errors(path, f"record batch {number}, from row {first} on"):
                        made = rows_of(taken(batch.slice(0, first + _MOST_ROWS * step), first, step))
                    yield from made
                passed += batch.num_rows
            return passed

    def _of_file(self, path: str, reader: Any) -> Iterator[Any]:
        for number in range(reader.num_record_batches):
            batch = self._checked(path, number, reader.get_batch, number)
            self._expect(path, number, batch.num_rows)
            yield batch

    def _of_stream(self, path: str, source: Any) -> Iterator[Any]:
        import pyarrow as pa

        with arrow_errors(path):
            reader = pa.ipc.open_stream(source)
            names = reader.schema.names
        check_names(path, names, self._columns)
        number, position = 0, source.tell()
        while True:
            try:
                batch = self._checked(path, number, reader.read_next_batch)
            except StopIteration:
                break
            yield batch
            number, position = number + 1, source.tell()
        _check_end(path, number, source, position)


def _narrowest(schema: Any) -> int:
    """The number of a column that is read fast."""
    import pyarrow.types as types

    return next((number for number, kind in enumerate(schema.types) if types.is_primitive(kind)), 0)


def _check_end(path: str, batches: int, source: Any, position: int) -> None:
    """Raise unless a stream that was read up to `position` has its marker there, and nothing behind it."""
    # Pyarrow takes the end of the file for the end of the stream. The marker has 8 bytes, in old files 4.
    marker = source.tell() - position
    place = f"behind record batch {batches - 1}" if batches else "byte 0"
    if marker not in (4, 8):
        raise corrupt(path, place, "the end-of-stream marker is missing: the file was cut off, or its writer was never closed")
    if source.read(1):
        raise corrupt(path, place, "something follows the end of the stream")
