"""What goes on in a stream, recorded only while somebody wants it.

`recorder` is None else, which is all that others look at, once for each chunk or batch and never for an item. While somebody
records, what happens is put down as it is seen, in a tuple, and `observe.spans` makes spans of it when there is time.

Times are seconds of `time.perf_counter`, which on Linux and macOS is the clock of `time.monotonic`, and one for all processes
of a machine.
"""

from __future__ import annotations

import marshal
import os
import threading
from base64 import b64decode
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Final, Protocol, TypeAlias
from weakref import WeakSet

__all__ = [
    "BATCH",
    "CHUNK",
    "COUNTER",
    "INSTANT",
    "KIND",
    "SPAN",
    "STEP",
    "UNPACK",
    "Output",
    "Recorder",
    "Unfinished",
    "Value",
    "attach",
    "detach",
    "recorder",
    "take",
    "unfinished",
]

Value: TypeAlias = "int | float | str"

KIND: Final = "trace"
"""Of the notes by which events come home from the workers of a loader."""

SPAN: Final = 0
"""An event: lane, kind, name, begin, end, and what belongs to it, a dict or None."""

COUNTER: Final = 1
"""Lane, name, when, and a dict of numbers."""

INSTANT: Final = 2
"""Lane, name, when."""

CHUNK: Final = 3
"""Callback, worker, when the chunk was sent or 0, when work on it began by the worker's clock or 0, seconds of work, when it
was back, its first item, how many items came back, how many of them failed, attempts after the first."""

STEP: Final = 4
"""Lane, when a batch was asked for, when it was given, when the next one was asked for, step, epoch."""

BATCH: Final = 5
"""When it was begun, when it was made, when it was packed, step or None, stream or None, bytes, whether they are in shared
memory."""

UNPACK: Final = 6
"""Lane, begin, end, worker, bytes."""

_FULL: Final = 512
"""Events that wait in memory."""

_TOUCH: Final = 1e-6
"""Seconds between two samples that there may be without a gap."""


class Output(Protocol):
    """Where events go."""

    def write(self, recorder: Recorder, pid: int, count: int, events: bytes) -> bool:
        """Take events; whether it takes more of them.

        It may be called in any thread, but only in one at a time.

        Args:
            recorder: Who has them.
            pid: The process in which they happened.
            count: How many there are.
            events: A list of tuples, by `marshal`: each begins with what kind it is, one of the numbers of this module.
        """


class Unfinished(Protocol):
    """Something that takes long, and is only told when it ends."""

    def so_far(self, recorder: Recorder) -> None:
        """The recording ends: tell of it now."""


