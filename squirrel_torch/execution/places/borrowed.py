"""Callbacks on an executor that somebody else opened, and will close."""

from __future__ import annotations

import os
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from squirrel_torch.execution.call import Call, LocalGate, Outcome
from squirrel_torch.execution.remote import RemoteCall, work_on
from squirrel_torch.execution.work import Chunk, Deliver

__all__ = ["Borrowed"]

_BROKEN = 'a pool that broke stays broken; one that belongs to the stage, executor="process", goes on'


class Borrowed:
    """A live executor of the caller, used and left open. Calls that run when the stream ends are not waited for.

    Args:
        executor: Where chunks are submitted.
        call: The callback. To executors that pickle what they are given it goes once for each process.
        gate: Closed when the stream ends.
        deliver: Gets each outcome.
    """

    def __init__(self, executor: Executor, call: Call, gate: LocalGate, deliver: Deliver) -> None:
        workers = getattr(executor, "_max_workers", None)
        self.workers = self.most_workers = workers if isinstance(workers, int) else os.cpu_count() or 1
        self.depth = 2 * self.workers + 1
        self.overhead = 30e-6 if isinstance(executor, ThreadPoolExecutor) else 200e-6
        self._executor = executor
        self._remote = RemoteCall(call)
        self._gate = gate
        self._deliver = deliver
        self._futures: set[Future[Outcome]] = set()

    def submit(self, chunk: Chunk) -> None:
        """Have the executor work on it."""
        chunk.leaves(self.workers, len(self._futures) + 1)
        try:
            future = self._executor.submit(work_on, self._remote, chunk.items, self._gate, chunk.limit)
        except Exception as error:  # noqa: BLE001  # shut down, or broken: raised where the stream is consumed
            self._deliver(chunk, Outcome(fatal=_explained(error)))
            return
        self._futures.add(future)
        future.add_done_callback(lambda done: self._done(chunk, done))

    def _done(self, chunk: Chunk, future: Future[Outcome]) -> None:
        self._futures.discard(future)
        if self._gate.closed:
            return
        try:
            outcome = future.result()
        except (Exception, CancelledError) as error:  # noqa: BLE001  # as above
            outcome = Outcome(fatal=_explained(error))
        outcome.seconds = max(outcome.seconds, chunk.turnaround())
        self._deliver(chunk, outcome)

    def close(self) -> None:
        """Cancel what has not been started."""
        self._gate.close()
        for future in list(self._futures):
            future.cancel()
        self._remote.close()


def _explained(error: BaseException) -> BaseException:
    # All futures of a pool that breaks get one and the same exception.
    if isinstance(error, BrokenProcessPool) and _BROKEN not in getattr(error, "__notes__", ()):
        error.add_note(_BROKEN)
    return error
