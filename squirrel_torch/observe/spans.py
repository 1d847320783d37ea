"""Spans of time, made of what was recorded."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterator, Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final, NamedTuple

from squirrel_torch.recording import BATCH, CHUNK, COUNTER, INSTANT, SPAN, STEP, UNPACK, Value

__all__ = ["FIRST_LANE", "Span", "Spans"]

FIRST_LANE: Final = 10_000_000
"""Lanes are numbered from here, where Linux has no threads: beside them in a trace may be those of another profiler."""

_BATCHES: Final = "batches"


class Span(NamedTuple):
    """Something that took time; or a moment, or numbers that hold from a moment on.

    Args:
        phase: "X", "i" or "C", as the Chrome trace event format has them.
        lane: The row in which it is.
        kind: A word for all of its kind: "wait", "step", "batch", "chunk", and so on.
        name: What it was.
        begin: Nanoseconds of the clock of `recording`.
        end: Nanoseconds.
        args: What belongs to it.
    """

    phase: str
    lane: str
    kind: str
    name: str
    begin: int
    end: int
    args: Mapping[str, Value]

    def to_json(self, pid: int, number: int) -> str:
        """As an object of the Chrome trace event format, in ASCII.

        Args:
            pid: Of the process.
            number: Of the lane.
        """
        begin, length = self.begin, self.end - self.begin
        head = f'"pid":{pid},"tid":{number},"ts":{begin // 1000}.{begin % 1000:03d}'
        told = ",".join([f"{quoted(key)}:{_told(value)}" for key, value in self.args.items()])
        if self.phase == "C":
            return f'{{"ph":"C","name":{quoted(self.name)},{head},"args":{{{told}}}}}'
        if self.phase == "i":
            return f'{{"ph":"i","s":"p","name":{quoted(self.name)},{head}}}'
        dur = f"{length // 1000}.{length % 1000:03d}"
        return f'{{"ph":"X","cat":{quoted(self.kind)},"name":{quoted(self.name)},{head},"dur":{dur},"args":{{{told}}}}}'


class Spans:
    """Those of one process.

    Args:
        began: When the recording began, in seconds: what was before is cut off.
    """

    def __init__(self, began: float) -> None:
        self.lanes: dict[str, int] = {}
        """Numbers of the lanes, by their names."""
        self._began = round(began * 1e9)
        self._packs: dict[str, list[tuple[str, int]]] = {}  # by group: its lanes, and up to when they are full
        self._readers: dict[int, Callable[..., Iterator[Span]]] = {
            SPAN: self._span,
            COUNTER: self._counter,
            INSTANT: self._instant,
            CHUNK: self._chunk,
            STEP: self._step,
            BATCH: self._batch,
            UNPACK: self._unpack,
        }

    def of(self, events: bytes) -> Iterator[Span]:
        """The spans of events, as `recording.Output` gets them; all that happened in this process, in that order."""
        for kind, *what in marshal.loads(events):  # from processes of this job, by no other way
            yield from self._readers[kind](*what)

    def number(self, lane: str) -> int:
        """The number of a lane."""
        number = self.lanes.get(lane)
        if number is None:
            number = self.lanes[lane] = FIRST_LANE + len(self.lanes)
        return number

    def _spanned(
        self, lane: str, kind: str, name: str, begin: float, end: float, args: Mapping[str, Value] | None
    ) -> Iterator[Span]:
        # In whole nanoseconds: what ends where another begins does so in the file too.
        start, stop = round(begin * 1e9), round(end * 1e9)
        if stop >= self._began:
            start = max(start, self._began)
            yield Span("X", lane, kind, name, start, max(start, stop), {} if args is None else args)

    _span = _spanned

    def _counter(self, lane: str, name: str, at: float, values: dict[str, Value]) -> Iterator[Span]:
        yield Span("C", lane, "counter", name, round(at * 1e9), round(at * 1e9), values)

    def _instant(self, lane: str, name: str, at: float) -> Iterator[Span]:
        yield Span("i", lane, "event", name, round(at * 1e9), round(at * 1e9), {})

    def _step(self, lane: str, asked: float, given: float, until: float, step: int, epoch: int) -> Iterator[Span]:
        args: dict[str, Value] = {"step": step, "epoch": epoch}
        yield from self._spanned(lane, "wait", "wait for batch", asked, given, args)
        yield from self._spanned(lane, "step", "step", given, until, args)

    def _unpack(self, lane: str, begin: float, end: float, worker: int, size: int) -> Iterator[Span]:
        yield from self._spanned(lane, "unpack", "unpack", begin, end, {"worker": worker, "bytes": size})

    def _batch(
        self,
        began: float,
        made: float,
        packed: float,
        step: int | None,
        stream: int | None,
        size: int,
        shared: bool,
    ) -> Iterator[Span]:
        args = {key: number for key, number in (("step", step), ("stream", stream)) if number is not None}
        yield from self._spanned(_BATCHES, "batch", "batch" if step is None else f"batch {step}", began, made, args)
        yield from self._spanned(_BATCHES, "pack", "pack", made, packed, {"bytes": size, "shared": int(shared)})

    def _chunk(
        self,
        name: str,
        worker: str,
        sent: float,
        began: float,
        worked: float,
        back: float,
        first: int,
        count: int,
        failed: int,
        retries: int,
    ) -> Iterator[Span]:
        # A clock that has another beginning is that of another machine. If both began to run at about the same time this does
        # not show, and makes no difference: the span is within the time that the chunk was away.
        if not (began and sent <= began and began + worked <= back):
            began = max(back - worked, sent)
        args: dict[str, Value] = {"first item": first, "items": count}
        if sent:  # else it left before the recording began
            args["waited ms"] = (began - sent) * 1e3
        if failed:
            args["failed"] = failed
        if retries:
            args["retries"] = retries
        end = min(began + worked, back)
        lane = self._free(f"{name}: {worker or 'task'}", max(round(began * 1e9), self._began), round(end * 1e9))
        yield from self._spanned(lane, "chunk", name, began, end, args)

    def _free(self, group: str, begin: int, end: int) -> str:
        """A lane of the group that nothing is in behind `begin`; it is full up to `end` now."""
        pack = self._packs.setdefault(group, [])
        for at, (lane, until) in enumerate(pack):
            if until <= begin:
                pack[at] = lane, end
                return lane
        lane = f"{group} ({len(pack) + 1})" if pack else group
        pack.append((lane, end))
        return lane


def _told(value: Any) -> str:
    if type(value) is int:
        return str(value)
    # Three digits are enough of milliseconds.
    return quoted(value) if isinstance(value, str) else f"{value:.3f}"
