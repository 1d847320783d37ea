"""Several items in, one list out: batches and sliding windows."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, ClassVar, TypeVar

from torch.utils.data import default_collate

from squirrel_torch.checks import require_at_least, require_callable
from squirrel_torch.describe import describe_item
from squirrel_torch.errors import StateError
from squirrel_torch.iterstream.stage import Context, Following, Id, Stage, Step
from squirrel_torch.storage import PartOfRows

__all__ = ["Batched", "Sliding"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batched(Stage[T, Any]):
    """Lists of `size` items, or what `collation_fn` makes of them.

    With torch's `default_collate` right behind a store that keeps columns, batches are made from these.

    Order: kept. Holds: one batch. State: none.
    """

    size: int
    collation_fn: Callable[[list[T]], Any] | None = None
    drop_last: bool = True
    holds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("batchsize", self.size, 1)
        if self.collation_fn is not None:
            require_callable("collation_fn", self.collation_fn)

    def start(self, upstream: Iterable[T], context: Context) -> Iterator[Any]:
        items = iter(upstream)
        if self.collation_fn is default_collate and isinstance(items, PartOfRows):
            batches = items.collated(self.size, self.drop_last)
            if batches is not None:
                return batches
        return self.apply(items)

    def apply(self, items: Iterator[T]) -> Iterator[Any]:
        size, collate = self.size, self.collation_fn
        for position in count():  # noqa: B007  # read by messages
            batch = list(islice(items, size))
            if not batch or (self.drop_last and len(batch) < size):
                return
            yield batch if collate is None else collate(batch)

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        size, collate = self.size, self.collation_fn
        while batch := list(islice(steps, size)):
            if self.drop_last and len(batch) < size:
                return
            items = [item for _, item in batch]
            yield tuple([own for own, _ in batch]), items if collate is None else collate(items)

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return _parents(self, ids, self.size)

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        return [batch if self.collation_fn is None else self.collation_fn(batch) for batch in _members(self, ids, following)]


def _parents(stage: Stage[Any, Any], ids: Sequence[Id], size: int) -> list[Id]:
    """The ids of all that is in some groups, each once."""
    for own in ids:
        if not isinstance(own, tuple) or not 0 < len(own) <= size:
            raise StateError(f"{describe_item(own)} is no id of an item of {stage.describe()}")
    return list(dict.fromkeys(member for own in ids if isinstance(own, tuple) for member in own if member is not None))


def _members(stage: Stage[Any, Any], ids: Sequence[Id], following: Following) -> Iterator[list[Any]]:
    """The items of each group, made again; None where the group has None."""
    known = stage.parents(ids) or ()
    items = dict(zip(known, following.remake(known), strict=True))
    return ([None if member is None else items[member] for member in own] for own in ids if isinstance(own, tuple))


@dataclass(frozen=True)
class Sliding(Stage[T, list[T | None]]):
    """Windows of `size` items, `stride` apart. Order: kept. Holds: one window. State: none.

    Window number n starts at item n * stride. Without `drop_last` those that reach over the end of the stream are given
    too, as far as they hold `min_size` items, or filled up with None.
    """

    size: int
    deepcopy: bool
    stride: int = 1
    drop_last: bool = True
    min_size: int = 1
    fill: bool = False
    needs_whole: ClassVar[bool | None] = True
    holds: ClassVar[bool] = True
    remembers: ClassVar[Mapping[str, str]] = {"held": "ids"}

    def __post_init__(self) -> None:
        require_at_least("window_size", self.size, 1)
        require_at_least("stride", self.stride, 1)
        require_at_least("min_window_size", self.min_size, 1)
        if self.stride > self.size:
            raise ValueError(f"stride must be at most window_size = {self.size}, got {self.stride}: items would be left out")
        if self.min_size > self.size:
            raise ValueError(f"min_window_size must be at most window_size = {self.size}, got {self.min_size}")

    def apply(self, items: Iterator[T]) -> Iterator[list[T | None]]:
        copy = deepcopy if self.deepcopy else list
        smallest = self.size if self.drop_last else 1 if self.fill else self.min_size
        window: deque[T | None] = deque(islice(items, self.size))
        for position in count():  # noqa: B007  # read by messages
            if len(window) < smallest or not window:
                return
            yield copy([*window, *([None] * (self.size - len(window) if self.fill else 0))])
            for _ in range(min(self.stride, len(window))):
                window.popleft()
            window.extend(islice(items, self.size - len(window)))

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        copy = deepcopy if self.deepcopy else list
        smallest = self.size if self.drop_last else 1 if self.fill else self.min_size
        held: list[Id] = memory.get("held", [])
        window: deque[Step] = deque(zip(held, following.remake(held), strict=True))
        if "held" in memory:  # the window that was given last
            self._advance(window, steps)
        else:
            window.extend(islice(steps, self.size))
        while window and len(window) >= smallest:
            ids = [own for own, _ in window]
            memory["held"] = ids
            missing = [None] * (self.size - len(window) if self.fill else 0)
            yield (*ids, *missing), copy([*(item for _, item in window), *missing])
            self._advance(window, steps)

    def _advance(self, window: deque[Step], steps: Iterator[Step]) -> None:
        for _ in range(min(self.stride, len(window))):
            window.popleft()
        window.extend(islice(steps, self.size - len(window)))

    def check(self, memory: Mapping[str, Any]) -> None:
        if len(memory.get("held", ())) > self.size:
            raise StateError(f"{self.describe()} can't hold {len(memory['held'])} items")

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return _parents(self, ids, self.size)

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        copy = deepcopy if self.deepcopy else list
        return [copy(window) for window in _members(self, ids, following)]
