"""Callbacks on threads of the process that runs the stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from weakref import WeakSet

__all__ = ["ThreadWork"]

_open: WeakSet[ThreadPoolExecutor] = WeakSet()


class ThreadWork:
    """A pool of threads that ends with the run: queued callbacks never start, running ones are waited for."""

    def __init__(self, callback: Callable[[Any], Any], max_workers: int | None) -> None:
        self._callback = callback
        self._pool = ThreadPoolExecutor(max_workers, thread_name_prefix="squirrel_torch")
        _open.add(self._pool)

    def submit(self, item: Any) -> Future[Any]:
        """Have a thread work on `item`."""
        return self._pool.submit(self._callback, item)

    def __enter__(self) -> ThreadWork:
        return self

    def __exit__(self, *error: object) -> None:
        # A run that is collected as garbage may be so in any thread, one of its own pool included.
        own = threading.current_thread() in self._pool._threads
        self._pool.shutdown(wait=not own, cancel_futures=True)


def _drop_queued() -> None:
    for pool in list(_open):
        pool.shutdown(wait=False, cancel_futures=True)


# At exit Python waits for all that was submitted to any pool. A stream that is still alive then must not keep it: its
# queued callbacks are dropped first. Exit functions of `threading` run latest first, so this has to be registered after
# concurrent.futures (imported above) has registered its own. There is no public way: atexit runs too late.
threading._register_atexit(_drop_queued)  # type: ignore[attr-defined]  # private
