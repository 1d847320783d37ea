"""From a URL to the reader of what is there."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, Final

from squirrel_torch.errors import StoreError
from squirrel_torch.storage.formats.images import ImageFolder
from squirrel_torch.storage.formats.inflate import MAX_RATIO, open_inflated
from squirrel_torch.storage.formats.opening import Urls, base_name, find_files
from squirrel_torch.storage.formats.reader import FileReader
from squirrel_torch.storage.formats.squirrel import SquirrelShards
from squirrel_torch.storage.formats.tables import ArrowFiles, ParquetFiles
from squirrel_torch.storage.formats.text import CsvFiles, JsonLines
from squirrel_torch.storage.formats.webdataset import TarShards

__all__ = ["FORMATS", "open_files"]

FORMATS: Final[Mapping[str, type[FileReader]]] = {
    "parquet": ParquetFiles,
    "arrow": ArrowFiles,
    "webdataset": TarShards,
    "jsonl": JsonLines,
    "csv": CsvFiles,
    "images": ImageFolder,
    "squirrel": SquirrelShards,
}
"""The readers of foreign data, by the names of their formats."""

_ADVICE: Final = f"give format= as one of {', '.join(map(repr, FORMATS))}"
_BLOCK: Final = 512
_BEGINNINGS: Final = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}


def open_files(
    url: Urls,
    format: str | None = None,  # noqa: A002  # the name that users expect
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> FileReader:
    r"""A reader of the files that `url` names.

    Without `format` it is seen in the names of the files; for files whose names say nothing, in how the first one begins.

    Args:
        url: A file, a glob, a folder, or a list of these; on any filesystem that fsspec knows.
        format: A key of `FORMATS`.
        storage_options: For the filesystem.
        **options: For the reader.

    Raises:
        TypeError: If the reader has no such option.
        ValueError: If there is no such format.
        FileNotFoundError: If there is no such file.
        StoreError: If the format can't be seen, or the files are of several.

    Example:
        >>> import fsspec
        >>> fsspec.filesystem("memory").pipe("/numbers/a.csv", b"x,y\n1,2\n3,4\n")
        >>> reader = open_files("memory://numbers", types={"y": int})
        >>> reader
        CsvFiles('memory://numbers', types={'y': <class 'int'>})
        >>> list(reader)
        [{'x': '1', 'y': 2}, {'x': '3', 'y': 4}]
    """
    found = _seen(url, storage_options or {}) if format is None else format
    if found not in FORMATS:
        raise ValueError(f"there is no format {found!r}: {_ADVICE}")
    make: Any = FORMATS[found]
    known = sorted(set(signature(make).parameters) - {"url", "storage_options"})
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"{make.__name__} has no option {unknown[0]!r}, it has {', '.join(known)}")
    reader: FileReader = make(url, **(storage_options or {}), **options)
    return reader


def _seen(url: Urls, storage_options: Mapping[str, Any]) -> str:
    files = find_files(url, [suffix for reader in FORMATS.values() for suffix in reader.suffixes], storage_options)
    formats = {_by_name(path): path for path in reversed(files)}
    if len(formats) > 1:
        examples = "; ".join(f"{name or 'unknown'}: {path!r}" for name, path in formats.items())
        raise StoreError(f"{url!r} names files of several formats ({examples}): name those of one, or {_ADVICE}")
    # A bare .gz may hold anything.
    found = formats.popitem()[0]
    return found if found not in ("", "squirrel") else _by_content(files[0], storage_options, found)


def _by_name(path: str) -> str:
    """The format whose suffix is the longest that fits; empty if none does."""
    name = base_name(path)
    fitting = [(len(suffix), found) for found, reader in FORMATS.items() for suffix in reader.suffixes if name.endswith(suffix)]
    return max(fitting, default=(0, ""))[1]


def _by_content(path: str, storage_options: Mapping[str, Any], otherwise: str) -> str:
    with open_inflated(path, storage_options, MAX_RATIO) as file:
        head = file.peek(_BLOCK)[:_BLOCK]
    for begins, found in _BEGINNINGS.items():
        if head.startswith(begins):
            return found
    if head[257:262] == b"ustar":
        return "webdataset"
    if not otherwise:
        raise StoreError(f"the format of {path!r} can't be seen in its name, nor in how it begins ({head[:8]!r}): {_ADVICE}")
    return otherwise
