"""Several traces on one axis: those of ranks, and those of torch.profiler."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from squirrel_torch.observe.trace import checked_path
from squirrel_torch.observe.trace_file import WholeFile

__all__ = ["merge_traces"]

Pid: TypeAlias = "int | str"

_FLOWS: Final = frozenset("stfbenPNOD")
"""Kinds of events whose ids belong together within one file."""

_IDS: Final = 1 << 40


def merge_traces(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Put traces onto one axis of time: of several ranks, and those that `torch.profiler` has exported.

    A process that several files tell of, such as a training whose steps are in one and whose operators are in another, is one
    process then. Processes of different machines whose ids happen to be the same are told apart by the names of the machines
    and the ranks in the files. Their clocks are taken as they are: between machines they may differ by some milliseconds.
    All files are in memory meanwhile.

    Args:
        paths: The files, ".json" or ".json.gz".
        out: Where to write what comes of them; it may be one of them.

    Returns:
        The path of `out`.

    Raises:
        ValueError: If a file is no trace, or does not tell what its times are relative to.

    Example:
        ``merge_traces(["trace.rank0.json", "trace.rank1.json", "profiler.json"], "all.json.gz")``
    """
    target = checked_path(out)
    if not paths:
        raise ValueError("paths must be at least one trace, got none")
    traces = [_read(checked_path(path)) for path in paths]
    base = min(trace.base + round(_first(trace) * 1000) for trace in traces)
    ours = {pid: trace for trace in traces if trace.is_ours for pid in trace.named}
    processes = _Processes()
    with WholeFile(target) as file:
        head = {"schemaVersion": 1, "displayTimeUnit": "ms", "baseTimeNanoseconds": base, "traceName": target.name}
        file.write(json.dumps(head)[:-1] + ', "traceEvents": [\n')
        begins = ""
        for number, trace in enumerate(sorted(traces, key=lambda trace: not trace.is_ours)):
            for event in _moved(trace, number, base, processes, ours):
                file.write(begins + json.dumps(event, separators=(",", ":")))
                begins = ",\n"
        file.write("\n]}\n")
    return target


@dataclass(frozen=True)
class _Trace:
    """One file."""

    path: Path
    base: int
    host: str | None
    rank: int | None
    is_ours: bool
    events: list[dict[str, Any]]

    @property
    def named(self) -> set[Pid]:
        """The processes that it has a name for."""
        return {event["pid"] for event in self.events if event.get("name") == "process_name"}

    def may_share(self, other: _Trace) -> bool:
        """Whether one id may be one process in both."""
        return all(
            mine is None or its is None or mine == its for mine, its in ((self.host, other.host), (self.rank, other.rank))
        )


class _Processes:
    """Which id a process has in the end."""

    def __init__(self) -> None:
        self._owners: dict[Pid, list[tuple[_Trace, Pid]]] = {}
        self._used: set[Pid] = set()

    def of(self, trace: _Trace, pid: Pid) -> Pid:
        """The id of a process of a trace."""
        known = self._owners.setdefault(pid, [])
        for owner, given in known:
            if owner is trace or owner.may_share(trace):
                return given
        given = pid
        while given in self._used:
            given = given + (1 << 22) if isinstance(given, int) else f"{given} of rank {trace.rank}"
        self._used.add(given)
        known.append((trace, given))
        return given


def _read(path: Path) -> _Trace:
    try:
        text = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        content = json.loads(text)
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no trace: {error}") from None
    events = content.get("traceEvents") if isinstance(content, dict) else None
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ValueError(f"{path} is no trace: it must be a JSON object with a list of objects under traceEvents")
    base = content.get("baseTimeNanoseconds")
    if not isinstance(base, int):
        raise ValueError(  # noqa: TRY004  # it is about what is in a file
            f"{path} does not tell what its times are relative to (baseTimeNanoseconds), as torch.profiler does from torch "
            "2.3 on: it can't be put beside others"
        )
    host, told = content.get("host_name"), content.get("distributedInfo")
    rank = told.get("rank") if isinstance(told, dict) else None
    return _Trace(path, base, host, rank if isinstance(rank, int) else None, "squirrel_torch" in content, events)


def _first(trace: _Trace) -> float:
    return min((event["ts"] for event in trace.events if "ts" in event and event.get("ph") != "M"), default=0.0)


def _moved(trace: _Trace, number: int, base: int, processes: _Processes, ours: dict[Pid, _Trace]) -> Iterator[dict[str, Any]]:
    """The events of a trace, on the common axis."""
    for event in trace.events:
        pid = event.get("pid")
        named = event.get("name") in ("process_name", "process_sort_index") and event.get("ph") == "M"
        other = ours.get(pid) if isinstance(pid, int | str) else None
        if named and not trace.is_ours and other is not None and other.may_share(trace):
            continue  # torch calls it "python"
        moved = dict(event)
        if isinstance(pid, int | str):
            moved["pid"] = processes.of(trace, pid)
        if "ts" in event:
            # In whole nanoseconds: as microseconds since 1970 they would have no digits left.
            moved["ts"] = max(trace.base + round(event["ts"] * 1000) - base, 0) / 1000
        if number and "id" in event and event.get("ph") in _FLOWS:
            moved["id"] = _own_id(event["id"], number)
        yield moved


def _own_id(value: Any, number: int) -> Any:
    """An id that no other file has."""
    if isinstance(value, str):
        with suppress(ValueError):
            return f"{int(value, 16) + number * _IDS:#x}"
        return f"{number}/{value}"
    return value + number * _IDS if isinstance(value, int) else value
