"""Sources that can be read only once."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from squirrel_torch.errors import ExhaustedSourceError

__all__ = ["OneShot"]

T = TypeVar("T")


class OneShot(Generic[T]):
    """An iterator that says so when it is asked for a second pass, instead of giving an empty one."""

    def __init__(self, iterator: Iterator[T]) -> None:
        self._iterator = iterator
        self._started = False

    @property
    def name(self) -> str:
        """What it is, and how it is called if it has a name."""
        kind, name = type(self._iterator).__qualname__, getattr(self._iterator, "__name__", "<>")
        return kind if name.startswith("<") else f"{kind} {name}"

    def __iter__(self) -> Iterator[T]:
        if self._started:
            raise ExhaustedSourceError(
                f"the source is a {self.name}: it gives its items once, and they have been asked for already; pass what can "
                "start again: a list, or the function that makes the iterator, without calling it"
            )
        self._started = True
        return self._iterator
