"""What it costs to have callbacks run elsewhere: threads, coroutines, processes, dask.

Run as ``python tests/benchmarks/execution.py [--rounds N] [--only NAME] [--json FILE]``; see README.md.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from time import perf_counter, sleep
from typing import Any

from execution_arrays import arrays, numpy
from execution_cheap import cheap_processes, cheap_threads, dask, first_item
from execution_jobs import THREADS, Job, check_incremented, close, opened, take, threads_window
from execution_peers import grain_threads, nodes_threads, spdl_threads
from rig import Claim, Contender, Table, Times, command_line
from stream import CORE, GRAIN, NODES, OURS, SPDL, at_most, core_source, inc

from squirrel_torch import IterableSource

# -- sleeps ---------------------------------------------------------------------------------------------------------------

AT_ONCE = 32
IN_FLIGHT = 100


def nap(seconds: float) -> float:
    """A callback that waits for something."""
    sleep(seconds)
    return seconds


async def async_nap(seconds: float) -> float:
    """The same as a coroutine."""
    await asyncio.sleep(seconds)
    return seconds


def event_loop(seconds: list[float]) -> Iterator[float]:
    """Coroutines by hand: some that share an iterator."""
    rest, done = iter(seconds), []

    async def work() -> None:
        for item in rest:
            done.append(await async_nap(item))

    async def work_all() -> None:
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    asyncio.run(work_all())
    yield from done


def one_sleep(seconds: list[float]) -> Iterator[float]:
    """All the time there is to wait, shared evenly."""
    sleep(sum(seconds) / AT_ONCE)
    yield from seconds


def sleeps(_: ExitStack) -> Table:
    """Callbacks that wait, as for a network."""
    rng = random.Random(0)
    naps = [rng.uniform(1e-3, 20e-3) for _ in range(2000)]
    limit = f"ideal: all sleeps / {AT_ONCE}"
    by_hand, loop = "window of futures by hand", "event loop by hand"
    unordered, coroutines, both = f"{OURS}, unordered", f"{OURS}, coroutines", f"{OURS}, coroutines, unordered"

    def ours(callback: Callable[..., Any], ordered: bool) -> Callable[[int], Any]:
        return lambda n: IterableSource(naps[:n]).async_map(callback, max_workers=AT_ONCE, ordered=ordered)

    def check(contender: Contender, stream: Any, n: int) -> None:
        found = list(stream)
        assert sorted(found) == sorted(naps[:n]), contender.name
        assert contender.name in (unordered, both, loop, f"{SPDL}, unordered") or found == naps[:n], contender.name

    def claims(times: Times) -> list[Claim]:
        targets = {OURS: 1.05, unordered: 1.05, coroutines: 1.1, both: 1.1}
        return [at_most(f"{name} {{:.3f}} x ideal", times.ratio(name, limit), target) for name, target in targets.items()]

    return Table(
        "sleeps",
        f"2,000 sleeps of 1 to 20 ms, {AT_ONCE} at once",
        len(naps),
        limit,
        [
            Contender(limit, lambda n: one_sleep(naps[:n])),
            Contender(by_hand, lambda n: threads_window(nap, naps[:n], AT_ONCE, IN_FLIGHT), note="ordered"),
            Contender(loop, lambda n: event_loop(naps[:n]), note="unordered"),
            Contender(OURS, ours(nap, True), note="ordered"),
            Contender(unordered, ours(nap, False)),
            Contender(coroutines, ours(async_nap, True), note="ordered"),
            Contender(both, ours(async_nap, False)),
            Contender(
                CORE, lambda n: core_source(naps[:n]).async_map(nap, max_workers=AT_ONCE), needs="squirrel", note="ordered"
            ),
            Contender(NODES, lambda n: nodes_threads(nap, naps[:n], AT_ONCE), note="ordered"),
            Contender(SPDL, lambda n: spdl_threads(nap, naps[:n], AT_ONCE), needs="spdl", note="ordered"),
            Contender(f"{SPDL}, unordered", lambda n: spdl_threads(nap, naps[:n], AT_ONCE, "completion"), needs="spdl"),
            Contender(GRAIN, lambda n: grain_threads(nap, naps[:n], AT_ONCE), needs="grain", note="ordered"),
        ],
        check,
        claims,
        unit=("us/item", 1e6),
    )


# -- feeder ---------------------------------------------------------------------------------------------------------------

STEP = 0.01


def slowly(n: int) -> Iterator[int]:
    """Stages before that take their time."""
    for item in range(n):
        sleep(STEP)
        yield item


def inc_slowly(x: int) -> int:
    """A callback that takes a tenth of that."""
    sleep(STEP / 10)
    return x + 1


def train(stream: Iterable[int]) -> None:
    """A consumer that takes as long."""
    for _ in stream:
        sleep(STEP)


def feeder(_: ExitStack) -> Table:
    """Whether the stages before, the callback and the consumer work at the same time."""
    limit = "the consumer alone"

    def claims(times: Times) -> list[Claim]:
        return [at_most(f"{OURS} {{:.1f}} ms per item", times.median(OURS) * 1e3, 12)]

    return Table(
        "feeder",
        "10 ms in the stages before, 1 ms in the callback, 10 ms in the consumer",
        100,
        limit,
        [
            Contender(limit, lambda n: range(1, n + 1)),
            Contender("no threads: map", lambda n: IterableSource(slowly(n)).map(inc_slowly), share=0.5),
            Contender(OURS, lambda n: IterableSource(slowly(n)).async_map(inc_slowly, max_workers=THREADS)),
            Contender(CORE, lambda n: core_source(slowly(n)).async_map(inc_slowly, max_workers=THREADS), needs="squirrel"),
        ],
        check_incremented,
        claims,
        work=train,
        unit=("ms/item", 1e3),
    )


# -- auto -----------------------------------------------------------------------------------------------------------------


def inc_after_nap(x: int) -> int:
    """A callback that waits."""
    sleep(STEP)
    return x + 1


SETTLING = 4.0


def settled(callback: Callable[[int], int], n: int) -> Job:
    """All "auto", after it has worked for some seconds; what it gives then is counted from 1 again."""
    run = IterableSource(range(10**9)).async_map(callback, "auto", "auto").run()
    until = perf_counter() + SETTLING
    last = next(item for item in run if perf_counter() > until)
    return Job(lambda: map(last.__rsub__, run), n, run.close)


def auto(kind: str, what: str, callback: Callable[[int], int], items: int, fixed: list[tuple[int, int]], _: ExitStack) -> Table:
    """What it costs not to choose, and to have it found out."""
    names = {f"buffer={buffer}, max_workers={workers}": (buffer, workers) for buffer, workers in fixed}
    limit = next(iter(names))
    whole, later = "all auto, from its start", f"all auto, after {SETTLING:g} s"

    def ours(buffer: Any, workers: Any) -> Callable[[int], Any]:
        return lambda n: opened(callback, n, buffer=buffer, max_workers=workers)

    def claims(times: Times) -> list[Claim]:
        best = min(names, key=times.median)
        return [Claim(f"{name} {times.ratio(name, best):.2f} x {best} (no target)") for name in (whole, later)]

    return Table(
        f"auto-{kind}",
        f"{items:,} callbacks: {what}",
        items,
        limit,
        [
            *(Contender(name, ours(*options), share=0.25) for name, options in names.items()),
            Contender(whole, ours("auto", "auto")),
            Contender(later, lambda n: settled(callback, n), share=0.25),
        ],
        check_incremented,
        claims,
        work=take,
        close=close,
        unit=("us/item", 1e6),
    )


# -- command line ---------------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[ExitStack], Table]] = {
    "sleeps": sleeps,
    "cheap-threads": cheap_threads,
    "cheap-processes": partial(cheap_processes, "cheap-processes", 20_000),
    "cheap-processes-long": partial(cheap_processes, "cheap-processes-long", 200_000),
    "first-item": first_item,
    "dask": dask,
    "arrays": arrays,
    "numpy": numpy,
    "feeder": feeder,
    "auto-sleeps": partial(auto, "sleeps", "sleep of 10 ms", inc_after_nap, 12_000, [(1024, 64), (128, 64)]),
    "auto-cheap": partial(auto, "cheap", "cheap", inc, 2_000_000, [(1024, 1), (1024, 4), (10_000, 4)]),
}


if __name__ == "__main__":
    command_line("What it costs to have callbacks run elsewhere, next to peers.", TABLES, rounds=3)
