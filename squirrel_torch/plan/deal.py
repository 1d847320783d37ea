"""Which positions of an epoch a rank gets, step by step."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from squirrel_torch.checks import require_at_least, require_int

__all__ = ["Deal", "Tail"]

Tail = Literal["exact", "pad", "drop"]
"""What becomes of the last positions, where they don't make a whole step."""


@dataclass(frozen=True)
class Deal:
    """One epoch from position `start` on, dealt to ranks in steps.

    Step t owns the positions [P, P + ranks * batch) with P = start + t * ranks * batch; rank r gets those with
    p mod ranks == r. So `start` is all that has to be known to go on with other numbers of ranks or samples.

    Args:
        length: Positions of the epoch; None: without end.
        start: The first one that is dealt, at most `length`.
        ranks: How many processes there are.
        batch: Samples per rank and step.
        tail: "exact": the last step is smaller; ranks may differ by one sample, and one that gets none makes a step less.
            "pad": it is filled up with positions from the beginning of the epoch. "drop": no rank gets a sample more than
            the others.
        keep_partial: With "drop": make a last step with a smaller batch, if there is one of equal size for all ranks.
    """

    length: int | None
    start: int = 0
    ranks: int = 1
    batch: int = 1
    tail: Tail = "exact"
    keep_partial: bool = False

    def __post_init__(self) -> None:
        require_at_least("ranks", self.ranks, 1)
        require_at_least("batch", self.batch, 1)
        require_at_least("start", self.start, 0)
        if self.length is not None:
            require_at_least("length", self.length, 0)
            if self.start > self.length:
                raise ValueError(f"start must not be behind the end, which is {self.length}, got {self.start}")
        if self.tail not in get_args(Tail):
            raise ValueError(f"tail must be one of {', '.join(map(repr, get_args(Tail)))}, got {self.tail!r}")

    @property
    def size(self) -> int:
        """Positions of a whole step."""
        return self.ranks * self.batch

    def steps(self, rank: int) -> int | None:
        """How many steps a rank makes from `start` on; None: without end."""
        self._require(rank)
        if self.length is None:
            return None
        whole, left = divmod(self.length - self.start, self.size)
        return whole + self._last(self.length - left, left, rank)

    def _last(self, first: int, left: int, rank: int) -> bool:
        """Whether a rank makes one more step, of the `left` positions that don't make a whole one."""
        if self.tail == "exact":
            return (rank - first) % self.ranks < left
        if self.tail == "pad":
            return left > 0
        return self.keep_partial and left >= self.ranks

    @property
    def dropped(self) -> int:
        """Positions of the epoch, from `start` on, that no rank gets."""
        if self.length is None or self.tail != "drop":
            return 0
        left = (self.length - self.start) % self.size
        return left % self.ranks if self.keep_partial else left

    def positions(self, rank: int, step: int) -> npt.NDArray[np.int64]:
        """The positions of a batch, in the order in which they are delivered.

        Returns:
            Numbers in [0, length), shape `[batch]`, or less in a last step, int64. They ascend, but for those that fill up
            a last step.

        Raises:
            IndexError: If the rank makes no such step.
        """
        dealt = self._dealt(rank, step)
        # Only "pad" deals positions behind the end.
        return dealt if self.length is None or self.tail != "pad" else dealt % self.length

    def real(self, rank: int, step: int) -> npt.NDArray[np.bool_]:
        """Which samples of a batch are the epoch's own: False for those that fill up. Shape `[batch]` or less, bool."""
        dealt = self._dealt(rank, step)
        return np.ones(len(dealt), np.bool_) if self.length is None else dealt < self.length

    def after(self, steps: int) -> int:
        """The first position that is not dealt yet after so many steps of all ranks."""
        require_at_least("steps", steps, 0)
        behind = self.start + steps * self.size
        return behind if self.length is None else min(behind, self.length)

    def _dealt(self, rank: int, step: int) -> npt.NDArray[np.int64]:
        steps = self.steps(rank)
        require_int("step", step)
        if step < 0 or (steps is not None and step >= steps):
            raise IndexError(f"rank {rank} makes {steps} steps, there is no step {step}")
        first = self.start + step * self.size
        return np.arange(first + (rank - first) % self.ranks, self._end(first), self.ranks, dtype=np.int64)

    def _end(self, first: int) -> int:
        """Where the step ends that begins at `first`, with what fills it up and without what is dropped."""
        end = first + self.size
        if self.length is None or end <= self.length or self.tail == "pad":
            return end
        left = self.length - first
        return first + (left // self.ranks * self.ranks if self.tail == "drop" else left)

    def _require(self, rank: int) -> None:
        require_int("rank", rank)
        if not 0 <= rank < self.ranks:
            raise IndexError(f"rank must be from 0 to {self.ranks - 1}, got {rank}")
