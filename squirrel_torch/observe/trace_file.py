"""A trace as a file of bounded size, there whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from struct import Struct
from time import perf_counter, perf_counter_ns, time_ns
from typing import Any, BinaryIO, Final

from squirrel_torch.observe.spans import FIRST_LANE, Span, Spans
from squirrel_torch.recording import Recorder
from squirrel_torch.sharding import Shard

__all__ = ["TraceFile", "WholeFile", "put", "unix_of_clock"]

_SEPARATOR: Final = ",\n"
_OF_LANE: Final = 260
"""Characters that naming a lane takes, at most, besides its name."""

_MARGIN: Final = 2048
_AT_ONCE: Final = 256

_SMALLEST: Final = 90
"""Characters that an event becomes, at least."""

_PART: Final = Struct("<QQ")

_log = logging.getLogger(__name__)


class WholeFile:
    """A file of text that appears when a block is left without an error, compressed if its name says so.

    A process that forks meanwhile takes nothing with it that it would write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._file: BinaryIO = self._part.open("wb", buffering=0)
        self._packer = zlib.compressobj(6, zlib.DEFLATED, 31) if path.name.endswith(".gz") else None

    def write(self, text: str) -> None:
        """Write characters of ASCII."""
        data = text.encode("ascii")
        put(self._file, data if self._packer is None else self._packer.compress(data))

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                if self._packer is not None:
                    put(self._file, self._packer.flush())
                self._part.replace(self._path)
        finally:
            self._file.close()
            self._part.unlink(missing_ok=True)  # it has its name now, or nothing is left


def put(file: Any, data: bytes) -> None:
    """Write all of it to a file without a buffer, which may take a part at a time."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def unix_of_clock() -> int:
    """Nanoseconds of Unix time at which `perf_counter` was 0: the best of several readings of both clocks."""
    readings = []
    for _ in range(7):
        before, unix, after = perf_counter_ns(), time_ns(), perf_counter_ns()
        readings.append((after - before, unix - (before + after) // 2))
    return min(readings)[1]


class TraceFile:
    """The output of a recording. Events are put aside as they come, and become spans when all are there: that takes longer."""

    def __init__(self, path: Path, rank: Shard, most_bytes: int) -> None:
        self._path = path
        self._rank = rank
        self._most = most_bytes
        self._base = unix_of_clock()
        self._began = perf_counter()
        self._count = 0
        self._gave_up = False
        if path.is_dir():
            raise IsADirectoryError(f"a trace can't be written to {path}: it is a folder")
        # Beside it: where temporary files usually go is memory on many machines. A fork writes nothing of a buffer.
        self._aside = tempfile.TemporaryFile(dir=path.parent, buffering=0)  # noqa: SIM115  # closed with the file

    def write(self, recorder: Recorder, pid: int, count: int, events: bytes) -> bool:
        """Put them aside, if they may have room in the file; see `recording.Output`."""
        if self._gave_up or self._count * _SMALLEST > self._most:
            return False
        self._count += count
        try:
            put(self._aside, _PART.pack(pid, len(events)) + events)
        except OSError as error:
            self._give_up(error)
        return not self._gave_up

    def _give_up(self, error: OSError) -> None:
        """A trace that can't be written must not end a training."""
        self._gave_up = True
        _log.warning("the trace %s can't be written, and is given up: %s", self._path, error)

    def close(self, recorder: Recorder) -> None:
        """Write the file, and put it where it belongs."""
        try:
            if not self._gave_up:
                with WholeFile(self._path) as file:
                    self._write_all(recorder, file)
        except OSError as error:
            self._give_up(error)
        finally:
            with suppress(OSError):
                self._aside.truncate(0)  # workers that were forked meanwhile, and stay, have it open
            self._aside.close()

    def _write_all(self, recorder: Recorder, file: WholeFile) -> None:
        processes: dict[int, Spans] = {}
        lines = _Lines(file, self._most)
        lines.add(self._head())
        lines.keep(sum(_OF_LANE + len(quoted(name)) for name in recorder.processes.values()))
        for pid, events in self._parts():
            spans = processes.setdefault(pid, Spans(self._began))
            if not all(lines.fits(span, pid, spans) for span in spans.of(events)):
                break
        if lines.full or self._count * _SMALLEST > self._most:
            self._end_early(lines, recorder)
        lines.add(*_names(recorder, processes, self._rank.index, self._began))
        file.write("\n]}\n")

    def _head(self) -> str:
        head = {
            "schemaVersion": 1,
            "host_name": socket.gethostname(),
            "distributedInfo": {"rank": self._rank.index, "world_size": self._rank.count},
            "displayTimeUnit": "ms",
            "baseTimeNanoseconds": self._base,
            "traceName": self._path.name,
            "squirrel_torch": 1,
        }
        return json.dumps(head)[:-1] + ', "traceEvents": [\n'

    def _parts(self) -> Iterator[tuple[int, bytes]]:
        self._aside.seek(0)
        while head := self._aside.read(_PART.size):
            pid, size = _PART.unpack(head)
            yield pid, self._aside.read(size)

    def _end_early(self, lines: _Lines, recorder: Recorder) -> None:
        what = f"trace ended here after {lines.written} bytes (most_bytes={self._most})"
        at = Span("i", "trace", "event", what, lines.last, lines.last, {})
        lines.add(at.to_json(recorder.pid, FIRST_LANE))
        _log.warning("%s: %s; what came later is left out", self._path, what)


