"""Worker processes as the main process sees them."""

from __future__ import annotations

import multiprocessing
import os
import select
import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from time import monotonic
from typing import Any, Literal

import torch

from squirrel_torch import recording
from squirrel_torch.checks import require_at_least, require_callable, require_seconds
from squirrel_torch.errors import ClosedRunError, PipelineError
from squirrel_torch.execution.luggage import portable_bytes
from squirrel_torch.execution.page import PATIENCE
from squirrel_torch.loader.handing import KIND as HANDING
from squirrel_torch.loader.handing import Handed
from squirrel_torch.loader.line import Order
from squirrel_torch.loader.notes import Handlers
from squirrel_torch.loader.serving import Place, Serve
from squirrel_torch.loader.worker import END, OURS, End, Opener, Worker

__all__ = ["END", "End", "Workers"]


class Workers:
    """Processes that make batches ahead.

    Batches are any nesting of what can be pickled; tensors and arrays in them are copied through shared memory. What is
    received belongs to the receiver, and can be written to. Only one thread may use an object at a time.

    Args:
        serve: What the workers do; lambdas and local functions may be in it.
        count: How many workers.
        start_method: "fork", "spawn" or "forkserver"; multiprocessing's default if None.
        prefetch: How many batches each worker makes ahead of those that were taken from it.
        worker_init_fn: Called once in each process, with the number of the worker.
        timeout: Seconds to wait for a batch; 0 for as long as it takes.
        most_bytes: How much memory each worker shares at most; batches for which there is no room go through a pipe.
        dataset: What `torch.utils.data.get_worker_info().dataset` is in the workers.
        pinned: Whether tensors are put into pinned memory, where CUDA is available.
        lane: Of whoever takes the batches, in a recording.

    Raises:
        PipelineError: If there is no memory to share, or the system is not one of the family of Unix.
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is too small, or there is no such start method.
    """

    def __init__(
        self,
        serve: Serve,
        count: int,
        *,
        start_method: str | None = None,
        prefetch: int = 2,
        worker_init_fn: Callable[[int], object] | None = None,
        timeout: float = 0,
        most_bytes: int = 1 << 30,
        dataset: Any = None,
        pinned: bool = False,
        lane: str = "loader",
    ) -> None:
        require_callable("serve", serve)
        require_at_least("count", count, 1)
        require_at_least("prefetch", prefetch, 1)
        require_at_least("most_bytes", most_bytes, 1)
        require_seconds("timeout", timeout)
        if worker_init_fn is not None:
            require_callable("worker_init_fn", worker_init_fn)
        if start_method not in (None, *multiprocessing.get_all_start_methods()):
            known = ", ".join(map(repr, multiprocessing.get_all_start_methods()))
            raise ValueError(f"start_method must be one of {known} or None, got {start_method!r}")
        if not hasattr(select, "poll"):
            raise PipelineError("worker processes need select.poll, which this system does not have")
        self._timeout = float(timeout)
        self._pinned = pinned
        self._recorder: recording.Recorder | None = None
        self._passes = 0
        self._handed = Handed()
        self.begins: Callable[[Handed], object] | None = None
        """Told what looks at how the batches of a pass come that begins."""
        opener = Opener((serve, dataset, worker_init_fn), start_method)
        self._workers: list[Worker] = []
        self.handlers: Handlers = {recording.KIND: partial(recording.take, lane)}
        """What is called with the notes of workers (see `notes.py`), by their kinds. Filled and emptied at any time."""
        self.waits_for: int | None = None
        """The worker that a batch was asked of last."""
        self._finalizer = weakref.finalize(self, _close, self._workers, os.getpid())
        try:
            for worker in range(count):
                self._workers.append(Worker(opener, Place(worker, count, prefetch, most_bytes), self.handlers, lane))
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def start(self, work: Any, seeds: Sequence[int]) -> None:
        """Begin a pass in all workers. One that is going on is given up, and its batches are dropped.

        The processes stay; those that have died are replaced.

        Args:
            work: What each of them is told. Pickled once.
            seeds: For the global random generators of each; 64 bits, not negative.

        Raises:
            ClosedRunError: If they have been closed.
            ValueError: If there are more or fewer seeds than workers, or one is no number of 64 bits.
            Exception: Whatever pickling `work` raises.
        """
        self._check_open()
        if len(seeds) != len(self._workers):
            raise ValueError(f"seeds must be {len(self._workers)}, one for each worker, got {len(seeds)}")
        for seed in seeds:
            if not 0 <= seed < 1 << 64:
                raise ValueError(f"a seed must be from 0 to 2**64 - 1, got {seed!r}")
        data = portable_bytes(work)
        self._passes += 1
        self._handed = Handed()
        self.handlers[HANDING] = self._handed.take
        if self.begins is not None:
            self.begins(self._handed)
        self._recorder = recording.recorder
        for worker, seed in zip(self._workers, seeds, strict=True):
            worker.start(Order(self._passes, int(seed), data), self._handed, records=self._recorder is not None)

    def receive(self, worker: int) -> tuple[Any, Any] | Literal[End.END]:
        """The next ticket and batch of a worker, waited for; END after its last, as often as it is asked.

        Raises:
            ClosedRunError: If the workers have been closed.
            PipelineError: If no pass was started.
            StageTimeout: If it gives nothing for `timeout` seconds.
            WorkerDiedError: If it has died; batches that it had handed over come first.
            Exception: Whatever the worker raised, after the batches before, as often as it is asked. Whatever a handler of
                notes raises, once.
        """
        self._check_open()
        if not self._passes:
            raise PipelineError("no pass was started: call start() before receive()")
        self.waits_for = worker
        if recording.recorder is not self._recorder:  # a recording has begun or ended meanwhile
            self._recorder = recording.recorder
            for one in self._workers:
                one.record(self._recorder is not None)
        return self._workers[worker].receive(self._timeout, pinned=self._pinned and _cuda())

    def poll(self, worker: int) -> bool:
        """Whether `receive` would not have to wait."""
        self._check_open()
        return self._workers[worker].poll()

    def stack(self, worker: int) -> str:
        """Where a worker is, as `faulthandler` tells it; empty if it does not say. Any thread may ask."""
        try:
            return self._workers[worker].process.stack(OURS)
        except (IndexError, ValueError, OSError):
            return ""  # it has just ended

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise ClosedRunError("these workers have been closed")

    def close(self) -> None:
        """End the processes. A worker that is busy has half a second to come to its end."""
        self._finalizer()


@cache
def _cuda() -> bool:
    """Whether there is CUDA. Asked as late as can be: processes that are forked afterwards can't use it any more."""
    return torch.cuda.is_available()


def _close(workers: list[Worker], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the process that they belong to
    for worker in workers:
        worker.hang_up()
    until = monotonic() + PATIENCE
    for worker in workers:
        worker.end(until)
    workers.clear()
