"""What became of the calls of a stage, added up while they come back."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import ref

from squirrel_torch.execution.call import Outcome
from squirrel_torch.histogram import Histogram

if TYPE_CHECKING:
    from squirrel_torch.execution.flow import Flow

__all__ = ["Tally"]


class Tally:
    """The calls of one stage in one run.

    It is added to by whoever delivers, once for each chunk, and may be read by anybody.
    """

    def __init__(self) -> None:
        self.place: str = ""
        self.workers: int = 0
        self.count: int = 0
        self.worked: float = 0.0
        self.cpu: float | None = 0.0
        self.away: float = 0.0
        self.retries: int = 0
        self.times: Histogram = Histogram()
        self._flow: ref[Flow] | None = None

    def begins(self, flow: Flow) -> None:
        """The calls come from this flow now."""
        self._flow = ref(flow)
        self.place, self.workers = flow.place.kind, flow.place.workers

    @property
    def flow(self) -> Flow | None:
        """Where the items in flight are, if they are anywhere."""
        return None if self._flow is None else self._flow()

    def add(self, outcome: Outcome) -> None:
        """A chunk is back."""
        if not (count := outcome.count):
            return
        self.count += count
        self.worked += outcome.worked
        self.cpu = None if self.cpu is None or outcome.cpu is None else self.cpu + outcome.cpu
        self.away += max(outcome.seconds - outcome.worked, 0.0)
        self.retries += outcome.retries
        self.times.add(outcome.worked / count, count)
