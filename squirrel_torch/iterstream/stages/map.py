"""One item in, one or several items out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from squirrel_torch.checks import require_callable
from squirrel_torch.execution.numba import compiled, require_numba
from squirrel_torch.iterstream.stage import Stage

if TYPE_CHECKING:
    from dask.delayed import Delayed

__all__ = ["DaskMap", "FlatMap", "Flatten", "Map", "NumbaMap"]

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Map(Stage[T, U]):
    """`callback` of each item. Order: kept. Holds: nothing. State: none."""

    callback: Callable[[T], U]
    one_to_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_callable("callback", self.callback)

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        callback = self.callback
        for item in items:
            yield callback(item)


@dataclass(frozen=True)
class FlatMap(Stage[T, U]):
    """Each item of what `callback` gives for each item. Order: kept. Holds: one result. State: none."""

    callback: Callable[[T], Iterable[U]]

    def __post_init__(self) -> None:
        require_callable("callback", self.callback)

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        callback = self.callback
        for item in items:
            yield from callback(item)


@dataclass(frozen=True)
class Flatten(Stage[Iterable[T], T]):
    """The items of the items. Order: kept. Holds: one item. State: none."""

    def apply(self, items: Iterator[Iterable[T]]) -> Iterator[T]:
        for item in items:
            yield from item


@dataclass(frozen=True)
class NumbaMap(Stage[T, U]):
    """`callback` of each item, compiled by numba where it can be. Order: kept. Holds: nothing. State: none."""

    callback: Callable[[T], U]
    one_to_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_callable("callback", self.callback)
        require_numba()

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        return Map(compiled(self.callback)).apply(items)


@dataclass(frozen=True)
class DaskMap(Stage[T, Any]):
    """A `dask.delayed` of `callback` and each item. Order: kept. Holds: nothing. State: none."""

    callback: Callable[[T], Any]
    one_to_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_callable("callback", self.callback)

    def apply(self, items: Iterator[T]) -> Iterator[Delayed]:
        from squirrel_torch.execution.dask import delayed

        delay = delayed(self.callback)
        for item in items:
            yield delay(item)
