"""The contract of a store."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from squirrel_torch.errors import StoreError

__all__ = ["Keys", "Store", "Written", "check_key", "store_reader", "store_writer"]


@dataclass(frozen=True)
class Written:
    """What a `sink` wrote.

    Args:
        samples: How many samples.
    """

    samples: int


class Keys:
    """The keys of a store, as a view: sized, and as often iterable as one likes.

    An iteration gives the keys that were there when it started.
    """

    def __init__(self, store: "Store") -> None:
        self._store = store

    def __iter__(self) -> Iterator[str]:
        return self._store._iterate_keys()

    def __len__(self) -> int:
        return len(self._store)

    def __contains__(self, key: object) -> bool:
        return key in self._store

    def __repr__(self) -> str:
        return f"<{len(self)} keys of {self._store!r}>"


class Store(ABC):
    """Samples under keys. All methods may be called from several threads at once.

    Samples are numbers, text, bytes, None, numpy arrays, torch tensors, and dicts, lists and tuples of these, nested as one
    likes; the keys of dicts are text.
    """

    @abstractmethod
    def set(self, value: Any, key: str | None = None) -> str:
        """Keep a sample.

        Args:
            value: The sample.
            key: Its key; a sample that has it already is replaced. By default a new one, which no other process makes.

        Returns:
            The key.

        Raises:
            SampleEncodingError: If the sample holds something that a store can't keep.
        """

    @abstractmethod
    def get(self, key: str) -> Any:
        """The sample under `key`.

        Raises:
            SampleNotFoundError: If there is none.
        """

    @abstractmethod
    def __delitem__(self, key: str) -> None:
        """Remove the sample under `key`.

        Raises:
            SampleNotFoundError: If there is none.
        """

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def __contains__(self, key: object) -> bool:
        """Whether there is a sample under `key`."""

    @abstractmethod
    def _iterate_keys(self) -> Iterator[str]:
        """The keys that are there now."""

    def keys(self) -> Keys:
        """The keys: sized, and as often iterable as one likes."""
        return Keys(self)

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


def store_writer(store: Store) -> Callable[[Any], str]:
    """The function that `sink` calls with each sample.

    Raises:
        TypeError: If `store` is not a store.
    """
    _require_store("sink", store)
    return store.set


def store_reader(store: Store) -> Callable[[str], Any]:
    """The function that `prefetch` calls with each key.

    Raises:
        TypeError: If `store` is not a store.
    """
    _require_store("prefetch", store)
    return store.get


def _require_store(method: str, store: object) -> None:
    if not isinstance(store, Store):
        raise TypeError(f"{method} needs a store, a subclass of squirrel_torch.Store, got {store!r} ({type(store).__name__})")
