"""How long whoever takes the batches of a pass has waited for them."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic, thread_time

__all__ = ["Waited", "Waits"]


@dataclass(frozen=True)
class Waited:
    """Where the time of a pass has gone, as the thread sees it that takes its batches.

    Args:
        waiting: Seconds in `next`, waiting for batches.
        working: Seconds between, working on them.
        batches: How many were given.
        since: When the pass began, by `time.monotonic`. Another pass has another one.
        computing: Of `working`, seconds of CPU time of the thread, until the last batch was asked for.
    """

    waiting: float = 0.0
    working: float = 0.0
    batches: int = 0
    since: float = 0.0
    computing: float = 0.0

    @property
    def share(self) -> float:
        """The share of the time that was waited, from 0 to 1."""
        seconds = self.waiting + self.working
        return self.waiting / seconds if seconds else 0.0


class Waits:
    """Counts that, one stamp of `time.monotonic` for each step in or out; another thread may look.

    It is `inside` the loader, or outside, and `since` when.
    """

    __slots__ = ("_began", "_computing", "_cpu", "_over", "_waiting", "_working", "batches", "inside", "since")

    def __init__(self, now: float) -> None:
        self._began = now
        self.since: float = now
        self._waiting = self._working = self._computing = 0.0
        self._cpu: float | None = None  # not known before the first batch: another thread may take them
        self.batches: int = 0
        self.inside: bool = False
        self._over = False

    @property
    def over(self) -> bool:
        """Whether the pass has ended."""
        return self._over

    @classmethod
    def none(cls) -> Waits:
        """Those of no pass."""
        waits = cls(monotonic())
        waits.ended(waits.since)
        return waits

    def asked(self, now: float) -> None:
        """A batch was asked for."""
        self._working += now - self.since
        if self._cpu is not None:
            self._computing += thread_time() - self._cpu
        self.since, self.inside = now, True

    def given(self, now: float) -> None:
        """It was given."""
        self._waiting += now - self.since
        self.since, self.inside = now, False
        self._cpu = thread_time()
        self.batches += 1

    def ended(self, now: float) -> None:
        """There are no more."""
        if not self._over:
            if self.inside:
                self._waiting += now - self.since
            else:
                self._working += now - self.since
            self.since, self.inside, self._over = now, False, True

    def read(self) -> Waited:
        """The figures until now, or until the end of the pass."""
        running = 0.0 if self._over else monotonic() - self.since
        inside = self.inside
        waiting = self._waiting + (running if inside else 0.0)
        working = self._working + (0.0 if inside else running)
        return Waited(waiting, working, self.batches, self._began, self._computing)
