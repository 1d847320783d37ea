"""Any function from an iterator to an iterator, as a stage."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from squirrel_torch.checks import require_callable
from squirrel_torch.iterstream.stage import Stage

__all__ = ["Piped", "ZipIndex"]

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Piped(Stage[T, U]):
    """What `function` makes of the stream. Order, Holds and State: the function's own."""

    function: Callable[..., Iterator[U]]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    holds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_callable("f", self.function)

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        result = self.function(items, *self.args, **self.kwargs)
        if not isinstance(result, Iterator):
            raise TypeError(
                f"{self.describe()}: the function must return an iterator, it returned {type(result).__name__}; "
                "write it as a generator or return iter(...)"
            )
        return result


@dataclass(frozen=True)
class ZipIndex(Stage[T, tuple[int | str, T]]):
    """(index, item), the index counted from 0 in each pass. Order: kept. Holds: nothing. State: a count."""

    pad_length: int | None = None
    needs_whole: ClassVar[bool] = True
    moves_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        from squirrel_torch.checks import require_at_least

        if self.pad_length is not None:
            require_at_least("pad_length", self.pad_length, 0)

    def apply(self, items: Iterator[T]) -> Iterator[tuple[int | str, T]]:
        if self.pad_length is None:
            yield from enumerate(items)
            return
        for index, item in enumerate(items):
            yield str(index).zfill(self.pad_length), item
