"""How many items travel together."""

from __future__ import annotations

from collections import deque
from math import inf

__all__ = ["ChunkSize"]

_FOURFOLD = 4


class ChunkSize:
    """The size of chunks, from how long items were seen to take.

    A chunk should take about ten times as long as sending it costs, so that sending is a tenth of the work. What counts is the
    slowest but one of the last chunks, about one for each worker: a slow item holds up those behind it in its chunk, but a
    thread that had to wait for its turn once is no slow item. A tenth of what sending costs is no time of the items, however
    small the chunk. A chunk of four times as many items, or more, knows better than those before it: so the first ones, for
    which a callback may have to be loaded, are soon forgotten. The size grows at most fourfold at a time, to no more than four
    times what has been tried, and shrinks at once. When items that were fast become slow in the middle of a chunk, the callee
    gives back the rest of it after `limit` seconds.

    Args:
        overhead: Seconds that it costs to send a chunk and get it back.
        workers: How many calls run at a time.
        buffer: How many items may be in flight.
        fixed: The size, if it is not to be found.
    """

    def __init__(self, overhead: float, workers: int, buffer: int, fixed: int | None) -> None:
        self._worth = 10 * overhead
        self._least = overhead / 10
        self._enough = max(8, workers)
        self._last: deque[tuple[int, float]] = deque(maxlen=self._enough)
        self.workers = workers
        self.buffer = buffer
        self.fixed = fixed
        self.size: int = min(fixed or 1, buffer)
        self.limit: float = inf if fixed is not None else 4 * self._worth

    def measured(self, count: int, seconds: float) -> None:
        """Learn from a chunk of `count` items that took `seconds`."""
        if self.fixed is not None or not count:
            return
        last = self._last
        while len(last) > 1 and _FOURFOLD * last[0][0] <= count:
            last.popleft()
        last.append((count, max(0.0, seconds - self._least) / count))
        if len(last) < self._enough and sum(number for number, _ in last) < self._enough:
            return
        wanted = self._worth / max(sorted(time for _, time in last)[-2], 1e-9)
        # Where all that may be in flight is worth less than two chunks, workers beside each other gain nothing.
        most = self.buffer // 2 if wanted * 2 > self.buffer else self.buffer // (self.workers + 1)
        seen = max(number for number, _ in last)
        self.size = max(1, min(int(wanted) + 1 if wanted > 1 else 1, most, _FOURFOLD * min(self.size, seen)))
