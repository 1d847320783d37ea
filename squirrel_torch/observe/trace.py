"""A recording as a file in the Chrome trace event format, which Perfetto, chrome://tracing and torch.profiler know.

The format is described in "Trace Event Format" (Google, 2016). Its times are microseconds since `baseTimeNanoseconds` of Unix
time, as torch.profiler writes them.
"""

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
from types import TracebackType
from typing import Any, BinaryIO, Final

from squirrel_torch import recording
from squirrel_torch.checks import require_at_least
from squirrel_torch.errors import PipelineError
from squirrel_torch.observe.spans import FIRST_LANE, Span, Spans
from squirrel_torch.recording import Recorder
from squirrel_torch.sharding import Shard, rank_shard

__all__ = ["Tracing", "WholeFile", "checked_path", "process_name", "tracing", "unix_of_clock"]

_LEAST: Final = 1 << 14
_SEPARATOR: Final = ",\n"
_OF_LANE: Final = 260
"""Characters that naming a lane takes, at most, besides its name."""

_MARGIN: Final = 2048
_AT_ONCE: Final = 256

_SMALLEST: Final = 90
"""Characters that an event becomes, at least."""

_PART: Final = Struct("<QQ")

_log = logging.getLogger(__name__)


def tracing(path: str | os.PathLike[str], *, most_bytes: int = 64 << 20) -> Tracing:
    """Record what goes on in this process, and in the workers of its loaders, as a trace that Perfetto shows.

    Spans are the steps of a `StreamLoader` and the waits for its batches, the batches that its workers make, and the chunks
    that each worker of an `async_map` works on. With several ranks each writes a file of its own, with its number in the name.

    The file is written when the block is left, also by an error: some seconds for a million events. Until then they are in a
    file without a name beside it, so a process that is killed leaves none. Where the disk is full then, a warning is logged.

    Args:
        path: Ends in ".json", or in ".json.gz". A file that is there is replaced.
        most_bytes: Of the file, before it is compressed. What comes later is left out, and a warning logged. In memory are
            only few events.

    Returns:
        A context manager. It gives itself, with the `path` of the file of this rank.

    Raises:
        ValueError: If the name has another ending, or `most_bytes` is less than 16,384.
        OSError: When it is entered, if no file can be written there.

    Example:
        >>> import json, tempfile
        >>> from squirrel_torch import IterableSource
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tracing(f"{folder}/trace.json") as trace:
        ...         total = sum(IterableSource(range(100)).async_map(abs, max_workers=2))
        ...     events = json.loads(trace.path.read_text())["traceEvents"]
        >>> sum(event["args"]["items"] for event in events if event.get("cat") == "chunk")
        100
    """
    return Tracing(path, most_bytes)


class Tracing:
    """What `tracing` gives.

    Args:
        path: See `tracing`; so `most_bytes`.
        most_bytes: Of the events.
    """

    def __init__(self, path: str | os.PathLike[str], most_bytes: int) -> None:
        require_at_least("most_bytes", most_bytes, _LEAST)
        self.path = checked_path(path)
        """Where the trace will be; of several ranks that of this one, once it is entered."""
        self._given = self.path
        self._most = int(most_bytes)
        self._file: _File | None = None
        self._recorder: Recorder | None = None

    def __enter__(self) -> Tracing:
        """Begin to record."""
        if self._file is not None:
            raise PipelineError(f"the trace {str(self.path)!r} is being written already: one object is for one trace at a time")
        rank = rank_shard()
        self.path = of_rank(self._given, rank)
        self._file = _File(self.path, rank, self._most)
        self._recorder = recording.attach(self._file, process_name(rank))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Write the rest."""
        file, self._file = self._file, None
        recorder, self._recorder = self._recorder, None
        if file is None or recorder is None or recorder.pid != os.getpid():
            return  # in a fork: it is the parent's
        if error is not None and recording.recorder is recorder:
            recorder.instant("trace", f"ended by {type(error).__name__}", perf_counter())
        recording.detach(file)
        file.close(recorder)


def checked_path(path: str | os.PathLike[str]) -> Path:
    """The path of a trace. Raises ValueError unless its name ends as it should."""
    checked = Path(path)
    if not checked.name.endswith((".json", ".json.gz")):
        raise ValueError(f'the name of a trace must end in ".json" or ".json.gz", got {str(path)!r}')
    return checked


def process_name(rank: Shard) -> str:
    """What a process that trains is called."""
    return f"rank {rank.index}" if rank.count > 1 else "training process"


def of_rank(path: Path, rank: Shard) -> Path:
    """`trace.rank1.json` for `trace.json` where there are several ranks."""
    if rank.count == 1:
        return path
    end = ".json.gz" if path.name.endswith(".gz") else ".json"
    return path.with_name(f"{path.name.removesuffix(end)}.rank{rank.index}{end}")


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


class _File:
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
