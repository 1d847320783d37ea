"""The contract of a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Protocol, Self
from uuid import uuid4

from squirrel_torch.errors import StoreError
from squirrel_torch.sharding import WHOLE, Shard
from squirrel_torch.storage.rows import KeyRows, Rows, StoredRows
from squirrel_torch.storage.writing import Writing

__all__ = ["Blocks", "Keys", "PartOfRows", "Readable", "Store", "check_key", "require_store", "store_reader"]


class Keys:
    """The keys of a store, as a view: sized, and as often iterable as one likes.

    An iteration gives the keys that were there when it started.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __iter__(self) -> Iterator[str]:
        return self._store._iterate_keys()

    def __len__(self) -> int:
        return len(self._store)

    def __contains__(self, key: object) -> bool:
        return key in self._store

    def _by_number(self) -> Rows:
        return self._store._keys_by_number()

    def __repr__(self) -> str:
        return f"<{len(self)} keys of {self._store!r}>"


class PartOfRows(chain[Any]):
    """A part of the rows of a store, at the speed of an `itertools.chain` over blocks of them.

    Args:
        blocks: Gives each block's rows, and may be asked for batches of columns instead.
    """

    blocks: Blocks
    source: Iterator[Any]
    """The generator of the blocks. To close it gives back what was opened."""

    def __new__(cls, blocks: Blocks) -> Self:
        """Chain the rows of the blocks."""
        source = blocks.rows()
        part: Self = cls.from_iterable(source)  # type: ignore[assignment]  # typeshed has it give the base class
        part.blocks, part.source = blocks, source
        return part

    def position(self) -> int:
        """How many rows of the whole have been passed."""
        return self.blocks.position()

    def collated(self, size: int, drop_last: bool) -> Iterator[Any] | None:
        """Batches of `size` rows, each what torch's `default_collate` makes of them; None if rows have to be made for that."""
        return self.blocks.collated(size, drop_last)


class Blocks(Protocol):
    """A part of the rows of a store, block by block."""

    def rows(self) -> Iterator[Iterator[Any]]:
        """The rows of each block."""

    def position(self) -> int:
        """How many rows of the whole have been passed."""

    def collated(self, size: int, drop_last: bool) -> Iterator[Any] | None:
        """See `PartOfRows.collated`."""


class Readable(ABC):
    """Samples in one fixed order, as often readable as one likes."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def _part(self, shard: Shard) -> Iterator[Any]:
        """The samples of `shard`, in order; those of other shards are not made, nor read where that can be helped.

        A generator, or a `PartOfRows`: messages ask how many were read.
        """

    def _by_number(self) -> Rows | None:
        """The samples under their numbers, as they are now; None if they can only be read in order."""
        return None

    def _prepare(self) -> None:  # noqa: B027  # most have nothing to settle
        """Settle what there is to read: called where a stream is built, so that all its workers see the same."""

    def __iter__(self) -> Iterator[Any]:
        return self._part(WHOLE)


class Store(Readable):
    """Samples under keys. All methods may be called from several threads at once.

    Samples are numbers, text, bytes, None, numpy arrays, torch tensors, and dicts, lists and tuples of these, nested as one
    likes; the keys of dicts are text. A store that is iterated gives its samples, in the order of its keys.
    """

    shared: bool = True
    """Whether what one process writes is there for the others."""

    @abstractmethod
    def set(self, value: Any, key: str | None = None) -> str:
        """Keep a sample.

        Args:
            value: The sample.
            key: Its key. A sample that has it already is replaced, or the store raises: see there. By default a new one,
                which no other process makes.

        Returns:
            The key.

        Raises:
            SampleEncodingError: If the sample holds something that a store can't keep.
            StoreError: If the key can't be one.
        """

    @abstractmethod
    def get(self, key: str) -> Any:
        """The sample under `key`.

        Raises:
            SampleNotFoundError: If there is none.
        """

    @abstractmethod
    def __contains__(self, key: object) -> bool:
        """Whether there is a sample under `key`."""

    @abstractmethod
    def _iterate_keys(self) -> Iterator[str]:
        """The keys that are there now."""

    def set_many(self, values: Iterable[Any], keys: Iterable[str] | None = None) -> list[str]:
        """Keep samples; see `set`.

        Args:
            values: The samples.
            keys: A key for each. By default new ones.

        Returns:
            The keys.

        Raises:
            ValueError: If there are more samples than keys, or more keys than samples.
        """
        if keys is None:
            return [self.set(value) for value in values]
        return [self.set(value, key) for value, key in zip(values, keys, strict=True)]

    def get_many(self, keys: Iterable[str]) -> list[Any]:
        """The samples under `keys`, in the order of the keys.

        Raises:
            SampleNotFoundError: If there is none under one of them.
        """
        return [self.get(key) for key in keys]

    def contains_many(self, keys: Iterable[object]) -> list[bool]:
        """For each of `keys`, whether there is a sample under it."""
        return [key in self for key in keys]

    def keys(self) -> Keys:
        """The keys: sized, and as often iterable as one likes."""
        return Keys(self)

    def flush(self) -> None:
        """Make all that was set readable, by this process and others. Most stores do that in `set`."""

    def _writing(self, job: str | None) -> Writing:
        """How `sink` writes into it."""
        if job is not None:
            raise ValueError(
                f"{type(self).__name__} can't resume a job, it writes each sample by itself: leave resume={job!r} out"
            )
        return Writing(self)

    def _part(self, shard: Shard) -> Iterator[Any]:
        for key in shard.of(self.keys()):
            yield self.get(key)

    def _where(self) -> str:
        """Its URL or path, if it has one; else itself in words."""
        return repr(self)

    def _by_number(self) -> Rows:
        return StoredRows(self.get, list(self._iterate_keys()), self._where())

    def _keys_by_number(self) -> Rows:
        """The keys under their numbers, as they are now."""
        return KeyRows(list(self._iterate_keys()), self._where())

    @staticmethod
    def _new_key() -> str:
        # From the system's entropy: seeds that are equal on all ranks make no equal keys.
        return uuid4().hex


def check_key(key: object) -> str:
    """`key`, if it can be one.

    Raises:
        StoreError: If it is not text, or empty.
    """
    if not isinstance(key, str) or not key:
        raise StoreError(f"a key must be a text that is not empty, got {key!r} ({type(key).__name__})")
    return key


def store_reader(store: Store) -> Callable[[str], Any]:
    """The function that `prefetch` calls with each key.

    Raises:
        TypeError: If `store` is not a store.
    """
    require_store("prefetch", store)
    return store.get


def require_store(method: str, store: object) -> None:
    """Raise TypeError unless `store` is a store."""
    if not isinstance(store, Store):
        raise TypeError(f"{method} needs a store, a subclass of squirrel_torch.Store, got {store!r} ({type(store).__name__})")
