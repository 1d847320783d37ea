"""A stream as resources that its items need: which of them is used up first, and which would be after a change.

Each resource has a demand: the seconds for which it was needed while the stream was looked at. A stream takes about as long as
the greatest of them (the bottleneck law: Denning and Buzen, The Operational Analysis of Queueing Network Models, 1978).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from squirrel_torch.observe.figures import Calls, Figures, Loading, StageFigures

__all__ = ["Demand", "Model", "Part", "demands_of", "greatest", "model_of"]

# What a change would cost, in seconds of CPU, as it was measured: see tests/benchmarks/README.md.
THREAD_CALL: Final = 40e-6
"""Of a call in a thread, where calls are slow enough to travel one by one."""
PROCESS_CALL: Final = 55e-6
"""The same in a process."""
PROCESS_BYTE: Final = 20e-12
BATCH: Final = 25e-6
"""Of a batch on each side of the line between a worker of a loader and its consumer."""
BATCH_BYTE: Final = 50e-12

_RELEASES: Final = 1.2
"""Cores above which calls in threads can't be holding the GIL."""


@dataclass(frozen=True)
class Part:
    """One place of a chain. Seconds are added up over all processes.

    Args:
        stage: What was seen of it.
        thread: The thread of its own work.
        busy: Seconds of its own work.
        cpu: Of these, seconds of CPU time.
        place: Where its calls run; empty if they are its own work.
        workers: How many calls run at a time, in all processes.
        wall: Seconds of the calls.
        calls_cpu: Of these, seconds of CPU time.
        gil: Seconds in which its calls, or their hand-over, hold the GIL of the process of the chain.
        carried: Seconds of the workers on top of `wall`, for the way there and back.
    """

    stage: StageFigures
    thread: str
    busy: float
    cpu: float
    place: str = ""
    workers: int = 0
    wall: float = 0.0
    calls_cpu: float = 0.0
    gil: float = 0.0
    carried: float = 0.0


@dataclass(frozen=True)
class Model:
    """A stream.

    Args:
        parts: Its places.
        seconds: How long it was looked at.
        makers: Processes that run the chain.
        consumers: Processes that take its items; where `inline`, these are the makers.
        cores: CPUs, over all ranks.
        inline: Whether the chain runs in the thread of its consumer.
        outside: Seconds of the consumer's own work.
        outside_cpu: Of these, seconds of CPU time.
        packing: Seconds in which makers hand over.
        unpacking: Seconds in which consumers take over.
    """

    parts: tuple[Part, ...]
    seconds: float
    makers: int
    consumers: int
    cores: int
    inline: bool
    outside: float = 0.0
    outside_cpu: float = 0.0
    packing: float = 0.0
    unpacking: float = 0.0

    def having(self, *parts: Part) -> Model:
        """The same with these in place of those of the same stages."""
        new = {(part.stage.branch, part.stage.place): part for part in parts}
        return replace(self, parts=tuple(new.get((part.stage.branch, part.stage.place), part) for part in self.parts))


@dataclass(frozen=True)
class Demand:
    """How much of one resource a stream needs.

    Args:
        kind: "cores", "gil", "thread", "consumer", or "place" of calls.
        seconds: For how long it is needed; of a resource of which there are several, for how long all of them.
        parts: Those that need it, whoever needs most first.
        thread: Which thread it is.
    """

    kind: str
    seconds: float
    parts: tuple[Part, ...] = ()
    thread: str = ""


def model_of(figures: Figures) -> Model:
    """What was seen, as a model."""
    loading = figures.loading
    makers, ranks = max(1, figures.makers), max(1, figures.ranks)
    inline = loading is None or not loading.workers
    main = [stage for stage in figures.stages if not stage.branch]
    seen = loading or Loading(0, outside=main[-1].downstream if main else 0.0)
    return Model(
        parts=tuple(_part_of(stage, figures.seconds, makers) for stage in figures.stages if not stage.planned),
        seconds=figures.seconds,
        makers=makers,
        consumers=makers if inline else ranks,
        cores=max(1, figures.cores) * ranks,
        inline=inline,
        outside=seen.outside,
        outside_cpu=seen.outside_cpu or 0.0,
        packing=seen.packing,
        unpacking=seen.unpacking,
    )


def _part_of(stage: StageFigures, seconds: float, makers: int) -> Part:
    part = Part(stage, stage.thread, stage.busy, stage.cpu or 0.0)
    return part if stage.calls is None else _with_calls(part, stage.calls, seconds, makers)


def _with_calls(part: Part, calls: Calls, seconds: float, makers: int) -> Part:
    workers = max(1, min(calls.workers, calls.buffer or calls.workers))
    cpu = calls.cpu or 0.0
    # Workers that always have something to do, and are not in calls, are on the way. What waits for a turn is not that.
    carried = min(calls.away, max(0.0, (1 - calls.hungry) * workers * seconds - calls.wall))
    outside = calls.place not in ("thread", "coroutine", "executor") or cpu > _RELEASES * seconds * makers
    return replace(
        part,
        place=calls.place,
        workers=workers,
        wall=calls.wall,
        calls_cpu=cpu,
        gil=0.0 if outside else cpu,
        carried=carried,
    )


def demands_of(model: Model) -> list[Demand]:
    """How much of each resource a stream needs. The consumer's own thread comes last where it is not that of the chain."""
    demands = [_cores(model), _gil(model), *_threads(model)]
    demands += [Demand("place", (part.wall + part.carried) / part.workers, (part,)) for part in model.parts if part.place]
    if not model.inline:
        demands.append(Demand("consumer", (model.outside + model.unpacking) / model.consumers))
    return demands


def greatest(model: Model) -> float:
    """Seconds that the stream takes, as the model has it."""
    return max(demand.seconds for demand in demands_of(model))


def _cores(model: Model) -> Demand:
    parts = sorted(model.parts, key=_cpu_of, reverse=True)
    used = sum(map(_cpu_of, parts)) + model.outside_cpu + model.packing + model.unpacking
    return Demand("cores", used / model.cores, tuple(parts))


def _cpu_of(part: Part) -> float:
    # What is under the GIL of a process that only sends calls away is work of its own.
    return part.cpu + part.calls_cpu + (part.gil if part.place == "process" else max(0.0, part.gil - part.calls_cpu))


def _gil(model: Model) -> Demand:
    parts = sorted((part for part in model.parts if part.gil), key=lambda part: part.gil, reverse=True)
    return Demand("gil", sum(part.cpu + part.gil for part in model.parts) / model.makers, tuple(parts))


def _threads(model: Model) -> list[Demand]:
    threads: dict[str, list[Part]] = {"main": []}
    for part in model.parts:
        threads.setdefault(part.thread, []).append(part)
    demands = []
    for thread, parts in threads.items():
        parts.sort(key=lambda part: part.busy, reverse=True)
        more = (model.outside if model.inline else model.packing) if thread == "main" else 0.0
        seconds = (sum(part.busy for part in parts) + more) / model.makers
        demands.append(Demand("thread", seconds, tuple(parts), thread))
    return demands
