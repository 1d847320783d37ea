"""Samples by their numbers: what a source must be able to do so that the order of an epoch is arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

__all__ = ["Batches", "Ids", "KeyRows", "ListRows", "Rows", "StoredRows"]

Ids = npt.NDArray[np.int64]

Batches = Callable[[Sequence[Ids]], Iterator[Any]]
"""Makes of the numbers of several batches these batches."""


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

    def collated(self) -> Batches | None:
        """What makes batches, each what torch's `default_collate` makes of its samples; None if samples are needed for that."""
        return None

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Some plain JSON values by which other samples are told from these, in some 200 bytes; "rows" is how many there are."""

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

    def fingerprint(self) -> dict[str, Any]:
        return {"rows": len(self)}


class KeyRows(ListRows):
    """The keys of a store.

    Args:
        keys: All of them.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(keys)
        self._keys = keys

    def fingerprint(self) -> dict[str, Any]:
        import xxhash

        digest = xxhash.xxh3_64()
        for key in self._keys:
            digest.update(f"{len(key)}:{key}")
        return {"rows": len(self), "keys": digest.hexdigest()}


class StoredRows(KeyRows):
    """The samples of a store under its keys, in the order of these.

    Args:
        get: Gives the sample under a key.
        keys: All of them.
    """

    def __init__(self, get: Callable[[str], Any], keys: Sequence[str]) -> None:
        super().__init__(keys)
        self._get = get

    @property
    def get(self) -> Callable[[int], Any]:
        get, keys = self._get, self._keys
        return lambda number: get(keys[number])
