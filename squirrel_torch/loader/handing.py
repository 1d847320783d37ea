"""What handing batches over from workers takes, on both sides."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Final

from squirrel_torch.reporting import Home

__all__ = ["KIND", "Handed", "Handing"]

KIND: Final = "handing"
"""Of the notes."""

_FIRST: Final = 0.25
_EVERY: Final = 1.0


class Pace:
    """When a worker tells of itself: soon at first, so that something is known, and then once a second."""

    def __init__(self) -> None:
        self._every = _FIRST
        self._next = perf_counter() + self._every

    def due(self) -> bool:
        """Whether it is time to, and was not told."""
        now = perf_counter()
        if now < self._next:
            return False
        self._every = min(2 * self._every, _EVERY)
        self._next = now + self._every
        return True


class Handing:
    """What a worker sees of it, in one pass after the other.

    Args:
        home: The way to the main process.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self.begin()

    def begin(self) -> None:
        """A pass begins."""
        self._began = self._last = perf_counter()
        self._pace = Pace()
        self._packing = self._blocked = self._waiting = 0.0

    def blocked(self, since: float, held: int) -> None:
        """It waited until now for one of the `held` batches to be taken."""
        now = perf_counter()
        self._blocked += now - since
        self._level(now, held)

    def packed(self, since: float, held: int) -> None:
        """A batch was packed from `since` until now; `held` others have not been taken."""
        now = perf_counter()
        self._packing += now - since
        self._level(now, held)

    def _level(self, now: float, held: int) -> None:
        """So many were ready since the last time."""
        self._waiting += held * (now - self._last)
        self._last = now

    def told(self, *, last: bool) -> None:
        """Something is said to the main process: say this before, from time to time and at the end."""
        if self._pace.due() or last:
            ready = self._waiting / max(perf_counter() - self._began, 1e-9)
            self._home.send(KIND, {"packing": self._packing, "blocked": self._blocked, "ready": ready})


class Handed:
    """What the main process knows of it, in one pass."""

    def __init__(self) -> None:
        self._told: dict[int, dict[str, float]] = {}
        self.unpacking: float = 0.0
        """Seconds in which batches were copied out of shared memory."""
        self.size = 0
        """Bytes of all batches."""

    def take(self, worker: int, payload: Any) -> None:
        """What a worker has sent; the handler of its notes."""
        self._told[worker] = payload

    def total(self, name: str) -> float:
        """Of all workers."""
        return float(sum(told[name] for told in list(self._told.values())))
