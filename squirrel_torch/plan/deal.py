"""Which positions of an epoch a rank gets, step by step."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from squirrel_torch.checks import require_at_least, require_int, require_one_of
from squirrel_torch.plan.gaps import NO_GAPS, Gaps

__all__ = ["Deal", "Tail"]

Tail = Literal["exact", "pad", "drop"]
"""What becomes of the last positions, where they don't make a whole step."""


@dataclass(frozen=True)
class Deal:
    """One epoch from place `start` on, dealt to ranks in steps. A place is a position, if none is left out.

    Step t owns the places [P, P + ranks * batch) with P = start + t * ranks * batch; rank r gets those with
    p mod ranks == r. So `start` is all that has to be known to go on with other numbers of ranks or samples.

    Args:
        length: Positions of the epoch; None: without end.
        start: The first place that is dealt, at most `count`.
        ranks: How many processes there are.
        batch: Samples per rank and step.
        tail: "exact": the last step is smaller; ranks may differ by one sample, and one that gets none makes a step less.
            "pad": it is filled up with positions from the beginning of the epoch. "drop": no rank gets a sample more than
            the others.
        keep_partial: With "drop": make a last step with a smaller batch, if there is one of equal size for all ranks.
        gaps: Positions that are left out, whoever they would be dealt to.
    """

    length: int | None
    start: int = 0
    ranks: int = 1
    batch: int = 1
    tail: Tail = "exact"
    keep_partial: bool = False
    gaps: Gaps = NO_GAPS

    def __post_init__(self) -> None:
        require_at_least("ranks", self.ranks, 1)
        require_at_least("batch", self.batch, 1)
        require_at_least("start", self.start, 0)
        if self.length is not None:
            require_at_least("length", self.length, 0)
            if self.gaps.end > self.length:
                raise ValueError(f"gaps must not be behind the end, which is {self.length}, got {self.gaps.parts}")
            if self.start > self.length - self.gaps.total:
                raise ValueError(f"start must not be behind the end, which is {self.count}, got {self.start}")
        require_one_of("tail", self.tail, get_args(Tail))

    @property
    def count(self) -> int | None:
        """How many places there are; None: without end."""
        return None if self.length is None else self.length - self.gaps.total

    @property
    def size(self) -> int:
        """Places of a whole step."""
        return self.ranks * self.batch

    def steps(self, rank: int) -> int | None:
        """How many steps a rank makes from `start` on; None: without end."""
        self._require(rank)
        count = self.count
        if count is None:
            return None
        whole, left = divmod(count - self.start, self.size)
        return whole + self._last(count - left, left, rank)

    @property
    def most_steps(self) -> int | None:
        """How many steps the rank makes that makes the most; None: without end."""
        counts = [self.steps(rank) for rank in range(self.ranks)]
        return None if self.length is None else max(count or 0 for count in counts)

    def _last(self, first: int, left: int, rank: int) -> bool:
        """Whether a rank makes one more step, of the `left` places that don't make a whole one."""
        if self.tail == "exact":
            return (rank - first) % self.ranks < left
        if self.tail == "pad":
            return left > 0
        return self.keep_partial and left >= self.ranks

    @property
    def dropped(self) -> int:
        """Positions of the epoch, from `start` on, that no rank gets, besides those in gaps."""
        count = self.count
        if count is None or self.tail != "drop":
            return 0
        left = (count - self.start) % self.size
        return left % self.ranks if self.keep_partial else left

    def positions(self, rank: int, step: int) -> npt.NDArray[np.int64]:
        """The positions of a batch, in the order in which they are delivered.

        Args:
            rank: Of whom, from 0.
            step: The number of the batch in the epoch, from 0.

        Returns:
            Numbers in [0, length), shape `[batch]`, or less in a last step, int64. They ascend, but for those that fill up
            a last step.

        Raises:
            IndexError: If the rank makes no such step.
        """
        dealt, count = self._dealt(rank, step), self.count
        # Only "pad" deals places behind the end.
        return self.gaps.positions(dealt if count is None or self.tail != "pad" else dealt % count)

    def real(self, rank: int, step: int) -> npt.NDArray[np.bool_]:
        """Which samples of a batch are the epoch's own: False for those that fill up. Shape `[batch]` or less, bool.

        Args:
            rank: Of whom, from 0.
            step: The number of the batch in the epoch, from 0.
        """
        dealt, count = self._dealt(rank, step), self.count
        return np.ones(len(dealt), np.bool_) if count is None else dealt < count

    def after(self, steps: int) -> int:
        """The first place that is not dealt yet after so many steps of all ranks."""
        require_at_least("steps", steps, 0)
        behind, count = self.start + steps * self.size, self.count
        return behind if count is None else min(behind, count)

    def without(self, first: int, last: int, made: int = 0, epoch: str = "the epoch") -> Gaps:
        """The gaps, if the steps from `first` on before `last` are left out too.

        Args:
            first: The first step to leave out.
            last: The step behind the last one.
            made: The number of the step that begins at `start`.
            epoch: Which one it is, for messages.

        Raises:
            ValueError: If there is no such step.
        """
        require_at_least("first", first, made)
        require_at_least("last", last, first + 1)
        most, count = self.most_steps, self.count
        if most is not None and last > made + most:
            raise ValueError(f"{epoch} has {made + most} steps, so the steps from {first} on before {last} can't be left out")
        end = self._end(self.start + (last - 1 - made) * self.size)
        return self.gaps.with_places(self.start + (first - made) * self.size, end if count is None else min(end, count))

    def _dealt(self, rank: int, step: int) -> npt.NDArray[np.int64]:
        steps = self.steps(rank)
        require_int("step", step)
        if step < 0 or (steps is not None and step >= steps):
            raise IndexError(f"rank {rank} makes {steps} steps, there is no step {step}")
        first = self.start + step * self.size
        return np.arange(first + (rank - first) % self.ranks, self._end(first), self.ranks, dtype=np.int64)

    def _end(self, first: int) -> int:
        """Where the step ends that begins at `first`, with what fills it up and without what is dropped."""
        end, count = first + self.size, self.count
        if count is None or end <= count or self.tail == "pad":
            return end
        left = count - first
        return first + (left // self.ranks * self.ranks if self.tail == "drop" else left)

    def _require(self, rank: int) -> None:
        require_int("rank", rank)
        if not 0 <= rank < self.ranks:
            raise IndexError(f"rank must be from 0 to {self.ranks - 1}, got {rank}")
