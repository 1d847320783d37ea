"""What could be changed in a stream: as code, and as the model of the stream that it would be then."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from squirrel_torch.observe.figures import Figures
from squirrel_torch.observe.model import (
    BATCH,
    BATCH_BYTE,
    PROCESS_BYTE,
    PROCESS_CALL,
    THREAD_CALL,
    Demand,
    Model,
    Part,
    demands_of,
    greatest,
)
from squirrel_torch.observe.words import count_of

__all__ = [
    "Change",
    "by_batches",
    "by_keys",
    "by_map",
    "by_processes",
    "by_threads",
    "by_workers",
    "callback_of",
    "into_calls",
    "more_calls",
    "on_all_cores",
]

_MOST: Final = 128
_MOST_WORKERS: Final = 16
_SPARE: Final = 1.25
_LONGEST: Final = 40
_DEFAULT_BUFFER: Final = 100
_LISTED: Final = 20e-9
"""Seconds of an item of a list, a number, on its way into an array."""
_ARRAY: Final = 0.7e-6
"""Seconds of simple arithmetic on an array, however few items it has; with so many more for each of these."""
_ARRAY_ITEM: Final = 1e-9


@dataclass(frozen=True)
class Change:
    """Something to change.

    Args:
        code: As code, or in words.
        seconds: What the stream would take then, as the model has it.
    """

    code: str
    seconds: float


def callback_of(part: Part) -> str:
    """What a stage calls, as one would write it: `decode` of `map(decode)`; `f` if it has no name."""
    inside = re.search(r"\(\s*([\w.]+)\s*[,)]", part.stage.name)
    name = inside.group(1) if inside else "f"
    return "f" if name in ("lambda", "callback") else name[:_LONGEST]


def _before(model: Model, part: Part, old: str, new: str) -> list[Part]:
    """The places before one, in its thread, in the thread that they get."""
    branch, place = part.stage.branch, part.stage.place
    return [
        replace(other, thread=new)
        for other in model.parts
        if other.thread == old and other.stage.branch == branch and other.stage.place < place
    ]


def _feeder_of(part: Part) -> str:
    return f"feeder {part.stage.place} of {'/'.join(part.stage.branch) or 'main'}"


def _shortest(parallel: Callable[[int], Model], needed: float, most: int) -> tuple[int, Model]:
    """How many at a time, so that these are not the limit any more, and no more than are of use.

    Args:
        parallel: The stream with so many.
        needed: Seconds, added up over all that are at work.
        most: No more than these.
    """
    others = greatest(parallel(10**9))
    number = ceil(_SPARE * needed / others) if others * most > needed * _SPARE else most
    number = max(2, min(number, most))
    return number, parallel(number)


def by_threads(model: Model, part: Part) -> Change:
    """The stage calls in threads, which wait beside each other."""
    own = replace(part, wall=part.busy, calls_cpu=part.cpu, busy=0.0, cpu=0.0)
    calls = part if part.place else own

    def parallel(workers: int) -> Model:
        threads = replace(
            calls,
            place="thread",
            workers=workers * model.makers,
            gil=calls.calls_cpu + THREAD_CALL * count_of(part),
            carried=0.0,
        )
        return model.having(threads, *_before(model, part, part.thread, _feeder_of(part)))

    workers, after = _shortest(parallel, calls.wall / model.makers, _MOST)
    return Change(f".async_map({callback_of(part)}, {_sized(workers, _DEFAULT_BUFFER)})", greatest(after))


def more_calls(model: Model, part: Part) -> Change:
    """More calls at a time, in the place where they are."""

    def parallel(workers: int) -> Model:
        return model.having(replace(part, workers=workers * model.makers))

    calls = part.stage.calls
    workers, after = _shortest(parallel, (part.wall + part.carried) / model.makers, _MOST)
    workers = max(workers, part.workers // model.makers)
    if part.place in ("executor", "dask"):
        return Change(f"an executor of {workers} workers for {callback_of(part)}", greatest(after))
    buffer = 0 if calls is None else calls.buffer // model.makers
    return Change(f".async_map({callback_of(part)}, {_sized(workers, buffer)}{_where(part)})", greatest(after))


def on_all_cores(model: Model, part: Part) -> Change:
    """As many calls at a time as there are cores, where they do not wait for each other; else in processes."""
    cores = max(1, model.cores // model.consumers)
    if part.gil or part.place in ("executor", "dask"):
        return by_processes(model, part)
    after = model.having(replace(part, workers=max(part.workers, cores)))
    return Change(f".async_map({callback_of(part)}, max_workers={cores}{_where(part)})", greatest(after))


def _where(part: Part) -> str:
    return f', executor="{part.place}"' if part.place in ("process", "numba") else ""


def _sized(workers: int, buffer: int) -> str:
    # Twice as many are in flight: results that wait for one before them are among these.
    more = f", buffer={2 * workers}" if 2 * workers > buffer else ""
    return f"max_workers={workers}{more}"


def by_processes(model: Model, part: Part) -> Change:
    """The stage calls in processes.

    Calls are taken to need no more time there than CPU: for how long they wait can't be told from calls that wait for the GIL.
    """
    cores = max(1, model.cores // model.consumers)
    cpu = part.calls_cpu if part.place else part.cpu or part.busy
    size = part.stage.size or 0.0
    count = count_of(part)
    calls = replace(
        part,
        busy=part.busy if part.place else 0.0,
        cpu=part.cpu if part.place else 0.0,
        place="process",
        workers=cores * model.makers,
        wall=cpu if part.place else part.busy,
        calls_cpu=cpu,
        gil=(PROCESS_CALL + PROCESS_BYTE * size) * count,
        carried=PROCESS_CALL * count,
    )
    after = model.having(calls) if part.place else model.having(calls, *_before(model, part, part.thread, _feeder_of(part)))
    return Change(f'.async_map({callback_of(part)}, executor="process")', greatest(_unhindered(after) if part.gil else after))


def _unhindered(model: Model) -> Model:
    """Where threads do not have to wait for the GIL any more, their own work takes the time that it needs."""
    return replace(
        model, parts=tuple(replace(part, busy=part.cpu) if 0 < part.cpu < part.busy else part for part in model.parts)
    )


def by_map(model: Model, part: Part) -> Change:
    """The stage calls in its own thread, as do the stages before it."""
    plain = replace(
        part,
        # Those that compute took longer beside each other.
        busy=part.calls_cpu if part.calls_cpu > 0.5 * part.wall else part.wall,
        cpu=part.calls_cpu or part.wall,
        place="",
        workers=0,
        wall=0.0,
        calls_cpu=0.0,
        gil=0.0,
        carried=0.0,
    )
    stage = part.stage
    feeders = {
        other.thread
        for other in model.parts
        if other.thread != part.thread and other.stage.branch == stage.branch and other.stage.place < stage.place
    }
    before = [one for feeder in feeders for one in _before(model, part, feeder, part.thread)]
    return Change(f".map({callback_of(part)})", greatest(model.having(plain, *before)))


def into_calls(model: Model, parts: tuple[Part, ...], calls: Part) -> Change:
    """The work of the first of these stages moves into the calls of a stage behind it."""
    top = parts[0]
    after = model.having(
        replace(top, busy=0.0, cpu=0.0),
        replace(
            calls,
            wall=calls.wall + top.busy,
            calls_cpu=calls.calls_cpu + top.cpu,
            gil=calls.gil + top.cpu if calls.place in ("thread", "coroutine") else calls.gil,
        ),
    )
    inner, outer = callback_of(top), callback_of(calls)
    if top.stage.place:
        return Change(f".async_map(lambda item: {outer}({inner}(item)))", greatest(after))
    return Change(f"IterableSource(keys).async_map(lambda key: {outer}(read(key)))", greatest(after))


def by_keys(model: Model, part: Part, *, waits: bool) -> Change:
    """What a place does for each item moves into calls: those of a source behind it, a batch's collation too."""
    change = by_threads(model, part) if waits else by_processes(model, part)
    collated = re.match(r"batched\((\d+), collation_fn=([\w.]+)", part.stage.name)
    if not part.stage.place:
        calls = "IterableSource(keys).async_map(read"
    elif collated:
        calls = f".batched({collated[1]}).async_map({collated[2]}"
    else:
        calls = f"what {part.stage.name} does in .async_map(f"
    return replace(change, code=re.sub(r"^\.async_map\([\w.]+", calls, change.code))


