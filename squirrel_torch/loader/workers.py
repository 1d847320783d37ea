"""The worker processes of a loader, as the process that trains sees them."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from time import monotonic, sleep
from typing import Any
from weakref import WeakSet, finalize

from squirrel_torch.checks import require_at_least
from squirrel_torch.errors import PipelineError, StageTimeout, WorkerDiedError
from squirrel_torch.execution.child import DUMP_SIGNAL, Control
from squirrel_torch.execution.places.processes import one_at_a_time, portable_bytes, start_process
from squirrel_torch.loader.course import END as END_OF_PASS
from squirrel_torch.loader.serving import CREDIT, LEAVE, START, Serve, Start, run_worker
from squirrel_torch.loader.slots import BATCH, END, Receiver

__all__ = ["Workers"]

_GLANCE = 1.0
"""Seconds after which a silent worker is looked at: a pipe tells of a death only if nobody else holds its other end."""

_PATIENCE = 1.5
"""Seconds that a worker gets to leave what it is at."""

_SHORT = 0.5

_alive: WeakSet[_Worker] = WeakSet()


def _forget() -> None:
    """In a process that was forked meanwhile: keep nothing open that belongs to the workers of the other."""
    for worker in list(_alive):
        with suppress(Exception):
            worker.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Workers:
    """Processes that make batches ahead, each a bounded number of them.

    Args:
        serve: Makes the batches of one worker.
        count: How many workers there are.
        start_method: "fork", "spawn" or "forkserver"; None is that of `multiprocessing`.
        prefetch: How many batches each may be ahead of what was taken.
        worker_init_fn: Called in each with its number, before it makes anything.
        timeout: Seconds to wait for a batch; 0 is no limit.
        dataset: What `get_worker_info().dataset` is there.

    Raises:
        WorkerDiedError: If one can't be started.
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
        dataset: Any = None,
    ) -> None:
        require_at_least("count", count, 1)
        require_at_least("prefetch", prefetch, 1)
        self._timeout = timeout
        self._pass = 0
        self._said: list[Any] = [None] * count  # after the last batch of a pass: the end, or an error
        self._workers: list[_Worker] = []
        self._close = finalize(self, _close, self._workers)
        context = multiprocessing.get_context(start_method)
        start = Start(serve, count, prefetch, worker_init_fn, dataset)
        is_fork = context.get_start_method() == "fork"
        packed = start if is_fork else portable_bytes(start)
        try:
            for number in range(count):
                self._workers.append(_Worker(context, number, packed))
        except BaseException:
            self.close()
            raise

    def start(self, work: Any, seeds: Sequence[int]) -> None:
        """Begin a pass in all workers. One that goes on is left.

        Args:
            work: What the pass is; any object that pickle or cloudpickle can carry.
            seeds: For the global random generators of each worker.
        """
        self._pass += 1
        for worker, seed in zip(self._workers, seeds, strict=True):
            self._said[worker.number] = None
            worker.send(START + portable_bytes((self._pass, work, seed)))

    def receive(self, worker: int) -> Any:
        """The next (ticket, batch) of a worker, waited for; `course.END` behind its last.

        Raises:
            WorkerDiedError: If the worker has died.
            StageTimeout: If it takes longer than the time limit.
            Exception: What the worker raised, with its traceback there as the cause.
        """
        said, one = self._said[worker], self._workers[worker]
        if said is END_OF_PASS:
            return said
        if said is not None:
            raise said
        deadline = monotonic() + self._timeout if self._timeout else None
        while (message := self._next(one, deadline)) is None:
            pass
        kind, thing = message
        if kind == BATCH:
            one.send(CREDIT)
            return thing
        self._said[worker] = END_OF_PASS if kind == END else thing
        return self.receive(worker)

    def _next(self, worker: _Worker, deadline: float | None) -> tuple[int, Any] | None:
        while not worker.is_ready(_GLANCE if deadline is None else max(0.0, min(_GLANCE, deadline - monotonic()))):
            if not worker.process.is_alive() and not worker.is_ready(0):
                raise self._died(worker)
            if deadline is not None and monotonic() >= deadline:
                raise self._late(worker)
        try:
            return worker.receiver.receive(self._pass)
        except (OSError, EOFError):
            raise self._died(worker) from None

    def _died(self, worker: _Worker) -> WorkerDiedError:
        how = worker.end(_SHORT)
        error = WorkerDiedError(
            f"worker {worker.number} of {len(self._workers)} of the loader (process {worker.pid}) ended by {how} while batches were "
            "asked of it: see what it wrote to stderr; it may have been killed because memory ran out"
        )
        self._said[worker.number] = error
        return error

    def _late(self, worker: _Worker) -> StageTimeout:
        stack = worker.stack()
        error = StageTimeout(
            f"worker {worker.number} of {len(self._workers)} of the loader (process {worker.pid}) gave no batch within "
            f"{self._timeout} s" + (f"; it is at\n{stack}" if stack else ""),
            stack,
        )
        self._said[worker.number] = error
        return error

    def leave(self) -> None:
        """Leave the pass that goes on; the workers wait for the next one."""
        self._pass += 1
        for worker in self._workers:
            worker.send(LEAVE)

    def close(self) -> None:
        """End all workers."""
        self._close()


