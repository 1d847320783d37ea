"""The end of the process: streams that are still alive then must not keep it."""

from __future__ import annotations

import concurrent.futures.process  # registers what it does at exit, as the next line does: see the end
import concurrent.futures.thread  # noqa: F401
import multiprocessing.util
import os
import threading
from weakref import WeakSet

from squirrel_torch.execution.process import Closable

__all__ = ["close_at_exit"]

_open: WeakSet[Closable] = WeakSet()
_watching: int | None = None


def close_at_exit(one: Closable) -> None:
    """Close it when the process ends, if it is still there then."""
    global _watching
    _open.add(one)
    if _watching != os.getpid():
        _watching = os.getpid()
        # Children of multiprocessing (the workers of a DataLoader) end their own children before their threads.
        multiprocessing.util.Finalize(None, _close_all, exitpriority=100)


def _close_all() -> None:
    for one in list(_open):
        one.close()


# At exit Python waits for threads, and for all that was submitted to any executor. A stream that is still alive then must
# not keep it: what is queued is dropped, what runs is waited for. Exit functions of `threading` run latest first, so this has
# to be registered after those of concurrent.futures. There is no public way: atexit runs too late.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]  # private
