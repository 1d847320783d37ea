"""What it costs to send a callback that does nothing elsewhere: to threads, processes, dask."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from itertools import chain
from multiprocessing.pool import ThreadPool
from typing import Any

from execution_jobs import (
    CHUNK,
    LARGE_BUFFER,
    PROCESSES,
    THREADS,
    Job,
    at_the_clock,
    check_incremented,
    chunks,
    close,
    core_on,
    forked,
    inc_all,
    opened,
    running,
    take,
    threads_window,
    window,
)
from execution_peers import grain_threads, loaded_chunks, nodes_cheap_threads, nodes_processes, spdl_cheap_threads
from rig import Claim, Contender, Table, Times
from stream import CORE, GRAIN, LOADER, NODES, OURS, SPDL, at_most, core_source, inc

from squirrel_torch import IterableSource

# -- cheap callbacks ------------------------------------------------------------------------------------------------------


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
            Contender(NODES, lambda n: nodes_cheap_threads(n, THREADS), note="prebatch=1000"),
            Contender(SPDL, lambda n: spdl_cheap_threads(n, THREADS), needs="spdl", note="chunks of 1,000 by hand"),
            Contender(GRAIN, lambda n: grain_threads(inc, range(n), THREADS), needs="grain", share=0.05),
        ],
        check_incremented,
        claims,
        unit=("us/item", 1e6),
    )


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
            Contender(
                NODES, lambda n: nodes_processes(inc, n, 4 * CHUNK, prebatch=CHUNK), note="prebatch=1000, after 4,000 items"
            ),
            Contender(LOADER, loaded_chunks, note="lists of 1,000, after 4 of them"),
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

    @cache
    def client() -> Any:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=PROCESSES, threads_per_worker=1, processes=True, dashboard_address=":0")
        opened = resources.enter_context(Client(resources.enter_context(cluster)))
        opened.gather(opened.map(inc, range(100)))
        return opened

    def by_hand(n: int) -> Job:
        def start() -> Iterator[int]:
            return chain.from_iterable(client().gather([client().submit(inc_all, chunk, pure=False) for chunk in chunks(n)]))

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
            Contender(large, lambda n: opened(inc, n, executor=client(), buffer=LARGE_BUFFER), needs="distributed"),
            Contender(default, lambda n: opened(inc, n, executor=client()), needs="distributed", share=0.02),
            Contender(CORE, lambda n: core_on(client(), inc, n), needs="squirrel", share=0.002, note="a task an item"),
        ],
        check_incremented,
        claims,
        work=take,
        close=close,
        unit=("us/item", 1e6),
    )
