"""What it costs to have callbacks run elsewhere: threads, coroutines, processes, dask.

Run as ``python tests/benchmarks/execution.py [--rounds N] [--only NAME] [--json FILE]``; see README.md.
"""

from __future__ import annotations

import asyncio
import mmap
import multiprocessing
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, cycle, islice
from multiprocessing.pool import ThreadPool
from time import perf_counter, sleep
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
from rig import Claim, Contender, Table, Times, command_line
from stream import CORE, OURS, at_most, core_source, inc
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from squirrel_torch import IterableSource

Array = npt.NDArray[np.float32]

LOADER = "torch DataLoader"
PROCESSES = 2
LARGE_BUFFER = 10_000
CHUNK = 1000


# -- what is timed --------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """A stream whose clock starts when its preparations are done.

    Args:
        start: Called when the clock starts; gives the items. Everything before is not in the time.
        count: The clock stops at so many items, before anything is closed.
        close: Called after that.
    """

    start: Callable[[], Iterable[Any]]
    count: int
    close: Callable[[], object] = lambda: None

    def items(self) -> Iterator[Any]:
        """Start, and stop at the last item."""
        return islice(self.start(), self.count)


def take(job: Job) -> None:
    """What is timed of a job."""
    for _ in job.items():
        pass


def close(job: Job) -> None:
    """What is done afterwards."""
    job.close()


def at_the_clock(start: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """What `start` gives, called when the first item is asked for: a pool's `imap` begins to work when it is called."""
    return chain.from_iterable(begin() for begin in [start])


def held(items: Iterator[Any], first: int, go: Any) -> Iterator[Any]:
    """`items`, of which nobody can pull those behind the `first` before the event `go` is set."""

    def parts() -> Iterator[Iterator[Any]]:
        yield islice(items, first)
        go.wait()
        yield items

    return chain.from_iterable(parts())


def running(callback: Callable[[int], Any], n: int, warm_up: int, **options: Any) -> Job:
    """async_map of ours that has been running for `warm_up` items; what it does for the others is all in the time."""
    go = threading.Event()
    run = IterableSource(range(-warm_up, n)).to(held, warm_up, go).async_map(callback, **options).run()
    for _ in islice(run, warm_up):
        pass

    def start() -> Iterator[Any]:
        go.set()
        return run

    return Job(start, n, run.close)


def opened(callback: Callable[[int], Any], n: int, **options: Any) -> Job:
    """async_map of ours; all of it is in the time, but not its end."""
    run = IterableSource(range(n)).async_map(callback, **options).run()
    return Job(lambda: run, n, run.close)


def core_on(executor: Any, callback: Callable[[int], Any], n: int, buffer: int = 100) -> Job:
    """async_map of squirrel-core on a live executor."""
    return Job(lambda: iter(core_source(range(n)).async_map(callback, buffer=buffer, executor=executor)), n)


def window(submit: Callable[[Any], Future[Any]], items: Iterable[Any], size: int) -> Iterator[Any]:
    """async_map by hand: at most `size` futures, the oldest leaves first."""
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) == size:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def chunks(n: int) -> Iterator[range]:
    """The numbers up to `n` in chunks."""
    return (range(n)[start : start + CHUNK] for start in range(0, n, CHUNK))


def inc_all(numbers: range) -> list[int]:
    """The callback, chunked by hand."""
    return list(map(inc, numbers))


def warm(executor: Executor) -> Executor:
    """`executor`, all of its workers started."""
    list(executor.map(sleep, [0.05] * 8))
    return executor


def check_incremented(contender: Contender, made: Any, n: int) -> None:
    """Every result, in order."""
    items = made.items() if isinstance(made, Job) else made
    assert list(items) == list(range(1, n + 1)), contender.name


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


def threads_window(callback: Callable[[Any], Any], items: Iterable[Any], workers: int, size: int) -> Iterator[Any]:
    """async_map by hand on threads that are opened for it."""
    with ThreadPoolExecutor(workers) as pool:
        yield from window(partial(pool.submit, callback), items, size)


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
        assert contender.name in (unordered, both, loop) or found == naps[:n], contender.name

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
        ],
        check,
        claims,
        unit=("us/item", 1e6),
    )


# -- cheap callbacks ------------------------------------------------------------------------------------------------------

THREADS = 4


