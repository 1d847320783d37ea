"""What all readers of files share."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from operator import index as as_index
from typing import Any, ClassVar

from squirrel_torch.checksum import checksum_of
from squirrel_torch.errors import CorruptDataError
from squirrel_torch.sharding import Shard
from squirrel_torch.storage import rows as numbered
from squirrel_torch.storage.formats.opening import Urls, find_files
from squirrel_torch.storage.store import Readable

__all__ = ["FileReader", "GroupReader", "Rows", "corrupt", "find_row", "own_rows"]

Rows = Generator[Any, None, int]
"""Gives samples, and returns how many the whole file has."""

_THREADS = 8


def corrupt(path: str, place: str, what: str) -> CorruptDataError:
    """The error for a place in a file."""
    return CorruptDataError(f"{path!r}{', ' if place else ''}{place}: {what}")


def own_rows(rows: int, start: int, step: int) -> range:
    """Of the next `rows` rows those that are asked for, where `start` is how many come before the first of them."""
    return range(start, rows, step)


def find_row(index: Any, rows: int, reader: object) -> int:
    """`index`, which may count from the end, as a row.

    Raises:
        IndexError: If there is no such row.
    """
    row = as_index(index)
    if not -rows <= row < rows:
        raise IndexError(f"there is no sample {row}: {reader!r} has {rows}")
    return row % rows


class FileReader(Readable):
    """Samples of files of one format.

    It can be pickled. Files are opened by the process that reads them, while it does.

    Args:
        url: A file, a glob, a folder, or a list of files.
        storage_options: For the filesystem.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """The names of files that are read when a folder is given end with one of these, in lower or upper case."""

    def __init__(self, url: Urls, storage_options: Mapping[str, Any]) -> None:
        self._url = url
        self._storage_options = dict(storage_options)
        self._files = self._find()

    def _find(self) -> tuple[str, ...]:
        return find_files(self._url, self.suffixes, self._storage_options)

    @property
    def files(self) -> list[str]:
        """The files, in the order in which they are read, as they were found when the reader was made."""
        return list(self._files)

    def read_file(self, path: str) -> Iterator[Any]:
        """The samples of one of `files`.

        Raises:
            CorruptDataError: If the file is not what was written, before a wrong sample is given.
        """
        return self._rows(path, 0, 1)

    @abstractmethod
    def _rows(self, path: str, start: int, step: int) -> Rows:
        """The samples `start`, `start` + `step` and so on of a file; it returns how many the file has in all."""

    def _part(self, shard: Shard) -> Iterator[Any]:
        passed = 0
        for path in self._files:
            passed += yield from self._rows(path, (shard.index - passed) % shard.count, shard.count)

    def __len__(self) -> int:
        raise TypeError(f"{self!r} has no length: files of this format would have to be read to count their samples")

    def _options(self) -> dict[str, Any]:
        """The arguments besides the URL, for repr: never `storage_options`, which may hold secrets."""
        return {}

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({self._url!r}{options})"


class GroupReader(FileReader):
    """Samples of files that are made of groups of rows, and know how many rows each has.

    The group that was last asked for by an index is kept, and read again only after another one.
    """

    def __init__(self, url: Urls, storage_options: Mapping[str, Any]) -> None:
        super().__init__(url, storage_options)
        self._known: dict[str, list[int]] = {}
        self._located: tuple[list[tuple[str, int, int]], list[int]] | None = None
        self._kept: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    @abstractmethod
    def _count(self, path: str) -> list[int]:
        """The rows of each group of a file."""

    @abstractmethod
    def _load(self, path: str, group: int) -> Any:
        """A group, in a form that `_pick` knows."""

    @abstractmethod
    def _pick(self, loaded: Any, row: int, path: str) -> Any:
        """One sample of a group."""

    def _groups(self) -> tuple[list[tuple[str, int, int]], list[int]]:
        """For each group of all files its file, its number in there, and its rows; and where each ends."""
        if self._located is not None:
            return self._located
        missing = [path for path in self._files if path not in self._known]
        if missing:
            with ThreadPoolExecutor(min(_THREADS, len(missing)), thread_name_prefix="squirrel_torch") as pool:
                self._known.update(zip(missing, pool.map(self._count, missing), strict=True))
        groups = [(path, group, rows) for path in self._files for group, rows in enumerate(self._known[path])]
        self._located = groups, list(accumulate(rows for _, _, rows in groups))
        return self._located

    def __len__(self) -> int:
        """The number of samples. The first call looks into each file."""
        _, ends = self._groups()
        return ends[-1] if ends else 0

    def __getitem__(self, index: int) -> Any:
        """The sample at `index`; of its file, only the group that holds it is read.

        Raises:
            IndexError: If there is none.
            CorruptDataError: If the file is not what was written.
        """
        groups, ends = self._groups()
        row = find_row(index, ends[-1] if ends else 0, self)
        number = bisect_right(ends, row)
        path, group, rows = groups[number]
        # Read once: another thread may replace it meanwhile.
        kept = self._kept
        if kept is None or kept[0] != number:
            kept = self._kept = (number, self._load(path, group))
        return self._pick(kept[1], row - (ends[number] - rows), path)

    def place(self, row: int) -> tuple[str, int]:
        """The file that holds a sample, and which of its samples that is."""
        groups, ends = self._groups()
        number = bisect_right(ends, row)
        path, group, _ = groups[number]
        before = number - group  # the first group of the file
        return path, row - (ends[before - 1] if before else 0)

    def _by_number(self) -> numbered.Rows | None:
        return _GroupedRows(self)

    def _expect(self, path: str, group: int, rows: int) -> None:
        """Raise unless a group has as many rows as were counted."""
        counted = self._known.get(path)
        if counted is not None and (group >= len(counted) or counted[group] != rows):
            raise corrupt(path, f"group {group}", f"it has {rows} rows now, which is not what was counted: was it replaced?")


class _GroupedRows(numbered.ListRows):
    """The samples of a `GroupReader`, which reads a whole group for each that is not of the last one."""

    scattered: ClassVar[bool] = False

    def __init__(self, reader: GroupReader) -> None:
        super().__init__(reader)
        self._reader = reader

    def locate(self, ids: numbered.Ids) -> list[numbered.Located]:
        name = repr(self._reader)
        return [numbered.Located(name, row, *self._reader.place(row)) for row in ids.tolist()]

    def fingerprint(self) -> dict[str, Any]:
        groups, _ = self._reader._groups()
        told = "".join(f"{path.rpartition('/')[2]} {rows}\n" for path, _, rows in groups)
        return {"rows": len(self), "groups": len(groups), "sum": checksum_of(told)}
