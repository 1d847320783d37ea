"""Samples by their numbers: what a source must be able to do so that the order of an epoch is arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from operator import length_hint
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

__all__ = ["Ids", "KeyRows", "ListRows", "Located", "NumberedBlocks", "RangeRows", "Rows", "StoredRows"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Located:
    """Where a sample lies.

    Args:
        source: The URL or path of the store or the file, else the source in words.
        row: Its number in the source, from 0: `store.row(row)`, `items[row]`.
        shard: The file of the source that holds it, where there are several.
        shard_row: Its number in that file, from 0.
        key: Its key in the store, or the text that the source gives; None where there is none, or it would have to be read.
        stream: Which stream of a mix it is of, from 0, and of a mix in that one, and so on; empty without mixes.
    """

    source: str
    row: int
    shard: str | None = None
    shard_row: int | None = None
    key: str | None = None
    stream: tuple[int, ...] = ()


class Rows(ABC):
    """The samples of a source, each under its number, from 0 to ``len(rows)`` - 1.

    It is made where a stream starts, in the process that reads it.
    """

    scattered: ClassVar[bool] = True
    """Whether any order costs about the same. If not, they can be read from any place on, and are not shuffled by number."""

    @property
    def get(self) -> Callable[[int], Any] | None:
        """Gives one sample at once, where there is such a function."""
        return None

    @property
    def groups(self) -> Ids | None:
        """How many samples lie in each file, where it matters that those of one file are read together."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    def fetch(self, ids: Ids) -> Iterator[Any]:
        """The samples of these numbers, in their order, made as they are asked for."""
        if self.get is None:
            raise NotImplementedError(f"{type(self).__name__} has neither get nor fetch")
        return map(self.get, ids.tolist())

    def collated(self, batches: Sequence[Ids]) -> Iterator[Any]:
        """Batches, each what torch's `default_collate` makes of the samples of these numbers."""
        from torch.utils.data import default_collate

        return (default_collate(list(self.fetch(ids))) for ids in batches)

    def locate(self, ids: Ids) -> list[Located]:
        """Where the samples of these numbers lie; nothing of them is read. A `source` without words is one that has no name."""
        return [Located("", row) for row in ids.tolist()]

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Plain JSON values by which other samples are told from these, some 200 bytes; "rows" is how many there are."""

    def difference(self, fingerprint: dict[str, Any]) -> str:
        """What has changed since `fingerprint` was taken, in words."""
        rows, own = fingerprint.get("rows"), len(self)
        return f"it had {rows} samples, now it has {own}" if rows != own else "it has as many samples, and they are others"


class ListRows(Rows):
    """What has a length and gives an item for each number.

    Args:
        items: Anything with `__len__` and `__getitem__`.
    """

    def __init__(self, items: Any) -> None:
        self._items = items

    @property
    def get(self) -> Callable[[int], Any]:
        get: Callable[[int], Any] = self._items.__getitem__
        return get

    def __len__(self) -> int:
        return len(self._items)

    def locate(self, ids: Ids) -> list[Located]:
        # To ask anything else for an item may mean to make it.
        texts = self._items if isinstance(self._items, list | tuple) else ()
        return [
            Located("", row, key=texts[row] if row < len(texts) and isinstance(texts[row], str) else None)
            for row in ids.tolist()
        ]

    def fingerprint(self) -> dict[str, Any]:
        return {"rows": len(self)}


class RangeRows(Rows):
    """Whole numbers at equal distances: they need not be looked up.

    Args:
        numbers: Which ones.
    """

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def fetch(self, ids: Ids) -> Iterator[int]:
        return iter((ids * self._numbers.step + self._numbers.start).tolist())

    def fingerprint(self) -> dict[str, Any]:
        return {"rows": len(self), "start": self._numbers.start, "step": self._numbers.step}


class KeyRows(ListRows):
    """The keys of a store.

    Args:
        keys: All of them.
        name: Of the store.
    """

    def __init__(self, keys: Sequence[str], name: str = "") -> None:
        super().__init__(keys)
        self._keys = keys
        self._name = name

    def locate(self, ids: Ids) -> list[Located]:
        return [Located(self._name, row, key=self._keys[row]) for row in ids.tolist()]

    def fingerprint(self) -> dict[str, Any]:
        import xxhash

        digest = xxhash.xxh3_64()
        for key in self._keys:
            digest.update(f"{len(key)}:{key}".encode())
        return {"rows": len(self), "keys": digest.hexdigest()}


class StoredRows(KeyRows):
    """The samples of a store under its keys, in the order of these.

    Args:
        get: Gives the sample under a key.
        keys: All of them.
        name: Of the store.
    """

    def __init__(self, get: Callable[[str], Any], keys: Sequence[str], name: str = "") -> None:
        super().__init__(keys, name)
        self._get = get

    @property
    def get(self) -> Callable[[int], Any]:
        get, keys = self._get, self._keys
        return lambda number: get(keys[number])


class NumberedBlocks:
    """Samples of given numbers, block by block; see `store.Blocks`.

    Args:
        rows: The samples.
        numbers: Those that are wanted.
    """

    def __init__(self, rows: Rows, numbers: Iterator[Ids]) -> None:
        self._rows = rows
        self._numbers = numbers
        self._ids: Ids = np.empty(0, np.int64)
        self._left: Iterator[bool] = iter(())

    def rows(self) -> Iterator[Iterator[Any]]:
        """The samples of each block, made as they are asked for."""
        for ids in self._numbers:
            self._ids, self._left = ids, repeat(True, len(ids))
            # Nothing but a count of what is left, in C.
            yield compress(self._rows.fetch(ids), self._left)

    def position(self) -> int:
        """The number of the sample that was given last, plus one."""
        given = len(self._ids) - length_hint(self._left)
        return int(self._ids[given - 1]) + 1 if given else 0

    def collated(self, size: int, drop_last: bool) -> Iterator[Any]:
        """Batches of `size` samples; see `store.PartOfRows.collated`."""
        rest: Ids = np.empty(0, np.int64)
        for ids in self._numbers:
            known = np.concatenate([rest, ids]) if len(rest) else ids
            whole = len(known) // size * size
            rest = known[whole:]
            if whole:
                yield from self._rows.collated(np.split(known[:whole], range(size, whole, size)))
        if len(rest) and not drop_last:
            yield from self._rows.collated([rest])