def cheap_threads(resources: ExitStack) -> Table:
    """What it costs to send a callback that does nothing to a thread."""
    limit, by_hand = "ThreadPool.imap(chunksize=1000)", "window of chunks by hand"
    pool = resources.enter_context(ThreadPool(THREADS))
    large, default = f"{OURS}, buffer=10_000", f"{OURS}, buffer=100 (default)"

    def ours(**options: Any) -> Callable[[int], Any]:
        return lambda n: IterableSource(range(n)).async_map(inc, max_workers=THREADS, **options)

    def claims(times: Times) -> list[Claim]:
        return [
            at_most(f"{large} {{:.2f}} x {limit}", times.ratio(large, limit), 2),
            Claim(f"{default} {times.ratio(default, limit):.1f} x, {CORE} {times.ratio(CORE, limit):.0f} x")
            if CORE in times
            else Claim(f"{default} {times.ratio(default, limit):.1f} x"),
        ]

    return Table(
        "cheap-threads",
        f"100,000 cheap callbacks on {THREADS} threads",
        100_000,
        limit,
        [
            Contender("no threads: map", lambda n: IterableSource(range(n)).map(inc)),
            Contender(limit, lambda n: at_the_clock(lambda: pool.imap(inc, range(n), CHUNK)), note="threads already there"),
            Contender(
                by_hand,
                lambda n: chain.from_iterable(threads_window(inc_all, chunks(n), THREADS, 10)),
                note="ThreadPoolExecutor, 10 chunks of 1,000",
            ),
            Contender(large, ours(buffer=LARGE_BUFFER)),
            Contender(default, ours()),
            Contender(CORE, lambda n: core_source(range(n)).async_map(inc, max_workers=THREADS), needs="squirrel", share=0.1),
        ],
        check_incremented,
        claims,
        unit=("us/item", 1e6),
    )


def forked(resources: ExitStack) -> Executor:
    """A pool of processes of Python's own, warm."""
    return warm(resources.enter_context(ProcessPoolExecutor(PROCESSES)))


def cheap_processes(name: str, items: int, resources: ExitStack) -> Table:
    """What it costs to send a callback that does nothing to another process."""
    limit = "Pool.imap(chunksize=1000)"
    pool = resources.enter_context(multiprocessing.Pool(PROCESSES))
    executor = forked(resources)
    own, early, told = f"{OURS}, buffer=10_000", f"{OURS}, still learning", f"{OURS}, chunksize=1000"
    live, default = f"{OURS}, live executor", f"{OURS}, buffer=100 (default)"
    common = {"executor": "process", "max_workers": PROCESSES}
    large = {**common, "buffer": LARGE_BUFFER}

    def claims(times: Times) -> list[Claim]:
        return [
            at_most(f"{own} {{:.2f}} x {limit}", times.ratio(own, limit), 3),
            at_most(f"{live} {{:.2f}} x", times.ratio(live, limit), 3),
            Claim(f"{early} {times.ratio(early, limit):.2f} x"),
        ]

    return Table(
        name,
        f"{items:,} cheap callbacks on {PROCESSES} processes that are already there",
        items,
        limit,
        [
            Contender(limit, lambda n: Job(lambda: pool.imap(inc, range(n), CHUNK), n)),
            Contender(
                "window of chunks by hand",
                lambda n: Job(lambda: chain.from_iterable(window(partial(executor.submit, inc_all), chunks(n), 10)), n),
                note="ProcessPoolExecutor, 10 chunks of 1,000",
            ),
            Contender(own, lambda n: running(inc, n, 20_000, **large), note="after 20,000 items"),
            Contender(early, lambda n: running(inc, n, 20, **large), note="after 20 items"),
            Contender(told, lambda n: running(inc, n, 20_000, chunksize=CHUNK, **large), note="after 20,000 items"),
            Contender(live, lambda n: opened(inc, n, executor=executor, buffer=LARGE_BUFFER), note="from its first item"),
            Contender(default, lambda n: running(inc, n, 1000, **common), note="after 1,000 items"),
            Contender(CORE, lambda n: core_on(executor, inc, n), needs="squirrel", share=2000 / items),
        ],
        check_incremented,
        claims,
        work=take,
        close=close,
        unit=("us/item", 1e6),
    )


def first_result(opening: Callable[[], Any], submit: Callable[[Any], Any]) -> Job:
    """A pool that is opened by hand, and gives one result."""
    opened_pools = ExitStack()

    def start() -> Iterator[Any]:
        yield submit(opened_pools.enter_context(opening()))

    return Job(start, 1, opened_pools.close)


