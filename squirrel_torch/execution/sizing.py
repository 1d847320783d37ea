"""How many items travel together."""

from __future__ import annotations

from collections import deque
from math import inf

__all__ = ["ChunkSize"]


class ChunkSize:
    """The size of chunks, from how long items were seen to take.

    A chunk should take about ten times as long as sending it costs, so that sending is a tenth of the work. What counts is the
    slowest but one of the last chunks, about one for each worker: a slow item holds up those behind it in its chunk, but a
    thread that had to wait for its turn once is no slow item. It grows at most fourfold at a time, and shrinks at once. When
    items that were fast become slow in the middle of a chunk, the callee gives back the rest of it after `limit` seconds.

    Args:
        overhead: Seconds that it costs to send a chunk and get it back.
        workers: How many calls run at a time.
        buffer: How many items may be in flight.
        fixed: The size, if it is not to be found.
    """

    def __init__(self, overhead: float, workers: int, buffer: int, fixed: int | None) -> None:
        self._worth = 10 * overhead
        self._call = overhead
        self._last: deque[float] = deque(maxlen=max(8, workers))
        self.workers = workers
        self.buffer = buffer
        self.fixed = fixed
        self.size = min(fixed or 1, buffer)
        self.limit = inf if fixed is not None else 4 * self._worth

    def measured(self, count: int, seconds: float) -> None:
        """Learn from a chunk of `count` items that took `seconds`."""
        if self.fixed is not None or not count:
            return
        last = self._last
        last.append(max(0.0, seconds - self._call) / count)
        if len(last) < (last.maxlen or 0):
            return
        wanted = self._worth / max(sorted(last)[-2], 1e-9)
        # Where all that may be in flight is worth less than two chunks, workers beside each other gain nothing.
        most = self.buffer // 2 if wanted * 2 > self.buffer else self.buffer // (self.workers + 1)
        self.size = max(1, min(int(wanted) + 1 if wanted > 1 else 1, most, 4 * self.size))