class _Lines:
    """The lines of a trace, as long as there is room for them and for the end."""

    def __init__(self, file: WholeFile, most: int) -> None:
        self._file = file
        self._left = most - _MARGIN
        self._begins = ""
        self._waiting: list[str] = []
        self.written = 0
        self.full = False
        self.last = 0
        """When what was written last has ended."""

    def keep(self, size: int) -> None:
        """So much will be needed at the end."""
        self._left -= size

    def fits(self, span: Span, pid: int, spans: Spans) -> bool:
        """Add a span, unless there is no room for it."""
        if span.lane not in spans.lanes:
            self._left -= _OF_LANE + len(quoted(span.lane))
        line = span.to_json(pid, spans.number(span.lane))
        if len(line) + len(_SEPARATOR) > self._left:
            self.full = True
            return False
        self.last = max(self.last, span.end)
        self._waiting.append(line)
        self._left -= len(line) + len(_SEPARATOR)
        if len(self._waiting) >= _AT_ONCE:
            self.add()
        return True

    def add(self, *lines: str) -> None:
        """Add lines for which room was kept."""
        self._waiting += lines
        if self._waiting:
            text = self._begins + _SEPARATOR.join(self._waiting)
            self._begins = _SEPARATOR if self.written else ""
            self._file.write(text)
            self.written += len(text)
            self._waiting.clear()


def _names(recorder: Recorder, processes: Mapping[int, Spans], rank: int, began: float) -> Iterator[str]:
    """What processes and lanes are called, and in which order they are shown."""
    at = f'"ts":{began * 1e6:.3f}'
    for place, (pid, name) in enumerate(recorder.processes.items()):
        yield _named("process_name", pid, 0, at, {"name": name})
        yield _named("process_sort_index", pid, 0, at, {"sort_index": 1000 * rank + place})
    for pid, spans in processes.items():
        lanes = sorted(spans.lanes, key=lambda lane: (": " in lane, lane))
        for place, lane in enumerate(lanes):
            yield _named("thread_name", pid, spans.lanes[lane], at, {"name": lane})
            yield _named("thread_sort_index", pid, spans.lanes[lane], at, {"sort_index": place - len(lanes)})


def _named(what: str, pid: int, number: int, at: str, args: dict[str, Any]) -> str:
    return f'{{"ph":"M","name":"{what}","pid":{pid},"tid":{number},{at},"args":{json.dumps(args)}}}'
