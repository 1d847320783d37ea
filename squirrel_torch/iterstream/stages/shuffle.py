"""Shuffling a stream through a buffer."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, ClassVar, TypeVar

import numpy as np

from squirrel_torch.checks import require_at_least
from squirrel_torch.errors import StateError
from squirrel_torch.iterstream.stage import Context, Following, Id, Stage, Step
from squirrel_torch.seeding import DEFAULT_SEED, Seed

__all__ = ["Shuffled"]

T = TypeVar("T")


@dataclass(frozen=True)
class Shuffled(Stage[T, T]):
    """Items leave a buffer of `size` in random order. Order: (seed, epoch). Holds: the buffer. State: the buffer.

    The first item is given once the buffer holds `initial`; until it is full, two items come in for each that leaves.
    From then on the place of the item that leaves is taken by the one that comes in.
    """

    size: int = 1000
    initial: int = 100
    seed: Seed = field(default=DEFAULT_SEED)
    moves_only: ClassVar[bool] = True
    holds: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    remembers: ClassVar[Mapping[str, str]] = {
        "held": "ids",
        "grown": "count",
        "full": "flag",
        "drawn": "count",
        "ending": "flag",
    }

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 2)
        require_at_least("initial", self.initial, 1)

    def check(self, memory: Mapping[str, Any]) -> None:
        held = len(memory.get("held", ()))
        full = memory.get("full") and not memory.get("ending")
        if held > self.size or ("drawn" in memory and full and held < self.size):
            raise StateError(f"{self.describe()} can't hold {held} items there")

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        """The items shuffled as in epoch 0."""
        return self._shuffled(items, Context())

    def start(self, upstream: Iterable[T], context: Context) -> Iterator[T]:
        return self._shuffled(iter(upstream), context)

    def _shuffled(self, items: Iterator[T], context: Context) -> Iterator[T]:
        size = self.size
        buffer = list(islice(items, min(self.initial, size)))
        if len(buffer) < size:
            growing = chain.from_iterable(block.tolist() for block in context.below("growing").uniforms(self.seed))
            for item in items:
                buffer.append(item)
                if len(buffer) == size:
                    break
                place = int(next(growing) * len(buffer))
                item, buffer[place] = buffer[place], buffer[-1]
                buffer.pop()
                buffer.extend(islice(items, 1))
                yield item
        places = ((block * size).astype(np.int64).tolist() for block in context.uniforms(self.seed))
        # The place comes first: zip would pull an item and lose it where the places end. They never end.
        for place, item in zip(chain.from_iterable(places), items):  # noqa: B905
            yield buffer[place]
            buffer[place] = item
        rest = chain.from_iterable(context.below("rest").uniforms(self.seed))
        for place in np.argsort(np.fromiter(rest, np.float64, len(buffer)), kind="stable").tolist():
            yield buffer[place]

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        context, size = following.context, self.size
        held: list[Id] = memory.setdefault("held", [])
        buffer = following.remake(held) if held else []
        if not memory.get("ending"):
            if not memory.get("full"):
                if not held:
                    self._fill(held, buffer, islice(steps, min(self.initial, size)))
                yield from self._growing(steps, memory, context.below("growing"), held, buffer)
            draws = memory.get("drawn", 0)
            places = ((block * size).astype(np.int64).tolist() for block in context.uniforms(self.seed, draws))
            for place, (own, item) in zip(chain.from_iterable(places), steps):  # noqa: B905  # they never end, as above
                given = held[place], buffer[place]
                held[place], buffer[place] = own, item
                draws += 1
                memory["drawn"] = draws
                yield given
            rest = chain.from_iterable(context.below("rest").uniforms(self.seed))
            order = np.argsort(np.fromiter(rest, np.float64, len(buffer)), kind="stable").tolist()
            order.reverse()  # the end of a list is where items leave it for nothing
            held[:], buffer = [held[place] for place in order], [buffer[place] for place in order]
            memory["ending"] = True
        while held:
            yield held.pop(), buffer.pop()

    def _fill(self, held: list[Id], buffer: list[Any], steps: Iterable[Step]) -> None:
        for own, item in steps:
            held.append(own)
            buffer.append(item)

    def _growing(
        self, steps: Iterator[Step], memory: dict[str, Any], context: Context, held: list[Id], buffer: list[Any]
    ) -> Iterator[Step]:
        """Until the buffer is full: two come in for each that leaves."""
        drawn = memory.get("grown", 0)
        growing = chain.from_iterable(block.tolist() for block in context.uniforms(self.seed, drawn))
        for own, item in steps if len(buffer) < self.size else ():
            held.append(own)
            buffer.append(item)
            if len(buffer) == self.size:
                break
            place = int(next(growing) * len(buffer))
            given = held[place], buffer[place]
            held[place], buffer[place] = held[-1], buffer[-1]
            del held[-1], buffer[-1]
            self._fill(held, buffer, islice(steps, 1))
            drawn += 1
            memory["grown"] = drawn
            yield given
        memory["full"] = True
