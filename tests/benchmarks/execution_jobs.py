"""What is timed where callbacks run elsewhere: jobs whose clock starts when their preparations are done."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from time import sleep
from typing import Any

from rig import Contender
from stream import core_source, inc

from squirrel_torch import IterableSource

__all__ = [
    "CHUNK",
    "LARGE_BUFFER",
    "PROCESSES",
    "THREADS",
    "Job",
    "at_the_clock",
    "check_incremented",
    "chunks",
    "close",
    "core_on",
    "forked",
    "held",
    "inc_all",
    "opened",
    "running",
    "take",
    "threads_window",
    "warm",
    "window",
]

THREADS = 4
PROCESSES = 2
LARGE_BUFFER = 10_000
CHUNK = 1000


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


def threads_window(callback: Callable[[Any], Any], items: Iterable[Any], workers: int, size: int) -> Iterator[Any]:
    """async_map by hand on threads that are opened for it."""
    with ThreadPoolExecutor(workers) as pool:
        yield from window(partial(pool.submit, callback), items, size)


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


def forked(resources: ExitStack) -> Executor:
    """A pool of processes of Python's own, warm."""
    return warm(resources.enter_context(ProcessPoolExecutor(PROCESSES)))


def check_incremented(contender: Contender, made: Any, n: int) -> None:
    """Every result, in order."""
    items = made.items() if isinstance(made, Job) else made
    assert list(items) == list(range(1, n + 1)), contender.name
