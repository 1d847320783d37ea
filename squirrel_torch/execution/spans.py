"""Chunks as events of a recording."""

from __future__ import annotations

from time import perf_counter

from squirrel_torch.execution.call import Outcome
from squirrel_torch.execution.work import Chunk
from squirrel_torch.recording import CHUNK, Recorder

__all__ = ["ChunkSpans"]

_LONGEST = 200
"""Characters of a name."""

_EVERY = 5e-3
"""Seconds between two numbers of how much is in flight."""


class ChunkSpans:
    """What is recorded of one flow.

    Args:
        name: Of its callback.
    """

    def __init__(self, name: str) -> None:
        self._name = name[:_LONGEST]
        self._told = 0.0

    def back(self, recorder: Recorder, chunk: Chunk, outcome: Outcome) -> None:
        """A chunk is back: when and where its items were worked on."""
        failed, count = len(outcome.failures), outcome.count
        if count:
            ran = outcome.worker, chunk.sent, outcome.began, outcome.worked, perf_counter()
            recorder.put((CHUNK, self._name, *ran, chunk.start, count, failed, outcome.retries))

    def ended(self, recorder: Recorder) -> None:
        """None are any more."""
        if self._told:
            lane = f"{self._name}: items"
            recorder.counter(lane, lane, perf_counter(), {"in flight": 0})

    def counts(self, recorder: Recorder, in_flight: int, buffer: int) -> None:
        """How many items are in flight."""
        now = perf_counter()
        if now - self._told >= _EVERY:
            self._told = now
            lane = f"{self._name}: items"
            recorder.counter(lane, lane, now, {"in flight": in_flight})
            recorder.counter(lane, f"{self._name}: buffer", now, {"items": buffer})
