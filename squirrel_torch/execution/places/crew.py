"""Threads that take chunks from one queue; each has a runner that does the work, here or in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from squirrel_torch.execution.call import Call, Gate, LocalGate, Outcome, belongs_to
from squirrel_torch.execution.process import OwnProcess
from squirrel_torch.execution.watch import ThreadVessel, attend
from squirrel_torch.execution.work import Chunk, Deliver

__all__ = ["AtWork", "Crew", "Runner", "threads"]

_numbers = count()


class AtWork(NamedTuple):
    """A process that is at a call now.

    Args:
        process: Which one.
        offset: At which item of its chunk.
    """

    process: OwnProcess[Any]
    offset: int


class Runner(Protocol):
    """What one thread of a crew works with."""

    def run(self, items: list[Any], limit: float) -> Outcome:
        """Work on a chunk."""

    def stop(self) -> None:
        """Start no further item. Called from another thread."""

    def close(self) -> None:
        """Give back what was opened. Called from its own thread, after its last chunk."""

    def at_work(self) -> AtWork | None:
        """Its process, while that is at a call; None if it has none. Called from another thread."""


class Crew:
    """A place made of threads, started as they are needed.

    Args:
        make_runner: Called once in each thread.
        workers: At most this many threads, for now.
        most_workers: At most this many ever.
        kind: See `Place`.
        overhead: See `Place`.
        gate: Closed when the stream ends.
        deliver: Gets each outcome.
    """

    def __init__(
        self,
        make_runner: Callable[[], Runner],
        workers: int,
        most_workers: int,
        kind: str,
        overhead: float,
        gate: LocalGate,
        deliver: Deliver,
    ) -> None:
        self.workers = workers
        self.most_workers: int = max(workers, most_workers)
        self.kind = kind
        self.overhead = overhead
        self._make_runner = make_runner
        self._gate = gate
        self._deliver = deliver
        self._inbox: SimpleQueue[Chunk | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._runners: list[Runner] = []
        self._submitted = 0
        self._delivered = 0  # about: threads add to it without a lock
        self.name = f"squirrel_torch_{next(_numbers)}"
        """The names of its threads begin with it."""

    @property
    def depth(self) -> int:
        """One for each thread: who delivers a chunk finds the next in the queue."""
        return self.workers

    @property
    def runners(self) -> list[Runner]:
        """Those of all threads that have begun. Any thread may ask."""
        return list(self._runners)

    def submit(self, chunk: Chunk) -> None:
        """Queue it; one more thread is started if all are busy."""
        self._submitted += 1
        number = len(self._threads)
        if number < self.workers and self._submitted - self._delivered > number:
            thread = threading.Thread(target=self._work, args=(number,), name=f"{self.name}_{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there are too many in the system: those that there are will do
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)
        self._inbox.put(chunk)

    def _work(self, number: int) -> None:
        runner: Runner | None = None
        inbox, gate, deliver = self._inbox, self._gate, self._deliver
        belongs_to(gate)
        name = f"{self.kind} {number}"
        try:
            while (chunk := inbox.get()) is not None and not gate.closed:
                try:
                    if runner is None:
                        runner = self._with_runner()
                    outcome = runner.run(chunk.items, chunk.limit)
                except BaseException as error:  # noqa: BLE001  # raised where the stream is consumed
                    outcome = Outcome(fatal=error)
                outcome.worker = outcome.worker or name
                self._delivered += 1
                deliver(chunk, outcome)
                del chunk, outcome
                if number >= self.workers:  # there are to be fewer
                    self._threads.remove(threading.current_thread())
                    return
            inbox.put(None)  # for the next, however many there are
        finally:
            if runner is not None:
                runner.close()

    def _with_runner(self) -> Runner:
        runner = self._make_runner()
        self._runners.append(runner)
        if self._gate.closed:  # whoever closed it may not have seen the runner
            runner.stop()
        return runner

    def close(self, *, wait: bool = True) -> None:
        """Drop what is queued; wait for what runs, unless told not to."""
        self._gate.close()
        for runner in list(self._runners):
            runner.stop()
        self._inbox.put(None)
        if wait:
            for thread in list(self._threads):
                thread.join()


class _ThreadRunner:
    """The callback in the very thread, or in one that is watched if there is a time limit."""

    def __init__(self, call: Call, gate: Gate) -> None:
        self._call = call
        self._gate = gate
        self._vessel = None if call.policy.timeout is None else ThreadVessel(call, gate)

    def run(self, items: list[Any], limit: float) -> Outcome:
        if self._vessel is None:
            return self._call.run(items, self._gate, limit)
        return attend(self._vessel, items, self._call.policy, self._gate, limit)

    def stop(self) -> None:
        if self._vessel is not None:
            self._vessel.stop()

    def close(self) -> None:
        if self._vessel is not None:
            self._vessel.close()

    def at_work(self) -> AtWork | None:
        return None


def threads(
    call: Call,
    workers: int,
    most_workers: int,
    gate: LocalGate,
    deliver: Deliver,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Crew:
    """The callback on threads of this process; each calls `initializer` first, if there is one."""

    def make_runner() -> Runner:
        if initializer is not None:
            initializer(*initargs)
        return _ThreadRunner(call, gate)

    return Crew(make_runner, workers, most_workers, "thread", 50e-6, gate, deliver)
