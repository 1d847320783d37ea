"""Mixes whose next stream is drawn.

The draws come in blocks, so blocks are what is counted, found and looked into: finding a far position takes a few numpy calls
for each block before it, once.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from squirrel_torch.checks import require_at_least
from squirrel_torch.plan.mixing import Mixed
from squirrel_torch.plan.passes import Passes
from squirrel_torch.seeding import BLOCK, Path, Seed, uniforms

__all__ = ["ByDraws", "Drawn", "Sampled", "pick_all"]

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_KEPT = 4  # blocks of draws
_ALL_AT_ONCE = (BLOCK,)
_IN_PIECES = (16, 128, 1024, BLOCK)  # where the lengths of openings are drawn, no more are asked for than needed
_AFTER_AN_END = 256  # draws that are looked at behind the end of a stream: another one may end soon


class _Mark(NamedTuple):
    """What is known before a block of draws: items given, how often each stream was asked, whether all is over."""

    items: int
    asked: Integers
    over: bool


@dataclass(frozen=True)
class ByDraws(Mixed):
    """The stream of each item is drawn, by draws that belong to (seed, epoch, path).

    A stream that is exhausted is found to be so when it is asked once more: that draw gives no item. How often each stream
    was asked is noted at every block of draws that has been gone through; a block is looked into when its items are needed.

    Args:
        branches: The streams.
        weights: How likely each stream is, positive, adding up to about 1.
        seed: Of the mix.
        epoch: Which epoch it is.
        path: Where in the chain the mix stands.
    """

    weights: tuple[float, ...]
    seed: Seed
    epoch: int
    path: Path

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.weights) != len(self.branches):
            raise ValueError(f"weights must hold a number for each of {len(self.branches)} streams, got {len(self.weights)}")
        if not all(0 < weight < inf for weight in self.weights):
            raise ValueError(f"weights must all be positive, got {list(self.weights)!r}")

    @abstractmethod
    def _chosen(self, draws: npt.NDArray[np.float64], asked: Integers) -> tuple[Integers, bool]:
        """The streams that a block of draws asks, up to the end of the mix, and whether that has come."""

    @abstractmethod
    def _given(self, branch: int, asked: int) -> int:
        """How many items a stream has given when it was asked so often."""

    @abstractmethod
    def _gives(self, branch: int, turns: Integers) -> Flags:
        """Whether a stream gives an item when it was asked `turns` times before."""

    @cached_property
    def _marks(self) -> dict[int, _Mark]:
        # What is added is a function of the block's number, so that threads may both add.
        return {0: _Mark(0, np.zeros(len(self.branches), np.int64), over=False)}

    @cached_property
    def _block(self) -> Callable[[int], tuple[Integers, Integers]]:
        return lru_cache(maxsize=_KEPT)(self._looked_into)

    def _draws(self, block: int) -> npt.NDArray[np.float64]:
        return uniforms(self.seed, self.epoch, self.path, block)

    def _reaches(self, position: int) -> bool:
        return self._gone_through(position).items > position

    def _gone_through(self, position: int) -> _Mark:
        """Go through blocks until `position` lies in one of them, or to the end; what is known then."""
        marks, block = self._marks, len(self._marks) - 1
        while (mark := marks[block]).items <= position and not mark.over:
            chosen, over = self._chosen(self._draws(block), mark.asked)
            asked = mark.asked + np.bincount(chosen, minlength=len(self.branches))
            items = sum(self._given(branch, total) for branch, total in enumerate(asked.tolist()))
            block += 1
            marks[block] = _Mark(items, asked, over)
        return mark

    def _found(self, positions: Integers) -> tuple[Integers, Integers]:
        low, high = int(positions.min()), int(positions.max())
        self._gone_through(high)
        marks = self._marks
        before = range(len(marks))
        first = bisect_right(before, low, key=lambda block: marks[block].items) - 1
        last = bisect_right(before, high, lo=first, key=lambda block: marks[block].items) - 1
        if first == last:
            branches, turns = self._block(first)
            places = positions - marks[first].items
            return branches[places], turns[places]
        starts = np.array([marks[block].items for block in range(first, last + 1)], np.int64)
        blocks = np.searchsorted(starts, positions, side="right") - 1
        branches, turns = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks).tolist():
            own = np.flatnonzero(blocks == block)
            places = positions[own] - starts[block]
            branches[own], turns[own] = (found[places] for found in self._block(first + block))
        return branches, turns

    def _looked_into(self, block: int) -> tuple[Integers, Integers]:
        """The stream of each item of a block of draws, and how often it was asked before."""
        asked = self._marks[block].asked
        chosen, _ = self._chosen(self._draws(block), asked)
        turns = np.empty_like(chosen)
        gives = np.empty(len(chosen), np.bool_)
        for branch in np.flatnonzero(np.bincount(chosen)).tolist():
            own = np.flatnonzero(chosen == branch)
            turns[own] = before = asked[branch] + np.arange(len(own))
            gives[own] = self._gives(branch, before)
        return chosen[gives], turns[gives]


@dataclass(frozen=True)
class Sampled(ByDraws):
    """Streams are drawn by their weights until all are exhausted. As an `IterableSamplerSource`, whose `probs` are the weights.

    A stream drops out when it is exhausted.
    """

    def _chosen(self, draws: npt.NDArray[np.float64], asked: Integers) -> tuple[Integers, bool]:
        left = np.flatnonzero(asked <= self._lengths).tolist()
        pieces: list[Integers] = [np.empty(0, np.int64)]
        at, look = 0, BLOCK
        while left and at < len(draws):
            picked = pick_all([self.weights[branch] for branch in left], draws[at : at + look])
            piece = np.array(left)[picked]
            end = self._first_end(piece, asked)
            look *= 2
            if end is not None:
                piece, look = piece[: end + 1], _AFTER_AN_END
                left.remove(int(piece[end]))
            pieces.append(piece)
            asked = asked + np.bincount(piece, minlength=len(self.branches))
            at += len(piece)
        return np.concatenate(pieces), not left

    def _first_end(self, chosen: Integers, asked: Integers) -> int | None:
        """The first draw that finds a stream exhausted."""
        totals = asked + np.bincount(chosen, minlength=len(self.branches))
        ends = [
            np.flatnonzero(chosen == branch)[self._lengths[branch] - asked[branch]]
            for branch in np.flatnonzero((totals > self._lengths) & (asked <= self._lengths))
        ]
        return int(min(ends)) if ends else None

    def _given(self, branch: int, asked: int) -> int:
        return min(asked, int(self._lengths[branch]))

    def _gives(self, branch: int, turns: Integers) -> Flags:
        gives: Flags = turns < self._lengths[branch]
        return gives

    def _reaches(self, position: int) -> bool:
        return self.endless or position < (self.length or 0)


@dataclass(frozen=True)
class Drawn(ByDraws):
    """Streams are drawn by their weights; one that is exhausted is opened again. As `SAMPLING` of a Multiplexer.

    The mix ends when each stream has been exhausted once, or one for the `max_reinits`-th time. Its length is drawn as well:
    asking for it goes through the whole mix, about 0.1 ms for 4096 items. `UNIFORM_WITH_REPLACEMENT` has equal weights.

    Args:
        branches: The streams.
        weights: A Multiplexer's `sampling_probas`.
        seed: Of the mix.
        epoch: Which epoch it is.
        path: Where in the chain the mix stands.
        max_reinits: None: no limit.
    """

    max_reinits: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_reinits is not None:
            require_at_least("max_reinits", self.max_reinits, 1)

    @cached_property
    def _openings(self) -> list[Passes]:
        """Of each stream, its openings one behind the other, each followed by the turn that finds it exhausted."""
        return [Passes(branch, gap=1) for branch in self.branches]

    @cached_property
    def length(self) -> int | None:
        if self.endless:
            return None
        return self._gone_through(sys.maxsize).items

    @cached_property
    def endless(self) -> bool:
        ends = [not order.endless for order in self._first]
        return not all(ends) and (self.max_reinits is None or not any(ends))

    @property
    def steady(self) -> bool:
        return self.endless

    @property
    def least(self) -> int:
        if self.endless:
            return sys.maxsize
        return int(all(order.least > 0 for order in self._first))

    def _chosen(self, draws: npt.NDArray[np.float64], asked: Integers) -> tuple[Integers, bool]:
        chosen = pick_all(self.weights, draws)
        for stop in _ALL_AT_ONCE if all(order.steady for order in self._first) else _IN_PIECES:
            totals = asked + np.bincount(chosen[:stop], minlength=len(self.branches))
            if ends := self._ends(chosen, asked, totals.tolist()):
                return chosen[: min(ends) + 1], True
        return chosen, False

    def _ends(self, chosen: Integers, asked: Integers, totals: list[int]) -> list[int]:
        """The draws that may end the mix, if it has ended when the streams were asked `totals` times."""
        exhausted = [openings.number_of(total) for openings, total in zip(self._openings, totals, strict=True)]
        most = sys.maxsize if self.max_reinits is None else self.max_reinits
        ends = [self._draw_of_end(chosen, asked, branch, most) for branch, times in enumerate(exhausted) if times >= most]
        if min(exhausted) > 0:
            ends.append(max(self._draw_of_end(chosen, asked, branch, 1) for branch in range(len(exhausted))))
        return ends

    def _draw_of_end(self, chosen: Integers, asked: Integers, branch: int, times: int) -> int:
        """The draw of a block that finds a stream exhausted for the `times`-th time; -1 for one of an earlier block."""
        turn = self._openings[branch].start(times) - 1 - int(asked[branch])
        return -1 if turn < 0 else int(np.flatnonzero(chosen == branch)[turn])

    def _given(self, branch: int, asked: int) -> int:
        return asked - self._openings[branch].number_of(asked)

    def _gives(self, branch: int, turns: Integers) -> Flags:
        openings = self._openings[branch]
        return openings.filled(*openings.locate(turns))

    def _of_branch(self, branch: int, turns: Integers) -> Integers:
        openings = self._openings[branch]
        return openings.at(*openings.locate(turns))


def pick_all(weights: Sequence[float], draws: npt.NDArray[np.float64]) -> Integers:
    """`squirrel_torch.iterstream.mix.pick` for many draws: to the last bit the same floats, in the same order."""
    target = draws * sum(weights)
    picked = np.zeros(len(draws), np.int64)
    for weight in weights[:-1]:
        target -= weight
        picked += target >= 0
    return picked
