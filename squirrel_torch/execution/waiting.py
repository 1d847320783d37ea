"""Items that have been pulled and wait to be put into a chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Waiting"]


class Waiting:
    """A queue for one thread that puts items in, and others, one at a time, that take several at once.

    It is a list: a chunk is a slice, where a deque would need a call for each item. Items that are put in can be taken while
    the next is still made.
    """

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._begin = 0  # what stands before has been taken

    def __len__(self) -> int:
        """How many there are; to whoever does not keep others from taking, less while they do."""
        return len(self._items) - self._begin

    def put(self, items: Iterator[Any]) -> None:
        """Put items in as they are made. What `items` raises is raised; those before it are in."""
        self._items.extend(items)

    def take(self, count: int) -> list[Any]:
        """The `count` oldest, of which there must be as many. Nothing of them is kept here."""
        items, begin = self._items, self._begin
        end = begin + count
        taken = items[begin:end]
        if 2 * end < len(items):
            items[begin:end] = [None] * count
            self._begin = end
        else:  # few enough to be moved: each is moved no more than once, on average
            del items[:end]
            self._begin = 0
        return taken

    def clear(self) -> None:
        """Drop all."""
        self._items.clear()
        self._begin = 0