class Recorder:
    """Takes events of any threads, and gives them to its outputs, many at a time.

    Args:
        name: Of this process.
        outputs: Where events go.
        full: How many wait in memory before they do.
    """

    def __init__(self, name: str, outputs: Sequence[Output], full: int = _FULL) -> None:
        self.name = name
        self.pid: int = os.getpid()
        self.outputs: tuple[Output, ...] = tuple(outputs)
        self.processes: dict[int, str] = {self.pid: name}
        """Names of the processes, by their ids."""
        self._full = full
        self._events: deque[tuple[Any, ...]] = deque()
        self._sampled: dict[str, tuple[str, float, float]] = {}
        self._written = perf_counter()

    # -- what is recorded ---------------------------------------------------------------------------------------------

    def put(self, event: tuple[Any, ...]) -> None:
        """Something happened, described as above. Numbers are those of Python, and nothing in it is changed afterwards."""
        self._events.append(event)
        if len(self._events) >= self._full:
            self.drain()

    def span(self, lane: str, kind: str, name: str, begin: float, end: float, args: Mapping[str, Value] | None = None) -> None:
        """Something took from `begin` to `end`. What began before somebody recorded is cut off there.

        Args:
            lane: Its row of the trace. Whoever calls sees to it that spans of a lane are inside one another or beside one
                another, and never half over.
            kind: A word for all of its kind, such as "copy".
            name: What it was.
            begin: Seconds.
            end: Seconds.
            args: Numbers and texts that belong to it.
        """
        self.put((SPAN, lane, kind, name, begin, end, None if args is None else dict(args)))

    def counter(self, lane: str, name: str, at: float, values: Mapping[str, float]) -> None:
        """How much there is of something from now on."""
        self.put((COUNTER, lane, name, at, dict(values)))

    def instant(self, lane: str, name: str, at: float) -> None:
        """Something happened."""
        self.put((INSTANT, lane, name, at))

    def sampled(self, lane: str, name: str, begin: float, end: float) -> None:
        """A sampler saw a lane at `name`, and takes it that it was there from `begin` to `end`.

        Samples of one name that follow each other without a gap become one span. Only one thread may sample a lane.
        """
        with _lock:
            last = self._sampled.get(lane)
            if last is not None and last[0] == name and begin - last[2] <= _TOUCH:
                self._sampled[lane] = name, last[1], max(end, last[2])
                return
            self._sampled[lane] = name, begin, end
        if last is not None:
            self.span(lane, "stage", last[0], last[1], min(last[2], begin))

    # -- what becomes of it -------------------------------------------------------------------------------------------

    def due(self, every: float) -> bool:
        """Whether something has waited for `every` seconds, about."""
        return bool(self._events) and perf_counter() - self._written >= every

    def drain(self, *, last: bool = False) -> None:
        """Write what waits.

        Args:
            last: Nothing comes behind it for now: samples are not waited for that could make a span longer.
        """
        with _lock:
            if last:
                for lane, (name, begin, end) in self._sampled.items():
                    self._events.append((SPAN, lane, "stage", name, begin, end, None))
                self._sampled.clear()
            self._written = perf_counter()
            events = []
            with suppress(IndexError):  # others append meanwhile; a stream that the garbage collector closes drains too
                for _ in range(len(self._events)):
                    events.append(self._events.popleft())
            if events:
                self.write(self.pid, len(events), marshal.dumps(events))

    def write(self, pid: int, count: int, events: bytes) -> None:
        """Write events of this or another process; see `Output`."""
        with _lock:
            left = tuple(output for output in self.outputs if output.write(self, pid, count, events))
            if len(left) < len(self.outputs):
                self.outputs = left
                if not left:
                    _forget(self)


# -- who records -------------------------------------------------------------------------------------------------------

recorder: Recorder | None = None
"""Who records in this process; None: nobody."""

unfinished: Final[WeakSet[Unfinished]] = WeakSet()
"""What is told when it ends, and as far as it is there when the recording ends."""

_lock = threading.RLock()  # the garbage collector may close a stream while events are written


def attach(output: Output, name: str, full: int = _FULL) -> Recorder:
    """Have what happens in this process recorded from now on, for `output` too.

    Args:
        output: Gets the events, until `detach`.
        name: Of the process, if nobody records yet.
        full: See `Recorder`; the same.
    """
    global recorder
    with _lock:
        if recorder is None:
            recorder = Recorder(name, [output], full)
        else:
            recorder.drain()  # what was before is not for the new one
            recorder.outputs = (*recorder.outputs, output)
        return recorder


def detach(output: Output) -> None:
    """Write what waits, and let `output` have no more."""
    with _lock:
        own = recorder
        if own is not None and output in own.outputs:
            own.drain(last=True)
            rest = Recorder(own.name, [output])  # for the others it goes on
            for one in list(unfinished):
                one.so_far(rest)
            rest.drain()
            own.outputs = tuple(one for one in own.outputs if one is not output)
            if not own.outputs:
                _forget(own)


def _forget(own: Recorder) -> None:
    global recorder
    if recorder is own:
        recorder = None


def take(loader: str, worker: int, payload: Any) -> None:
    """Events of a worker of a loader; with the name of that the handler of its notes."""
    own = recorder
    if own is not None:  # else the recording has ended meanwhile
        pid = payload["pid"]
        own.processes[pid] = f"{own.name}, {loader}, worker {worker}"
        own.write(pid, payload["count"], b64decode(payload["events"]))


def _start_afresh() -> None:
    """A process that was forked records nothing, unless it is told to: the outputs are those of its parent."""
    global recorder, _lock
    recorder, _lock = None, threading.RLock()  # another thread may have held it
    unfinished.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
