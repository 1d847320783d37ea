"""Samples in the memory of this process."""

from collections.abc import Iterator
from typing import Any

from squirrel_torch.errors import SampleNotFoundError
from squirrel_torch.storage.sample import check_sample
from squirrel_torch.storage.store import Store, check_key

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """Samples in a dict. They are kept as they are: `get` returns the very object that `set` was given.

    A process that is forked or spawned gets a copy of its own.

    Example:
        >>> store = MemoryStore()
        >>> store.set({"label": 3}, key="first")
        'first'
        >>> store.get("first"), len(store), "second" in store
        ({'label': 3}, 1, False)
    """

    shared = False

    def __init__(self) -> None:
        self._samples: dict[str, Any] = {}

    def set(self, value: Any, key: str | None = None) -> str:
        """Keep a sample; see `Store.set`."""
        check_sample(value)
        key = self._new_key() if key is None else check_key(key)
        self._samples[key] = value
        return key

    def get(self, key: str) -> Any:
        """The sample under `key`; see `Store.get`."""
        try:
            return self._samples[key]
        except (KeyError, TypeError):
            raise SampleNotFoundError(f"no sample under {key!r} in {self!r}") from None

    def __delitem__(self, key: str) -> None:
        """Remove the sample under `key`.

        Raises:
            SampleNotFoundError: If there is none.
        """
        try:
            del self._samples[key]
        except (KeyError, TypeError):
            raise SampleNotFoundError(f"no sample under {key!r} in {self!r}") from None

    def __len__(self) -> int:
        return len(self._samples)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self._samples

    def _iterate_keys(self) -> Iterator[str]:
        # A snapshot: writers may go on while somebody reads.
        return iter(list(self._samples))

    def __repr__(self) -> str:
        return f"<MemoryStore of {len(self)} samples>"
