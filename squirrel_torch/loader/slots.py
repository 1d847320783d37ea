"""Where batches lie in shared memory until they are taken."""

from __future__ import annotations

from collections import deque
from typing import Final

from squirrel_torch.execution.memory import SharedMemory

__all__ = ["FIRST_BYTES", "Slots"]

FIRST_BYTES: Final = 4096
"""What is shared to begin with; it grows with the batches."""

_STEP: Final = 1 << 20
"""It grows by a quarter more than is needed, to a multiple of this."""


class Slots:
    """The worker's side of the memory: which parts of it hold batches that have not been taken.

    A batch gets the lowest place that is free, so that the same few pages are written again and again.

    Args:
        shared: The memory, of `FIRST_BYTES`.
        most_bytes: It grows no further.
    """

    def __init__(self, shared: SharedMemory, most_bytes: int) -> None:
        self.shared = shared
        self._most = most_bytes
        self._held: deque[tuple[int, int]] = deque()  # oldest first, which is taken first

    def __len__(self) -> int:
        """How many batches are held."""
        return len(self._held)

    def hold(self, size: int) -> int | None:
        """A place of `size` bytes for one more batch; None if there is no room. It is held either way."""
        start = 0
        for low, high in sorted(self._held):
            if start + size <= low:
                break
            start = max(start, high)
        fits = start + size <= self.shared.size or self._grown(start + size)
        self._held.append((start, start + size) if fits else (0, 0))
        return start if fits else None

    def _grown(self, size: int) -> bool:
        if size > self._most:
            return False
        try:
            self.shared.grow(min(-(-size * 5 // 4 // _STEP) * _STEP, self._most))
        except OSError:
            self._most = self.shared.size  # there is no more to be had
            return False
        return True

    def free_oldest(self) -> None:
        """The batch that was first has been taken."""
        self._held.popleft()

    def free_all(self) -> None:
        """Nobody will take them."""
        self._held.clear()
