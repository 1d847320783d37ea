"""What it costs to get large arrays from other processes, with work and without."""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import cache, partial
from itertools import cycle
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
from execution_jobs import PROCESSES, Job, close, core_on, forked, opened, running, take, warm, window
from execution_peers import grain_processes, loaded, nodes_processes, spdl_processes
from rig import Claim, Contender, Table, Times
from stream import CORE, GRAIN, LOADER, NODES, OURS, SPDL, at_most

Array = npt.NDArray[np.float32]

# -- arrays ---------------------------------------------------------------------------------------------------------------

SHAPE = (224, 224, 3)
SLOTS = 16
READY = [np.random.default_rng(i).random(SHAPE, np.float32) for i in range(4)]


def ready(index: int) -> Array:
    """An array that is there already; a new object each time, which no pickle takes for one that it has sent."""
    return READY[index % len(READY)].view()


def compute(index: int) -> Array:
    """About 8 ms of work. What is allocated is the result and room for one more: the rest would measure page faults."""
    x = np.random.default_rng(abs(index)).standard_normal(SHAPE, np.float32)
    root = np.empty_like(x)
    for _ in range(24):
        np.sqrt(np.abs(x, out=root), out=root)
        np.add(np.sin(x, out=x), root, out=x)
    return x


class Ring:
    """Slots in memory that is shared with the processes of a pool which is opened later: arrays by hand."""

    def __init__(self) -> None:
        size = READY[0].nbytes
        self.slots = np.frombuffer(mmap.mmap(-1, SLOTS * size), np.float32).reshape(SLOTS, *SHAPE)

    def put(self, callback: Callable[[int], Array], task: tuple[int, int]) -> int:
        """In a process: the slot that has the result."""
        index, slot = task
        self.slots[slot] = callback(index)
        return slot

    def items(self, executor: Executor, callback: Callable[[int], Array], n: int) -> Iterator[Array]:
        """The results, copied out."""
        tasks = zip(range(n), cycle(range(SLOTS)), strict=False)
        for slot in window(partial(executor.submit, _put, callback), tasks, SLOTS):
            yield self.slots[slot].copy()


_ring: Ring | None = None  # processes that are forked find it here


def _put(callback: Callable[[int], Array], task: tuple[int, int]) -> int:
    assert _ring is not None
    return _ring.put(callback, task)


def with_ring(resources: ExitStack) -> tuple[Ring, Executor]:
    """A ring, and a warm pool that sees it."""
    global _ring
    _ring = Ring()
    return _ring, forked(resources)


def check_arrays(callback: Callable[[int], Array]) -> Callable[[Contender, Job, int], None]:
    """Every array, in order."""
    expected = cache(lambda index: crc32(callback(index)))

    def check(contender: Contender, job: Job, n: int) -> None:
        assert [crc32(np.asarray(array)) for array in job.items()] == [expected(index) for index in range(n)], contender.name

    return check


def arrays(resources: ExitStack) -> Table:
    """What it costs to get an array out of another process."""
    limit, by_hand = "array.copy() in one process", "window of futures by hand"
    ring, executor = with_ring(resources)

    def claims(times: Times) -> list[Claim]:
        found = [
            at_most(f"{OURS} {{:.1f}} x {limit}", times.ratio(OURS, limit), 12),
            Claim(f"pickle by hand {times.ratio(by_hand, OURS):.1f} x {OURS}"),
            Claim(f"{LOADER} {times.ratio(LOADER, OURS):.1f} x"),
        ]
        return [*found, Claim(f"{CORE} {times.ratio(CORE, OURS):.1f} x")] if CORE in times else found

    options = {"executor": "process", "max_workers": PROCESSES}
    return Table(
        "arrays",
        f"hand-over of float32 arrays of 602 kB from {PROCESSES} processes, without work",
        2000,
        limit,
        [
            Contender(limit, lambda n: Job(lambda: (ready(index).copy() for index in range(n)), n)),
            Contender("ring of shared memory by hand", lambda n: Job(lambda: ring.items(executor, ready, n), n)),
            Contender(OURS, lambda n: running(ready, n, 500, **options), note="after 500 items"),
            Contender(
                f"{OURS}, live executor", lambda n: opened(ready, n, executor=executor), share=0.25, note="pickle over a pipe"
            ),
            Contender(
                by_hand,
                lambda n: Job(lambda: window(partial(executor.submit, ready), range(n), SLOTS), n),
                share=0.25,
                note="pickle over a pipe",
            ),
            Contender(LOADER, lambda n: loaded(ready, n, 50), share=0.25, note="after 50 items; tensors"),
            Contender(NODES, lambda n: nodes_processes(ready, n, 50), share=0.25, note="after 50 items"),
            Contender(SPDL, lambda n: spdl_processes(ready, n, 50), share=0.25, needs="spdl", note="a ProcessPoolExecutor"),
            Contender(CORE, lambda n: core_on(executor, ready, n, SLOTS), needs="squirrel", share=0.25),
        ],
        check_arrays(ready),
        claims,
        work=take,
        close=close,
        unit=("us/item", 1e6),
    )


