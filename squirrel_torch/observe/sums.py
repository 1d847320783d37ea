"""What was seen of one place, added up: seconds, and calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from squirrel_torch.execution import Tally
from squirrel_torch.histogram import Histogram
from squirrel_torch.observe.figures import Calls

__all__ = ["CallSums", "Sums", "calls_of"]


@dataclass
class Sums:
    """Of one place: seconds, and of those of its work whose CPU time is known, both."""

    busy: float = 0.0
    known: float = 0.0
    cpu: float = 0.0
    upstream: float = 0.0
    downstream: float = 0.0
    in_flight: float = 0.0
    hungry: float = 0.0
    looked: float = 0.0


@dataclass
class CallSums:
    """What became of the calls of a place in some runs."""

    place: str = ""
    workers: int = 0
    count: int = 0
    wall: float = 0.0
    cpu: float | None = 0.0
    away: float = 0.0
    retries: int = 0
    skipped: int = 0
    times: Histogram | None = None
    buffer: int = 0

    def add(self, tally: Tally) -> None:
        """Those of one run."""
        self.place, self.workers = tally.place, max(tally.workers, self.workers)
        self.count += tally.count
        self.wall += tally.worked
        self.cpu = None if self.cpu is None or tally.cpu is None else self.cpu + tally.cpu
        self.away += tally.away
        self.retries += tally.retries
        self.times = tally.times.merged(self.times or Histogram())
        flow = tally.flow
        self.buffer = max(self.buffer, 0 if flow is None else flow.sizing.buffer)


def calls_of(parts: Sequence[CallSums], sums: Sums) -> Calls:
    """The calls of one place as figures.

    Args:
        parts: At least one; the last is that of the runs that go on, if some do.
        sums: Of the place.
    """
    cpus = [one.cpu for one in parts if one.count]
    times = Histogram()
    for one in parts:
        times = times.merged(one.times or Histogram())
    return Calls(
        place=parts[-1].place,
        workers=max(one.workers for one in parts),
        count=sum(one.count for one in parts),
        wall=sum(one.wall for one in parts),
        cpu=None if any(cpu is None for cpu in cpus) else sum(cpu or 0.0 for cpu in cpus),
        away=sum(one.away for one in parts),
        hungry=sums.hungry / sums.looked if sums.looked else 0.0,
        in_flight=sums.in_flight / sums.looked if sums.looked else 0.0,
        buffer=max(one.buffer for one in parts),
        times=times,
    )
