"""Work that is done in parallel, and the bar that shows how far it is."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing import active_children
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, TypeVar

from squirrel_torch.iterstream.iterable import IterableSource

__all__ = ["bar", "is_watched", "processors", "work_off"]

T = TypeVar("T")
U = TypeVar("U")


def processors() -> int:
    """How many processes this machine has processors for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work_off(work: Callable[[T], U], items: Sequence[T], jobs: int | None, receive: Callable[[U], object]) -> None:
    """Hand the results of `work` to `receive` as they come, in no order.

    Args:
        work: Called with each of `items`, in a process of its own if there are several.
        items: What there is to do.
        jobs: How many processes; None is one for each processor.
        receive: Called in this thread.
    """
    jobs = min(jobs or processors(), len(items))
    if jobs <= 1:
        for item in items:
            receive(work(item))
        return
    stream = IterableSource(items).async_map(
        work, buffer=2 * jobs, max_workers=jobs, executor="process", ordered=False, chunksize=1
    )
    results: Any = iter(stream)
    with _interrupted_at_once(), closing(results):
        for result in results:
            receive(result)


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """On Ctrl-C, end the processes of a stream first: it would wait for what they are at, which may be a large file each."""
    is_usual = current_thread() is main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_usual:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for child in active_children():
            if child.name.startswith("squirrel_torch_process_"):
                with suppress(ValueError):  # it has ended meanwhile
                    child.kill()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_watched(quiet: bool) -> bool:
    """Whether somebody would see a progress bar."""
    return not quiet and sys.stderr.isatty()


def bar(what: str, unit: str, total: int, quiet: bool, done: int = 0) -> Any:
    """A progress bar on stderr, if that is a terminal."""
    from tqdm import tqdm

    return tqdm(desc=what, unit=unit, unit_scale=unit == "B", total=total, initial=done, disable=not is_watched(quiet))
