"""JSON Lines and CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, BinaryIO, ClassVar, Final

from squirrel_torch.errors import StoreError
from squirrel_torch.storage.formats.inflate import COMPRESSED, MAX_RATIO, MAX_SAMPLE_BYTES, check_limits, open_inflated
from squirrel_torch.storage.formats.opening import Urls, base_name
from squirrel_torch.storage.formats.plain import json_decoder
from squirrel_torch.storage.formats.reader import FileReader, Rows, corrupt

__all__ = ["CsvFiles", "JsonLines", "json_rows", "lines_of"]

_BOM: Final = b"\xef\xbb\xbf"
_BOOLEANS: Final = {"true": True, "false": False, "1": True, "0": False}
_Convert = Callable[[str], Any]


def _with_compressed(*suffixes: str) -> tuple[str, ...]:
    return tuple(suffix + end for suffix in suffixes for end in ("", *(end for end in COMPRESSED if end != ".tgz")))


def lines_of(file: BinaryIO, path: str, max_bytes: int) -> Iterator[bytes]:
    """The lines of a file, each with its end.

    Raises:
        CorruptDataError: If one has more than `max_bytes` bytes.
    """
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            raise corrupt(path, f"line {number}", f"it has more than max_sample_bytes={max_bytes} bytes")
        yield line.removeprefix(_BOM) if number == 1 else line


def json_rows(lines: Iterator[bytes], path: str, decode: Callable[[str], Any], start: int, step: int) -> Rows:
    """The values of lines of JSON; those that are not asked for are not decoded."""
    row = -1
    for row, line in enumerate(lines):
        if line.isspace():
            raise corrupt(path, f"line {row + 1}", "it is blank; each line must hold a value")
        if row % step != start:
            continue
        try:
            value = decode(line.decode("utf-8"))
        except StoreError as error:
            raise StoreError(f"{path!r}, line {row + 1}: {error}") from error
        except ValueError as error:
            cut = "" if line.endswith(b"\n") else ", and the file ends within the line"
            raise corrupt(path, f"line {row + 1}", f"it can't be decoded{cut}: {error}") from error
        # A number's last digits may be missing; objects, lists and text say themselves where they end.
        if not line.endswith(b"\n") and isinstance(value, int | float):
            raise corrupt(path, f"line {row + 1}", f"the file ends behind the number {value!r}, without the end of the line")
        yield value
    return row + 1


class JsonLines(FileReader):
    """Values of files that hold one value of JSON in each line, in UTF-8, compressed or not.

    NaN and Infinity, which Python writes, are read. A key that stands twice in one object, a blank line, and a last line
    that was cut off are errors; a last line may lack its end if its value is whole. A file that was cut off between two
    lines is like a shorter one, unless it is compressed.

    Readers have no length. All shards together read a file as often as there are shards, but each decodes only its own lines.

    Args:
        url: A file, a glob, a folder (its ``*.jsonl`` and ``*.ndjson``, and these with ``.gz``, ``.bz2`` or ``.zst``), or a
            list of these; on any filesystem that fsspec knows.
        max_sample_bytes: A line with more bytes is an error.
        max_ratio: A compressed file that holds more than this many times its own size, and more than 64 MiB, is an error.
        **storage_options: For the filesystem.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is named twice, or a limit is not above 0.
        CorruptDataError: While reading, at a line that is no JSON in UTF-8, and where a compressed file is cut off or changed.
    """

    suffixes: ClassVar[tuple[str, ...]] = _with_compressed(".jsonl", ".ndjson")

    def __init__(
        self, url: Urls, max_sample_bytes: int = MAX_SAMPLE_BYTES, max_ratio: float = MAX_RATIO, **storage_options: Any
    ) -> None:
        check_limits(max_ratio, max_sample_bytes)
        self._max_sample_bytes = max_sample_bytes
        self._max_ratio = max_ratio
        super().__init__(url, storage_options)

    def _rows(self, path: str, start: int, step: int) -> Rows:
        with open_inflated(path, self._storage_options, self._max_ratio) as file:
            lines = lines_of(file, path, self._max_sample_bytes)
            return (yield from json_rows(lines, path, json_decoder(), start, step))


class CsvFiles(FileReader):
    """Rows of CSV files, as dicts, in UTF-8, compressed or not.

    All cells are text, as they stand there, unless `types` says otherwise: nothing is guessed. Quotes follow RFC 4180. A row
    with more or fewer cells than there are columns, a blank line, a quote that is not closed, and a last line without its
    end are errors. A file that was cut off between two rows is like a shorter one, unless it is compressed.

    Readers have no length. All shards together read a file as often as there are shards, but each makes only its own rows.

    Args:
        url: A file, a glob, a folder (its ``*.csv`` and ``*.tsv``, and these with ``.gz``, ``.bz2`` or ``.zst``), or a list of
            these; on any filesystem that fsspec knows.
        types: `int`, `float`, `bool` (true, false, 1, 0) or `str` for columns by their names; in the first three, an empty
            cell is None.
        header: The names of the columns, for files without a first row that says them.
        delimiter: Between cells; by default a tab in files that end with ``.tsv``, a comma in others.
        open_end: Whether the last row may lack the end of its line. Its last cell may be cut off then.
        max_sample_bytes: A line with more bytes is an error.
        max_ratio: A compressed file that holds more than this many times its own size, and more than 64 MiB, is an error.
        **storage_options: For the filesystem.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is named twice, or an argument is not as said; while reading, if `types` names a column that a
            file does not have.
        CorruptDataError: While reading, at what is described above, at a cell that is not of its type, and where a compressed
            file is cut off or changed.
        StoreError: While reading, if a cell has more characters than `csv.field_size_limit()`.
    """

    suffixes: ClassVar[tuple[str, ...]] = _with_compressed(".csv", ".tsv")

    def __init__(
        self,
        url: Urls,
        types: Mapping[str, type] | None = None,
        header: Sequence[str] | None = None,
        delimiter: str | None = None,
        open_end: bool = False,
        max_sample_bytes: int = MAX_SAMPLE_BYTES,
        max_ratio: float = MAX_RATIO,
        **storage_options: Any,
    ) -> None:
        check_limits(max_ratio, max_sample_bytes)
        if wrong := [kind for kind in (types or {}).values() if kind not in _CONVERT]:
            raise ValueError(f"types must be int, float, bool or str, got {wrong[0]!r}")
        if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(f"delimiter must be one character, no quote and no end of a line, got {delimiter!r}")
        self._types = dict(types or {})
        self._header = None if header is None else _checked_header(list(header))
        self._delimiter = delimiter
        self._open_end = open_end
        self._max_sample_bytes = max_sample_bytes
        self._max_ratio = max_ratio
        super().__init__(url, storage_options)

    def _options(self) -> dict[str, Any]:
        options = {"types": self._types, "header": self._header, "delimiter": self._delimiter, "open_end": self._open_end}
        return {name: value for name, value in options.items() if value}

    def _rows(self, path: str, start: int, step: int) -> Rows:
        with open_inflated(path, self._storage_options, self._max_ratio) as file, closing(self._cells(file, path)) as rows:
            names = self._header
            if names is None:
                line, first = next(rows, (0, None))
                if first is None:
                    raise corrupt(path, "byte 0", "it is empty: the first row should say the names of the columns")
                try:
                    names = _checked_header(first)
                except ValueError as error:
                    raise corrupt(path, f"line {line}", str(error)) from None
            converts = self._converts(path, names)
            row = -1
            for row, (line, cells) in enumerate(rows):
                if len(cells) != len(names):
                    what = "it is blank" if not cells else f"it has {len(cells)} cells, there are {len(names)} columns"
                    raise corrupt(path, f"line {line}", what)
                if row % step == start:
                    sample = dict(zip(names, cells, strict=True))
                    for name, convert in converts:
                        sample[name] = _converted(path, line, name, convert, sample[name])
                    yield sample
            return row + 1

    def _cells(self, file: BinaryIO, path: str) -> Generator[tuple[int, list[str]], None, None]:
        """The cells of each row, and the number of its last line."""
        delimiter = self._delimiter or ("\t" if ".tsv" in base_name(path) else ",")
        reader = csv.reader(self._lines(file, path), delimiter=delimiter, strict=True)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                place = f"{path!r}, line {reader.line_num}"
                if "field limit" in str(error):
                    raise StoreError(
                        f"{place}: {error}; if it is meant to be that large, call csv.field_size_limit(n)"
                    ) from error
                raise corrupt(path, f"line {reader.line_num}", f"it is no CSV: {error}") from error
            if cells is None:
                return
            yield reader.line_num, cells

    def _lines(self, file: BinaryIO, path: str) -> Iterator[str]:
        for number, line in enumerate(lines_of(file, path, self._max_sample_bytes), 1):
            if not line.endswith(b"\n") and not self._open_end:
                raise corrupt(
                    path,
                    f"line {number}",
                    "the file ends within this line, which may be cut off: if it is whole, add the end of the line, or read "
                    "with open_end=True",
                )
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise corrupt(path, f"line {number}", f"it is not UTF-8: {error}") from error

    def _converts(self, path: str, names: list[str]) -> list[tuple[str, _Convert]]:
        if missing := [name for name in self._types if name not in names]:
            raise ValueError(f"types names the column {missing[0]!r}; {path!r} has {', '.join(map(repr, names))}")
        return [(name, _CONVERT[kind]) for name, kind in self._types.items() if kind is not str]


def _checked_header(names: list[str]) -> list[str]:
    if not names or "" in names or len(set(names)) < len(names):
        raise ValueError(f"columns must have names, each its own, got {names!r}")
    return names


def _converted(path: str, line: int, name: str, convert: _Convert, cell: str) -> Any:
    try:
        return convert(cell) if cell else None
    except (ValueError, KeyError):
        raise corrupt(path, f"line {line}", f"{cell[:80]!r} in the column {name!r} is not of its type") from None


def _number(kind: type) -> _Convert:
    def convert(cell: str) -> Any:
        # Python's own literals may hold underscores and digits of any script.
        if "_" in cell or not cell.isascii():
            raise ValueError(cell)
        return kind(cell)

    return convert


_CONVERT: Final[Mapping[type, _Convert]] = {
    int: _number(int),
    float: _number(float),
    bool: lambda cell: _BOOLEANS[cell.lower()],
    str: str,
}
