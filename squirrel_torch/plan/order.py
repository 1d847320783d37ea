"""Which item comes at which position of a pass: orders, and what stages make of them.

An order is a function from positions to ids, the numbers of a source's items. Any position can be asked for, in any order
and many at once; nothing of the size of the source is ever made.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from squirrel_torch.checks import require_at_least, require_callable
from squirrel_torch.plan.passes import Passes
from squirrel_torch.plan.permutation import SIZE_LIMIT, Key, permute

if TYPE_CHECKING:
    from squirrel_torch.sharding import Shard

__all__ = ["Applied", "Looped", "Order", "Permuted", "Skipped", "Straight", "Strided", "Taken"]

Integers = npt.NDArray[np.int64]


class Order(ABC):
    """Which item comes at which position. Subclasses are frozen dataclasses.

    What they work out on the way they may keep in their `__dict__`; it is left out when they are pickled.
    """

    @property
    @abstractmethod
    def length(self) -> int | None:
        """How many positions there are; None if they don't end."""

    @property
    @abstractmethod
    def span(self) -> int:
        """The ids are numbers in [0, span)."""

    @abstractmethod
    def at(self, positions: Integers) -> Integers:
        """Like `ids`, for positions that are known to be there."""

    @property
    def endless(self) -> bool:
        """Whether the length is None, where it is easier to tell than the length."""
        return self.length is None

    @property
    def steady(self) -> bool:
        """Whether the order of another pass or seed has the same length: no random number decides it."""
        return True

    @property
    def least(self) -> int:
        """No order of another pass or seed is shorter than this."""
        return sys.maxsize if self.endless else self.length or 0

    def ids(self, positions: npt.ArrayLike) -> Integers:
        """The ids of the items at `positions`.

        Args:
            positions: Numbers in [0, length), in any order, shape `[n]`, integers.

        Returns:
            Numbers in [0, span), shape `[n]`, int64. It may be read-only.

        Raises:
            TypeError: If the positions are not integers.
            IndexError: If there is no such position.
        """
        asked = np.asarray(positions)
        if asked.size == 0:
            return np.empty(asked.shape, np.int64)
        if not np.issubdtype(asked.dtype, np.integer):
            raise TypeError(f"positions must be integers, got {asked.dtype}")
        first, last = int(asked.min()), int(asked.max())
        if first < 0 or not self._reaches(last):
            raise IndexError(f"positions must be from 0 to {self.length} - 1, got {first if first < 0 else last}")
        return self.at(asked.astype(np.int64, copy=False))

    def _reaches(self, position: int) -> bool:
        """Whether there is such a position, where it is easier to tell than the length."""
        return self.length is None or position < self.length

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Straight(Order):
    """Items 0 to `count` - 1, as they are."""

    count: int

    def __post_init__(self) -> None:
        require_at_least("count", self.count, 0)

    @property
    def length(self) -> int:
        return self.count

    @property
    def span(self) -> int:
        return self.count

    def at(self, positions: Integers) -> Integers:
        return positions


@dataclass(frozen=True)
class Permuted(Order):
    """Items 0 to `count` - 1, the whole of them shuffled.

    Args:
        count: How many, 2^62 at most.
        key: What decides the order; see `permutation_key`.
    """

    count: int
    key: Key

    def __post_init__(self) -> None:
        require_at_least("count", self.count, 0)
        if self.count > SIZE_LIMIT:
            raise ValueError(f"count must not be above 2^62, got {self.count}")

    @property
    def length(self) -> int:
        return self.count

    @property
    def span(self) -> int:
        return self.count

    def at(self, positions: Integers) -> Integers:
        return permute(positions, self.count, self.key)


@dataclass(frozen=True)
class _Of(Order):
    """An order made from another one."""

    order: Order

    @property
    def span(self) -> int:
        return self.order.span

    @property
    def steady(self) -> bool:
        return self.order.steady