# -- numpy ----------------------------------------------------------------------------------------------------------------


def corner(array: Array) -> float:
    """Enough of an array to see that it was made."""
    return float(array[0, 0, 0])


def _share(n: int, begun: Any, go: Any, replies: Any) -> None:
    compute(0)
    replies.put(0.0)
    go.wait()
    total = 0.0
    while True:
        with begun.get_lock():
            index, begun.value = begun.value, begun.value + 1
        if index >= n:
            break
        total += corner(compute(index))
    replies.put(total)


def two_processes(n: int) -> Job:
    """They share the work, and hand over a number at the end."""
    context = multiprocessing.get_context("fork")
    begun, go, replies = context.Value("q", 0), context.Event(), context.SimpleQueue()
    children = [context.Process(target=_share, args=(n, begun, go, replies), daemon=True) for _ in range(PROCESSES)]
    for child in children:
        child.start()
    for _ in children:
        replies.get()

    def start() -> Iterator[float]:
        go.set()
        return iter([replies.get() for _ in children])

    def join() -> None:
        for child in children:
            child.join()

    return Job(start, n, join)


def numpy(resources: ExitStack) -> Table:
    """Work in numpy that gives a large array."""
    limit, by_hand = "two processes, nothing handed over", "window of futures by hand"
    executor = forked(resources)

    check_all = check_arrays(compute)

    def check(contender: Contender, job: Job, n: int) -> None:
        if contender.name == limit:
            assert np.isclose(sum(job.items()), sum(corner(compute(index)) for index in range(n))), contender.name
        else:
            check_all(contender, job, n)

    def by_loky(n: int) -> Job:
        from loky import get_reusable_executor

        executor = warm(get_reusable_executor(PROCESSES))
        resources.callback(executor.shutdown, wait=True, kill_workers=True)
        return Job(lambda: window(partial(executor.submit, compute), range(n), SLOTS), n)

    def claims(times: Times) -> list[Claim]:
        return [at_most(f"{OURS} {{:.2f}} x {limit}", times.ratio(OURS, limit), 1.2)]

    options = {"executor": "process", "max_workers": PROCESSES}
    return Table(
        "numpy",
        f"about 8 ms of numpy that gives 602 kB, {PROCESSES} processes",
        120,
        limit,
        [
            Contender(limit, two_processes),
            Contender("one process: map", lambda n: Job(lambda: map(compute, range(n)), n), share=0.5),
            Contender(OURS, lambda n: running(compute, n, 10, **options), note="after 10 items"),
            Contender(
                by_hand,
                lambda n: Job(lambda: window(partial(executor.submit, compute), range(n), SLOTS), n),
                note="pickle over a pipe",
            ),
            Contender("loky, window by hand", by_loky, needs="loky"),
            Contender(LOADER, lambda n: loaded(compute, n, 10), note="after 10 items; tensors"),
            Contender(NODES, lambda n: nodes_processes(compute, n, 10), note="after 10 items"),
            Contender(SPDL, lambda n: spdl_processes(compute, n, 10), needs="spdl", note="a ProcessPoolExecutor"),
            Contender(GRAIN, lambda n: grain_processes(compute, n, 10), needs="grain", note="mp_prefetch, after 10 items"),
            Contender(CORE, lambda n: core_on(executor, compute, n, SLOTS), needs="squirrel"),
        ],
        check,
        claims,
        work=take,
        close=close,
        unit=("ms/item", 1e3),
    )
