"""What a loader does as events of a recording, here and in its workers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Final

from squirrel_torch import recording
from squirrel_torch.loader.line import Frame
from squirrel_torch.recording import BATCH, SPAN, Recorder
from squirrel_torch.reporting import Home

__all__ = ["BatchSpans", "inside", "made_batch"]

_EVERY: Final = 0.25
"""Seconds between two notes with events, about."""

_MOST: Final = 8 << 20
"""Bytes of events that wait for the next batch; of more than that is only told how many there were."""


class BatchSpans:
    """Those of a worker process. They go home with the notes.

    Args:
        home: The way there.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._records = False
        self._waiting = 0
        self._left_out = 0
        self._made = 0.0

    def records(self, on: bool) -> None:
        """Record from now on, or no more."""
        if on and not self._records:
            recording.attach(self, "worker")
        elif self._records and not on:
            recording.detach(self)
        self._records = on

    def write(self, recorder: Recorder, pid: int, count: int, events: bytes) -> bool:
        """See `recording.Output`."""
        if self._waiting + len(events) > _MOST:
            self._left_out += count
        else:
            self._waiting += len(events)
            self._home.send(recording.KIND, {"pid": pid, "count": count, "events": b64encode(events).decode()})
        return True

    def waited(self, since: float) -> None:
        """All batches that it may make ahead were there, until now."""
        own = recording.recorder
        if own is not None:
            own.put((SPAN, "batches", "room", "waits for room", since, perf_counter(), None))

    def made(self) -> None:
        """A batch was made."""
        self._made = perf_counter()

    def packed(self, began: float, ticket: Any, frame: Frame) -> None:
        """It was written to where it is read."""
        own = recording.recorder
        if own is not None:
            size, shared = frame.numbers + frame.pickled, frame.kind == Frame.SHARED
            own.put((BATCH, began, self._made, perf_counter(), *_number(ticket), size, shared))

    def told(self, *, last: bool) -> None:
        """Something is said to the main process: say this before, from time to time and at the end."""
        own = recording.recorder
        if own is None:
            return
        if last or self._left_out or own.due(_EVERY):
            own.drain(last=last)
            self._waiting = 0
            if self._left_out:
                own.instant("batches", f"{self._left_out} events before this were too many, and left out", perf_counter())
                self._left_out = 0
                own.drain()


def _number(ticket: Any) -> tuple[int | None, int | None]:
    """The step of a batch in its pass, and its stream, where its ticket has them."""
    step = ticket if isinstance(ticket, int) else getattr(ticket, "step", None)
    return step, getattr(ticket, "stream", None)


def made_batch(recorder: Recorder, lane: str, ticket: Any, began: float) -> None:
    """A batch was made by whoever takes it."""
    step, stream = _number(ticket)
    args = {key: number for key, number in (("step", step), ("stream", stream)) if number is not None}
    recorder.span(lane, "batch", "batch" if step is None else f"batch {step}", began, perf_counter(), args)


@contextmanager
def inside(lane: str, kind: str, name: str) -> Iterator[None]:
    """A part of a wait."""
    began = perf_counter()
    yield
    own = recording.recorder
    if own is not None:
        own.span(lane, kind, name, began, perf_counter())
