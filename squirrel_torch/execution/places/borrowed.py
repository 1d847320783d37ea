"""Callbacks on an executor that somebody else opened, and will close."""

from __future__ import annotations

import os
import threading
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import count
from queue import SimpleQueue
from typing import ClassVar

from squirrel_torch.execution.call import Call, LocalGate, Outcome, belongs_to
from squirrel_torch.execution.remote import RemoteCall, work_on
from squirrel_torch.execution.work import Chunk, Deliver

__all__ = ["Borrowed"]

_numbers = count()
_BROKEN = 'a pool that broke stays broken; one that belongs to the stage, executor="process", goes on'


class Borrowed:
    """A live executor of the caller, used and left open. Calls that run when the stream ends are not waited for.

    Args:
        executor: Where chunks are submitted.
        call: The callback. To executors that pickle what they are given it goes once for each process.
        gate: Closed when the stream ends.
        deliver: Gets each outcome.
    """

    kind: ClassVar[str] = "executor"

    def __init__(self, executor: Executor, call: Call, gate: LocalGate, deliver: Deliver) -> None:
        workers = getattr(executor, "_max_workers", None)
        self.workers: int = workers if isinstance(workers, int) else os.cpu_count() or 1
        self.most_workers: int = self.workers
        # A pool of processes can't cancel what it has put into its pipe.
        self.depth: int = self.workers + 1 if isinstance(executor, ProcessPoolExecutor) else 2 * self.workers + 1
        self.overhead: float = 30e-6 if isinstance(executor, ThreadPoolExecutor) else 200e-6
        self._executor = executor
        self._remote = RemoteCall(call, by_name=isinstance(executor, ProcessPoolExecutor))
        self._gate = gate
        self._deliver = deliver
        self._futures: dict[Future[Outcome], Chunk] = {}
        self._back: SimpleQueue[Future[Outcome] | None] = SimpleQueue()
        # What an executor calls when something is done, it may call with its locks held: nothing is submitted there.
        self._thread = threading.Thread(target=self._collect, name=f"squirrel_torch_collector_{next(_numbers)}", daemon=True)
        self._thread.start()

    def submit(self, chunk: Chunk) -> None:
        """Have the executor work on it."""
        chunk.leaves(self.workers, len(self._futures) + 1)
        try:
            future = self._executor.submit(work_on, self._remote, chunk.items, self._gate, chunk.limit)
        except Exception as error:  # noqa: BLE001  # shut down, or broken: raised where the stream is consumed
            self._deliver(chunk, Outcome(fatal=_explained(error)))
            return
        self._futures[future] = chunk
        future.add_done_callback(self._back.put)

    def _collect(self) -> None:
        belongs_to(self._gate)
        while (future := self._back.get()) is not None and not self._gate.closed:
            chunk = self._futures.pop(future)
            outcome = _outcome_of(future, chunk)
            outcome.seconds = max(outcome.seconds, chunk.turnaround())
            self._deliver(chunk, outcome)
            del future, chunk, outcome

    def close(self, *, wait: bool = True) -> None:
        """Cancel what has not been started."""
        self._gate.close()
        self._back.put(None)
        for future in list(self._futures):
            future.cancel()
        if wait:
            self._thread.join()
        self._remote.close()


def _outcome_of(future: Future[Outcome], chunk: Chunk) -> Outcome:
    try:
        return future.result()
    except (BrokenExecutor, CancelledError) as error:
        return Outcome(fatal=_explained(error))
    except Exception as error:  # noqa: BLE001  # an item or a result could not be pickled
        # Which one, shows when they go one by one.
        return Outcome() if len(chunk.items) > 1 else Outcome(failures=[(0, error)])


def _explained(error: BaseException) -> BaseException:
    # All futures of a pool that breaks get one and the same exception.
    if isinstance(error, BrokenProcessPool) and _BROKEN not in getattr(error, "__notes__", ()):
        error.add_note(_BROKEN)
    return error