def first_item(_: ExitStack) -> Table:
    """What it costs to open threads and processes."""
    limit, own = f"ProcessPoolExecutor({PROCESSES}) by hand", f"{OURS}, 2 processes"

    def claims(times: Times) -> list[Claim]:
        return [Claim(f"{own} {times.median(own) * 1e3:.1f} ms, {limit} {times.median(limit) * 1e3:.1f} ms")]

    return Table(
        "first-item",
        "from nothing to the first result",
        1,
        limit,
        [
            Contender(
                limit,
                lambda _: first_result(lambda: ProcessPoolExecutor(PROCESSES), lambda pool: pool.submit(inc, 0).result()),
            ),
            Contender(
                f"Pool({PROCESSES}) by hand",
                lambda _: first_result(lambda: multiprocessing.Pool(PROCESSES), lambda pool: next(pool.imap(inc, [0]))),
            ),
            Contender(own, lambda n: opened(inc, n, executor="process", max_workers=PROCESSES)),
            Contender(f"{OURS}, 4 threads", lambda n: opened(inc, n, max_workers=THREADS)),
        ],
        check_incremented,
        claims,
        work=take,
        close=close,
        unit=("ms", 1e3),
    )


# -- dask -----------------------------------------------------------------------------------------------------------------


def dask(resources: ExitStack) -> Table:
    """What it costs to send a callback that does nothing to a dask cluster."""
    limit, large, default = "chunks of 1,000 by hand", f"{OURS}, buffer=10_000", f"{OURS}, buffer=100 (default)"

    def make_client() -> Any:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=PROCESSES, threads_per_worker=1, processes=True, dashboard_address=":0")
        client = resources.enter_context(Client(resources.enter_context(cluster)))
        client.gather(client.map(inc, range(100)))
        return client

    client = make_client()

    def by_hand(n: int) -> Job:
        def start() -> Iterator[int]:
            return chain.from_iterable(client.gather([client.submit(inc_all, chunk, pure=False) for chunk in chunks(n)]))

        return Job(start, n)

    def claims(times: Times) -> list[Claim]:
        found = [Claim(f"{large} {times.ratio(large, limit):.2f} x {limit}")]
        if CORE in times:
            more = times.ratio(CORE, large)
            found.append(Claim(f"{more:.0f} times the throughput of {CORE} (target at least 50)", more >= 50))
        return found

    return Table(
        "dask",
        f"100,000 cheap callbacks on a local dask cluster of {PROCESSES} processes",
        100_000,
        limit,
        [
            Contender(limit, by_hand, needs="distributed", note="all at once, then gathered"),
            Contender(large, lambda n: opened(inc, n, executor=client, buffer=LARGE_BUFFER), needs="distributed"),
            Contender(default, lambda n: opened(inc, n, executor=client), needs="distributed", share=0.02),
            Contender(CORE, lambda n: core_on(client, inc, n), needs="squirrel", share=0.002, note="a task an item"),
        ],
        check_incremented,
        claims,
        work=take,
        close=close,
        unit=("us/item", 1e6),
    )


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


class Held(IterableDataset):
    """Results for a DataLoader, dealt out to its workers."""

    def __init__(self, callback: Callable[[int], Array], n: int, warm_up: int, go: Any) -> None:
        self.callback, self.n, self.warm_up, self.go = callback, n, warm_up, go

    def __iter__(self) -> Iterator[Array]:
        info = get_worker_info()
        indices = held(iter(range(-self.warm_up, self.n)), self.warm_up, self.go)
        return map(self.callback, islice(indices, info.id, None, info.num_workers))


def loaded(callback: Callable[[int], Array], n: int, warm_up: int) -> Job:
    """A DataLoader that has been running for `warm_up` items."""
    go = multiprocessing.Event()
    items = iter(DataLoader(Held(callback, n, warm_up, go), None, num_workers=PROCESSES, multiprocessing_context="fork"))
    for _ in islice(items, warm_up):
        pass

    def start() -> Iterator[Any]:
        go.set()
        return items

    return Job(start, n, items._shutdown_workers)


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
            Contender(CORE, lambda n: core_on(executor, compute, n, SLOTS), needs="squirrel"),
        ],
        check,
        claims,
        work=take,
        close=close,
        unit=("ms/item", 1e3),
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
