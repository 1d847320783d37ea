"""Sources that can be read only once."""

from collections.abc import Iterator
from itertools import chain
from types import FunctionType
from typing import Generic, TypeVar

from squirrel_torch.errors import ExhaustedSourceError

__all__ = ["OneShot"]

T = TypeVar("T")


class OneShot(Generic[T]):
    """An iterator that says so when it is asked for a second pass, instead of giving an empty one.

    A class of its own may start again in its `__iter__`. It gets the chance: only if it then has nothing to give is it an
    iterator that gives its items once.
    """

    def __init__(self, iterator: Iterator[T]) -> None:
        self._iterator = iterator
        self._started = False

    @property
    def name(self) -> str:
        """What it is, and how it is called if it has a name."""
        kind, name = type(self._iterator).__qualname__, getattr(self._iterator, "__name__", "<>")
        return kind if name.startswith("<") else f"{kind} {name}"

    def __iter__(self) -> Iterator[T]:
        if not self._started:
            self._started = True
            return iter(self._iterator)
        own = getattr(type(self._iterator), "__iter__", None)
        if isinstance(own, FunctionType) and own is not Iterator.__iter__:
            again = _rest(iter(self._iterator))
            for item in again:
                return chain([item], again)
        raise ExhaustedSourceError(
            f"the source is a {self.name}: it gives its items once, and they have been asked for already; pass what can "
            "start again: a list, or the function that makes the iterator, without calling it"
        )


def _rest(iterator: Iterator[T]) -> Iterator[T]:
    # Not `yield from`: it would call `iter` once more, which starts again.
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        yield item