def _close(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.let_go()  # they end when they look
    end = monotonic() + _PATIENCE
    for worker in workers:
        worker.end(max(0.0, end - monotonic()))
    workers.clear()


class _Worker:
    """A worker process, and the way to talk to it."""

    def __init__(self, context: Any, number: int, packed: Any) -> None:
        self.number = number
        self._home = os.getpid()
        self._how: str | None = None
        try:
            self._control = Control()
        except OSError as error:
            raise PipelineError(f"a worker of a loader needs a page of memory to share, and has none: {error}") from None
        try:
            with one_at_a_time():
                here, there = context.Pipe()
                is_fork = context.get_start_method() == "fork"
                self.process = context.Process(
                    target=run_worker,
                    args=(there, here if is_fork else None, os.getpid(), number, packed),
                    name=f"squirrel_torch_worker_{number}",
                    daemon=True,
                )
                start_process(self.process)
                there.close()
                self._connection: Connection = here
                self.receiver = Receiver(here)
                _alive.add(self)
        except BaseException:
            self._control.close()
            raise
        self.pid = self.process.pid
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(here.fileno(), select.POLLIN)
        with suppress(OSError):  # dead already: said when it is asked for a batch
            send_handle(here, self._control.shared.handle, self.pid)

    def send(self, data: bytes) -> None:
        with suppress(OSError):  # dead: said when it is asked for a batch
            self._connection.send_bytes(data)

    def is_ready(self, seconds: float) -> bool:
        """Whether it has said something, waited for so long."""
        if self._connection.closed:
            return False
        if self._poll is None:
            return bool(wait([self._connection], seconds))
        return bool(self._poll.poll(int(seconds * 1000)))

    def stack(self) -> str:
        """Where its threads are; empty if it does not say."""
        if DUMP_SIGNAL is None or self.pid is None:
            return ""
        with suppress(ProcessLookupError):
            os.kill(self.pid, DUMP_SIGNAL)
        end = monotonic() + _SHORT
        while not self._control.stack() and monotonic() < end:
            sleep(0.01)
        sleep(0.01)  # the rest of it
        return self._control.stack()

    def let_go(self) -> None:
        """Close the pipe and the memory: it ends when it notices."""
        _alive.discard(self)  # first: a fork in between must not close these numbers, which may be others' by then
        self._connection.close()
        self.receiver.close()

    def end(self, patience: float) -> str:
        """See it to its end, within `patience` seconds; how it ended."""
        if self._how is not None or self._home != os.getpid():
            return self._how or ""
        self.let_go()
        self.process.join(patience)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(_SHORT)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()  # its descriptors would else wait for the garbage collector
        self._control.close()
        self._how = f"exit code {code}"
        if code is not None and code < 0:
            with suppress(ValueError):
                self._how = f"signal {signal.Signals(-code).name}"
        return self._how
