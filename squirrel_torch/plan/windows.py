"""A dataset in shards, shuffled so that few shards are read at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from squirrel_torch.checks import require_at_least
from squirrel_torch.plan.order import Order, Permuted
from squirrel_torch.plan.permutation import SIZE_LIMIT, Grid, Key, permute, scattered, subkey

__all__ = ["STREAMS", "Windowed"]

Integers = npt.NDArray[np.int64]

STREAMS = 60
"""Highly composite: a rank of W has streams of its own where W divides it, and W / gcd(W, STREAMS) ranks share them else."""

_LEAST_WINDOW = 16  # rows; smaller windows would hardly be shuffled
_BLOCK = 8192  # positions at a time


@dataclass(frozen=True, eq=False)
class Windowed(Order):
    """Shards in random order, laid end to end, cut into streams that are read side by side, each shuffled in windows.

    Position p is taken from stream p mod `streams`, at place p div `streams` of it, and within the window around that place
    from anywhere. So `streams` windows are open at a time. They are so long that nothing is mixed less than by a buffer of
    `size` samples: samples that were neighbours come `size` positions apart on average. Where that takes the whole dataset,
    the whole is permuted.

    Args:
        counts: Rows of each shard, shape `[shards]`. Ids count through the shards in this order.
        size: That of the buffer of a shuffle.
        key: That of `permutation_key`.
        streams: Into how many the dataset is cut. It decides the order: going on with an epoch needs the same.
    """

    counts: Integers
    size: int
    key: Key
    streams: int = STREAMS

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 1)
        require_at_least("streams", self.streams, 1)
        object.__setattr__(self, "counts", _checked(self.counts))

    @cached_property
    def length(self) -> int:
        return int(self.counts.sum())

    @property
    def span(self) -> int:
        return self.length

    @property
    def window(self) -> int:
        """Rows of a window; the last one of a stream may have up to twice as many.

        It is a product of two numbers that are nearly equal, so that its permutation needs no second attempts.
        """
        return Grid(max(_LEAST_WINDOW, -(-3 * self.size // self.streams))).size

    @property
    def whole(self) -> bool:
        """Whether the windows would cover everything."""
        return self.window * self.streams >= self.length

    @cached_property
    def _layout(self) -> _Layout | Permuted:
        return Permuted(self.length, self.key) if self.whole else _Layout(self)

    def at(self, positions: Integers) -> Integers:
        layout = self._layout
        if isinstance(layout, Permuted) or len(positions) <= _BLOCK:
            return layout.at(positions)
        return np.concatenate([layout.at(positions[at : at + _BLOCK]) for at in range(0, len(positions), _BLOCK)])


def _checked(counts: npt.ArrayLike | Sequence[int]) -> Integers:
    given = np.asarray(counts)
    if given.ndim != 1 or not (given.size == 0 or np.issubdtype(given.dtype, np.integer)):
        raise TypeError(f"counts must be a list of integers, got {given.dtype} of shape {given.shape}")
    if given.size and int(given.min()) < 0:
        raise ValueError(f"counts must not be negative, got {int(given.min())}")
    if given.size and int(given.max()) * given.size > SIZE_LIMIT and sum(given.tolist()) > SIZE_LIMIT:
        raise ValueError(f"counts must not add up to more than 2^62, got {sum(given.tolist())}")
    fixed = given.astype(np.int64)
    fixed.flags.writeable = False
    return fixed


class _Layout:
    """Where the streams and windows of a `Windowed` lie. Slot v holds the stream that gives the positions v mod `streams`."""

    def __init__(self, order: Windowed) -> None:
        total, slots, shards = order.length, order.streams, len(order.counts)
        self._total, self._slots = total, slots
        self._key = subkey(order.key, "rows")
        shuffled = permute(np.arange(shards), shards, subkey(order.key, "shards"))
        # Row o of the shuffled dataset is in shard j with starts[j] <= o < starts[j + 1], and has the id o + shifts[j].
        ends = np.cumsum(order.counts[shuffled])
        self._starts = ends - order.counts[shuffled]
        self._shifts = (np.cumsum(order.counts) - order.counts)[shuffled] - self._starts

        # Fewer shards than streams would be cut at the same places in each epoch: the cuts are moved along.
        self._turned = shards < slots
        turn = subkey(order.key, "turn")[0] % total if self._turned else 0
        cuts = np.array([total * slot // slots for slot in range(slots + 1)], np.int64)
        of_slot = permute(np.arange(slots), slots, subkey(order.key, "slots"))
        self._firsts = (cuts[of_slot] + turn) % total
        self._rounds = total // slots  # positions behind these are taken from the streams that are longer by one row
        self._longer = np.diff(cuts)[of_slot] - self._rounds
        self._long_slots = np.flatnonzero(self._longer)

        # The last window of a stream is longer than the others by what is left, and by the row that a longer stream has.
        self._rows, self._windows = order.window, self._rounds // order.window
        self._grid = Grid(self._rows)
        self._last_rows = self._rounds - (self._windows - 1) * self._rows
        self._last_grid = Grid(self._last_rows + 1)

    def at(self, positions: Integers) -> Integers:
        places, slots = self._places(positions)
        windows = np.minimum(places // self._rows, self._windows - 1)
        begins = windows * self._rows
        rows = self._shuffled(places - begins, windows, slots)
        rows += begins
        rows += self._firsts[slots]
        if self._turned:
            rows -= (rows >= self._total) * self._total
        rows += self._shifts[np.searchsorted(self._starts, rows, side="right") - 1]
        return rows

    def _shuffled(self, places: Integers, windows: Integers, slots: Integers) -> Integers:
        """Places within their windows, shuffled."""
        which = windows * self._slots + slots
        last = windows == self._windows - 1
        if not last.any():
            return scattered(places, self._rows, self._grid, which, self._key)
        ends, others = np.flatnonzero(last), np.flatnonzero(~last)
        rows = np.empty_like(places)
        rows[others] = scattered(places[others], self._rows, self._grid, which[others], self._key)
        sizes = self._last_rows + self._longer[slots[ends]]
        rows[ends] = scattered(places[ends], sizes, self._last_grid, which[ends], self._key)
        return rows

    def _places(self, positions: Integers) -> tuple[Integers, Integers]:
        """The place in its stream, and the slot, of each position."""
        places = positions // self._slots
        slots = positions - places * self._slots
        # The last round is not whole: only the longer streams have a row for it.
        late = np.flatnonzero(places == self._rounds)
        if len(late):
            slots[late] = self._long_slots[slots[late]]
        return places, slots
