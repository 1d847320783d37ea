"""A recording as a file in the Chrome trace event format, which Perfetto, chrome://tracing and torch.profiler know.

The format is described in "Trace Event Format" (Google, 2016). Its times are microseconds since `baseTimeNanoseconds` of Unix
time, as torch.profiler writes them.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Final

from squirrel_torch import recording
from squirrel_torch.checks import require_at_least
from squirrel_torch.errors import PipelineError
from squirrel_torch.observe.trace_file import TraceFile
from squirrel_torch.recording import Recorder
from squirrel_torch.sharding import Shard, rank_shard

__all__ = ["Tracing", "checked_path", "process_name", "tracing"]

_LEAST: Final = 1 << 14


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
        self.path: Path = checked_path(path)
        """Where the trace will be; of several ranks that of this one, once it is entered."""
        self._given = self.path
        self._most = int(most_bytes)
        self._file: TraceFile | None = None
        self._recorder: Recorder | None = None

    def __enter__(self) -> Tracing:
        """Begin to record."""
        if self._file is not None:
            raise PipelineError(f"the trace {str(self.path)!r} is being written already: one object is for one trace at a time")
        rank = rank_shard()
        self.path = of_rank(self._given, rank)
        self._file = TraceFile(self.path, rank, self._most)
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
