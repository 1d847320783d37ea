"""Passes that follow each other: in which one a position lies."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from squirrel_torch.plan.order import Order

__all__ = ["Passes"]

Integers = npt.NDArray[np.int64]

_KEPT = 4  # orders: those of the passes that a block of positions meets


class Passes:
    """The passes 0, 1, ... one behind the other, where each is followed by `gap` places that belong to it.

    Args:
        order_of_pass: Gives the order of a pass.
        times: How many there are; None: without end. They end early at a pass that is empty, if there is no gap.
        gap: Places behind the items of each.
    """

    def __init__(self, order_of_pass: Callable[[int], Order], times: int | None = None, gap: int = 0) -> None:
        self.order: Callable[[int], Order] = lru_cache(maxsize=_KEPT)(order_of_pass)
        self._times = times
        self._gap = gap
        # Where pass n begins, for passes of unequal length. What is added is a function of n, so that threads may both add.
        self._starts = {0: 0}
        first = self.order(0)
        self._each = first.length + gap if first.steady and first.length is not None else None
        self._endless = first.endless

    def reaches(self, place: int) -> bool:
        """Whether there is such a place."""
        if self._times == 0:
            return False
        if self._endless:
            return True
        if self._each is not None:
            return self._each > 0 and (self._times is None or place < self._each * self._times)
        return self._extended(place)

    @property
    def endless(self) -> bool:
        """Whether there is no last place."""
        if self._times == 0 or self._endless:
            return self._times != 0
        return self._times is None and self.order(0).least + self._gap > 0

    def total(self) -> int | None:
        """All places; None if they don't end.

        Passes whose length is drawn are gone through for it.
        """
        if self.endless:
            return None
        if self._each is not None:
            return self._each * (self._times or 0)
        for number in count() if self._times is None else range(self._times):
            if self.start(number + 1) == self.start(number):
                return self.start(number)
        return self.start(self._times or 0)

    def start(self, number: int) -> int:
        """The first place of a pass, if it and those before it are not endless."""
        if self._each is not None:
            return self._each * number
        for known in range(len(self._starts) - 1, number):
            self._starts[known + 1] = self._starts[known] + (self.order(known).length or 0) + self._gap
        return self._starts[number]

    def locate(self, places: Integers) -> tuple[Integers, Integers]:
        """The passes in which these places lie, and where in them; shapes as that of `places`, int64."""
        if self._endless:
            return np.zeros_like(places), places
        if self._each is not None:
            numbers = places // self._each
            return numbers, places - numbers * self._each
        self._extended(int(places.max(initial=0)))
        starts = self._known_starts()
        numbers = np.searchsorted(starts, places, side="right") - 1
        return numbers, places - starts[numbers]

    def number_of(self, place: int) -> int:
        """The pass in which a place lies."""
        if self._endless or self._each is not None:
            return place // self._each if self._each is not None else 0
        self._extended(place)
        return bisect_right(range(len(self._starts)), place, key=self._starts.__getitem__) - 1

    def filled(self, numbers: Integers, places: Integers) -> npt.NDArray[np.bool_]:
        """Which places in passes hold an item; the others are gaps."""
        if self._endless:
            return np.ones(len(places), np.bool_)
        if self._each is not None:
            return places < self._each - self._gap
        starts = self._known_starts()
        filled: npt.NDArray[np.bool_] = places < starts[numbers + 1] - starts[numbers] - self._gap
        return filled

    def at(self, numbers: Integers, positions: Integers) -> Integers:
        """The ids of positions in passes."""
        if not len(numbers):
            return positions
        low, high = int(numbers.min()), int(numbers.max())
        if low == high:
            return self.order(low).at(positions)
        ids = np.empty_like(positions)
        sequence = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[sequence])) + 1
        for part in np.split(sequence, cuts):
            ids[part] = self.order(int(numbers[part[0]])).at(positions[part])
        return ids

    def _known_starts(self) -> Integers:
        return np.array(list(self._starts.values()), np.int64)

    def _extended(self, place: int) -> bool:
        """Learn where passes begin until one begins behind `place`; whether there is one."""
        number = len(self._starts) - 1
        while self._starts[number] <= place:
            if number == self._times or self.start(number + 1) == self._starts[number]:
                return False
            number += 1
        return True