@dataclass(frozen=True)
class Taken(_Of):
    """The first `n` positions of an order."""

    n: int

    def __post_init__(self) -> None:
        require_at_least("n", self.n, 0)

    @property
    def length(self) -> int:
        # An order that is surely long enough need not say how long it is.
        long = self.order.endless or self.order.least >= self.n
        return self.n if long else min(self.n, self.order.length or 0)

    @property
    def steady(self) -> bool:
        return self.order.steady or self.order.least >= self.n

    @property
    def least(self) -> int:
        return min(self.n, self.order.least)

    def at(self, positions: Integers) -> Integers:
        return self.order.at(positions)

    def _reaches(self, position: int) -> bool:
        return position < self.n and self.order._reaches(position)


@dataclass(frozen=True)
class Skipped(_Of):
    """An order without its first `n` positions."""

    n: int

    def __post_init__(self) -> None:
        require_at_least("n", self.n, 0)

    @property
    def length(self) -> int | None:
        return None if self.order.length is None else max(0, self.order.length - self.n)

    @property
    def endless(self) -> bool:
        return self.order.endless

    @property
    def least(self) -> int:
        return max(0, self.order.least - self.n)

    def at(self, positions: Integers) -> Integers:
        return self.order.at(positions + self.n)

    def _reaches(self, position: int) -> bool:
        return self.order._reaches(position + self.n)


@dataclass(frozen=True)
class Strided(_Of):
    """Every `shard.count`-th position of an order, from `shard.index` on."""

    shard: Shard

    @property
    def length(self) -> int | None:
        return None if self.order.length is None else self._part(self.order.length)

    @property
    def endless(self) -> bool:
        return self.order.endless

    @property
    def least(self) -> int:
        return self._part(self.order.least)

    def _part(self, length: int) -> int:
        return max(0, -((self.shard.index - length) // self.shard.count))

    def at(self, positions: Integers) -> Integers:
        return self.order.at(positions * self.shard.count + self.shard.index)

    def _reaches(self, position: int) -> bool:
        return self.order._reaches(position * self.shard.count + self.shard.index)


@dataclass(frozen=True)
class Applied(Order):
    """`outer`, an order of the positions of `inner`: something that is ordered already, shuffled."""

    outer: Order
    inner: Order

    def __post_init__(self) -> None:
        if self.inner.length is not None and self.outer.span > self.inner.length:
            raise ValueError(f"the outer order is one of {self.outer.span} positions, the inner one has {self.inner.length}")

    @property
    def length(self) -> int | None:
        return self.outer.length

    @property
    def endless(self) -> bool:
        return self.outer.endless

    @property
    def span(self) -> int:
        return self.inner.span

    @property
    def steady(self) -> bool:
        return self.outer.steady and self.inner.steady

    @property
    def least(self) -> int:
        return min(self.outer.least, self.inner.least)

    def at(self, positions: Integers) -> Integers:
        return self.inner.at(self.outer.at(positions))


@dataclass(frozen=True)
class Looped(Order):
    """Several passes, each in an order of its own. They end early at a pass that is empty.

    Args:
        order_of_pass: Gives the order of a pass, numbered from 0: always the same one for a number. It is called with
            numbers up to that of the last pass that is asked for.
        times: How many passes; None: without end.
    """

    order_of_pass: Callable[[int], Order]
    times: int | None = None

    def __post_init__(self) -> None:
        require_callable("order_of_pass", self.order_of_pass)
        if self.times is not None:
            require_at_least("times", self.times, 0)

    @cached_property
    def _passes(self) -> Passes:
        return Passes(self.order_of_pass, self.times)

    @cached_property
    def length(self) -> int | None:
        return self._passes.total()

    @property
    def endless(self) -> bool:
        return self._passes.endless

    @property
    def span(self) -> int:
        return self._passes.order(0).span

    @cached_property
    def steady(self) -> bool:
        return self.endless or self.times == 0 or self._passes.order(0).steady

    @property
    def least(self) -> int:
        if self.steady:
            return super().least
        one = self._passes.order(0).least
        return one if self.times is None else min(sys.maxsize, one * self.times)

    def at(self, positions: Integers) -> Integers:
        return self._passes.at(*self._passes.locate(positions))

    def _reaches(self, position: int) -> bool:
        return self._passes.reaches(position)