def by_workers(figures: Figures, model: Model, *, waits: bool = False) -> Change:
    """More processes run the chain for a loader."""
    loading = figures.loading
    assert loading is not None  # noqa: S101  # asked for streams of a loader only
    cores = max(1, model.cores // figures.ranks)
    batches = loading.batches or figures.items or 0
    handed = BATCH * batches + BATCH_BYTE * _bytes_of(figures)
    guess = model.outside if loading.outside_cpu is None else model.outside_cpu
    now = model.makers // figures.ranks if not model.inline else 0
    dealt = any(stage.planned for stage in figures.stages)

    def shared(part: Part, workers: int) -> Part:
        """A place in so many workers. A source that has no plan is read from its beginning by each of them."""
        again = 1.0 if dealt or part.stage.place else workers / max(1, now)
        calls = max(1, part.workers // model.makers) * workers * figures.ranks if part.place else 0
        return replace(part, busy=part.busy * again, cpu=part.cpu * again, workers=calls)

    def parallel(workers: int) -> Model:
        return replace(
            model,
            makers=workers * figures.ranks,
            consumers=figures.ranks,
            inline=False,
            outside_cpu=guess,
            packing=model.packing or handed,
            unpacking=model.unpacking or handed,
            parts=tuple(shared(part, workers) for part in model.parts),
        )

    if waits:
        needed = max(demand.seconds for demand in demands_of(model) if demand.kind == "thread")
        workers, after = _shortest(parallel, needed * max(1, now) - (model.outside if model.inline else 0), _MOST_WORKERS)
    else:
        best = min(greatest(parallel(number)) for number in range(1, cores + 1))
        workers = next(number for number in range(1, cores + 1) if greatest(parallel(number)) < 1.05 * best + 1e-9)
        workers = max(workers, min(now + 1, cores))
        after = parallel(workers)
    return Change(f"StreamLoader(..., num_workers={workers})", greatest(after))


def _bytes_of(figures: Figures) -> float:
    main = [stage for stage in figures.stages if not stage.branch]
    return (main[-1].size or 0.0) * (main[-1].items or 0) if main else 0.0


def by_batches(model: Model, demand: Demand) -> Change:
    """Small items travel in batches, and callbacks work on arrays."""
    maps = [part for part in demand.parts if part.stage.kind == "Map" and part.stage.items]
    behind = [part for part in demand.parts if part.stage.kind == "Batched" and part.stage.items]
    most = max((part.stage.items or 0 for part in maps), default=0)
    size = round(most / (behind[0].stage.items or 1)) if behind else 0
    size = size if size > 1 else 64
    maps.sort(key=lambda part: part.stage.place)
    # The first of them makes an array of the list.
    new = [_on_arrays(part, size, _ARRAY_ITEM if number else _LISTED) for number, part in enumerate(maps)]
    names = "".join(f".map({callback_of(part)})" for part in maps[:2]) + ("..." if len(maps) > 2 else "")
    return Change(f".batched({size}){names} on arrays", greatest(model.having(*new)))


def _on_arrays(part: Part, size: int, each: float) -> Part:
    count = part.stage.items or 0
    seconds = min(part.busy, count * each + ceil(count / size) * _ARRAY)
    return replace(part, busy=seconds, cpu=seconds)
