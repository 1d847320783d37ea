"""What sink drives: samples on their way into a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from squirrel_torch.metrics import size_of

if TYPE_CHECKING:
    from squirrel_torch.storage.store import Store

__all__ = ["Group", "Writing", "Written"]


@dataclass(frozen=True)
class Written:
    """What a `sink` wrote.

    Args:
        rows: How many samples.
        shards: The names of the files that hold them, where the store has any.
        bytes: The size of these files; 0 where the store has none.
    """

    rows: int
    shards: tuple[str, ...] = ()
    bytes: int = 0


@dataclass(frozen=True)
class Group:
    """Samples of a stream that are written together.

    Args:
        first: The number of the first of them in the stream.
        samples: At least one.
        name: Of the file that is to hold them, where there is one.
    """

    first: int
    samples: list[Any]
    name: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of payload, by which it is sent to other processes."""
        return size_of(self.samples)


class Writing:
    """A stream on its way into a store that writes each sample by itself. `sink` drives it.

    Args:
        store: Where the samples go.
    """

    holds: int | None = None
    """How many groups a worker may have before it, so that the memory is bounded; None for what the user says."""

    resumed = 0
    """How many samples have been written by an earlier run of the same job."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows = 0

    def groups(self, items: Iterator[Any]) -> Iterator[Any]:
        """What is written in one go."""
        return items

    @property
    def write(self) -> Callable[[Any], Any]:
        """Writes a group, in whatever process; what it returns comes back to `receive`."""
        return self._store.set

    def receive(self, first: int, result: Any) -> int:
        """Take what `write` has returned for the group that begins with item `first`; how many samples that was."""
        self._rows += 1
        return 1

    def commit(self) -> Written:
        """Make it all readable."""
        self._store.flush()
        return Written(rows=self._rows)

    def abort(self) -> None:
        """Writing has failed."""
