"""Any function from an iterator to an iterator, as a stage."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import GeneratorType
from typing import Any, ClassVar, TypeVar

from squirrel_torch.checks import require_at_least, require_callable
from squirrel_torch.iterstream.stage import Following, Id, Stage, Step
from squirrel_torch.iterstream.stages.map import pair_of

__all__ = ["Piped", "ZipIndex"]

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Piped(Stage[T, U]):
    """What `function` makes of the stream. Order, Holds and State: the function's own."""

    function: Callable[..., Iterator[U]]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    needs_whole: ClassVar[bool | None] = None
    holds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_callable("f", self.function)

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        result = self.function(items, *self.args, **self.kwargs)
        if isinstance(result, GeneratorType):
            return result
        if not isinstance(result, Iterator):
            raise TypeError(
                f"{self.describe()}: the function must return an iterator, it returned {type(result).__name__}; "
                "write it as a generator or return iter(...)"
            )
        return self._pulled(result)

    def _pulled(self, result: Iterator[U]) -> Iterator[U]:
        # An iterator that is not Python's has no frame by which messages could tell whose error it was.
        for item in result:  # noqa: UP028  # `yield from` would close an iterator of the caller's
            yield item


@dataclass(frozen=True)
class ZipIndex(Stage[T, tuple[int | str, T]]):
    """(index, item), the index counted from 0 in each pass. Order: kept. Holds: nothing. State: a count."""

    pad_length: int | None = None
    needs_whole: ClassVar[bool | None] = True
    moves_only: ClassVar[bool] = True
    remembers: ClassVar[Mapping[str, str]] = {"next": "count"}

    def __post_init__(self) -> None:
        if self.pad_length is not None:
            require_at_least("pad_length", self.pad_length, 0)

    def apply(self, items: Iterator[T]) -> Iterator[tuple[int | str, T]]:
        return enumerate(items) if self.pad_length is None else self._padded(items, self.pad_length)

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        for index, (own, item) in enumerate(steps, memory.get("next", 0)):
            memory["next"] = index + 1
            yield (own, index), (self._written(index), item)

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return [pair_of(self, own)[0] for own in ids]

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        pairs = [pair_of(self, own) for own in ids]
        items = following.remake([own for own, _ in pairs])
        return [(self._written(index), item) for (_, index), item in zip(pairs, items, strict=True)]

    def _written(self, index: int) -> int | str:
        return index if self.pad_length is None else str(index).zfill(self.pad_length)

    def _padded(self, items: Iterator[T], length: int) -> Iterator[tuple[str, T]]:
        for index, item in enumerate(items):
            yield str(index).zfill(length), item
