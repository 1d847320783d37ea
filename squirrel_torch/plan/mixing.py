"""Several orders, mixed: which stream gives the item at a position, and which of its items.

The same items come in the same order as from `IterableSamplerSource` and `Multiplexer`, without an item being made.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from squirrel_torch.checks import require_callable
from squirrel_torch.plan.order import Order

__all__ = ["Branch", "InTurn", "Mixed"]

Integers = npt.NDArray[np.int64]
Branch = Callable[[int], Order]
"""Gives the order of a stream when it is opened for the first time (0), the second (1), ..."""


@dataclass(frozen=True)
class Mixed(Order):
    """Items of several streams. The ids of a stream are counted on from those of the stream before it.

    Args:
        branches: The streams.
    """

    branches: tuple[Branch, ...]

    def __post_init__(self) -> None:
        if not self.branches:
            raise ValueError("branches must hold at least one stream, got none")
        for branch in self.branches:
            require_callable("a branch", branch)

    @cached_property
    def _first(self) -> list[Order]:
        """The streams as they are opened first."""
        return [branch(0) for branch in self.branches]

    @cached_property
    def _offsets(self) -> Integers:
        return np.cumsum([0, *(order.span for order in self._first)], dtype=np.int64)

    @property
    def span(self) -> int:
        return int(self._offsets[-1])

    @property
    def length(self) -> int | None:
        return None if self.endless else sum(order.length or 0 for order in self._first)

    @cached_property
    def endless(self) -> bool:
        return any(order.endless for order in self._first)

    @cached_property
    def steady(self) -> bool:
        return self.endless or all(order.steady for order in self._first)

    @property
    def least(self) -> int:
        return min(sys.maxsize, sum(order.least for order in self._first))

    @cached_property
    def _lengths(self) -> Integers:
        """The lengths of the streams; of those without end, a number that is never reached."""
        return np.array([sys.maxsize if order.length is None else order.length for order in self._first], np.int64)

    @abstractmethod
    def _found(self, positions: Integers) -> tuple[Integers, Integers]:
        """The stream of each position, and how often that stream was asked for an item before."""

    def _of_branch(self, branch: int, turns: Integers) -> Integers:
        """What a stream gives when it was asked `turns` times before: ids of its own."""
        return self._first[branch].at(turns)

    def at(self, positions: Integers) -> Integers:
        if not len(positions):
            return positions
        branches, turns = self._found(positions)
        ids = self._offsets[branches]
        for branch in np.flatnonzero(np.bincount(branches)).tolist():
            own = np.flatnonzero(branches == branch)
            ids[own] += self._of_branch(branch, turns[own])
        return ids


@dataclass(frozen=True)
class InTurn(Mixed):
    """One item of each stream after the other; a stream that is exhausted drops out. As `ROUND_ROBIN` of a Multiplexer."""

    @cached_property
    def _parts(self) -> tuple[Integers, Integers, Integers, Integers]:
        """Parts in which the same streams are there: first positions, first rounds, how many streams, and which."""
        rounds = np.unique(np.append(self._lengths, 0))[:-1]  # at the last number all have ended
        there = self._lengths[None, :] > rounds[:, None]
        widths = there.sum(1)
        firsts = np.append(0, np.cumsum(np.diff(rounds) * widths[:-1]))[: len(rounds)]
        return firsts, rounds, widths, np.argsort(~there, axis=1, kind="stable")

    def _found(self, positions: Integers) -> tuple[Integers, Integers]:
        firsts, rounds, widths, streams = self._parts
        parts = np.searchsorted(firsts, positions, side="right") - 1
        within = positions - firsts[parts]
        turns = within // widths[parts]
        return streams[parts, within - turns * widths[parts]], rounds[parts] + turns
