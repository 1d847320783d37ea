"""Positions of an epoch that are left out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from squirrel_torch.checks import require_at_least

__all__ = ["NO_GAPS", "Gaps"]

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Gaps:
    """Positions of an epoch that nobody gets. Those that are left are counted on as if there were no others: their places.

    Args:
        parts: Each the first position of a gap, and the one behind its last. They ascend, and don't touch.
    """

    parts: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        behind = -1
        for first, end in self.parts:
            require_at_least("the first position of a gap", first, behind + 1)
            require_at_least("the end of a gap", end, first + 1)
            behind = end

    def __bool__(self) -> bool:
        return bool(self.parts)

    @cached_property
    def total(self) -> int:
        """How many positions are left out."""
        return sum(end - first for first, end in self.parts)

    @property
    def end(self) -> int:
        """The position behind the last one that is left out; 0 if none is."""
        return self.parts[-1][1] if self.parts else 0

    @cached_property
    def _places(self) -> tuple[Integers, Integers]:
        """The place that each gap stands before, and how many positions are left out before each gap, and in all."""
        lengths = np.array([end - first for first, end in self.parts], np.int64)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return np.array([first for first, _ in self.parts], np.int64) - before[:-1], before

    def positions(self, places: Integers) -> Integers:
        """The positions of places; shape as that of `places`, int64."""
        if not self.parts:
            return places
        starts, before = self._places
        return places + before[np.searchsorted(starts, places, side="right")]

    def with_places(self, first: int, end: int) -> Gaps:
        """These gaps, and the places from `first` on before `end`, at least one."""
        low, last = self.positions(np.array([first, end - 1], np.int64)).tolist()
        high = last + 1
        apart = []
        for begin, behind in self.parts:
            if behind < low or begin > high:
                apart.append((begin, behind))
            else:
                low, high = min(low, begin), max(high, behind)
        return Gaps(tuple(sorted([*apart, (low, high)])))

    def left_out_after(self, place: int) -> int:
        """How many positions are left out at or behind a place."""
        starts, before = self._places
        return int(before[-1] - before[np.searchsorted(starts, place, side="left")])


NO_GAPS: Final = Gaps()
"""Nothing is left out."""
