"""Worker processes as the main process sees them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import cache
from math import inf
from multiprocessing.reduction import send_handle
from time import monotonic
from typing import Any, Final, Literal

import torch

from squirrel_torch.checks import require_at_least, require_callable, require_seconds
from squirrel_torch.errors import ClosedRunError, PipelineError, StageTimeout, WorkerDiedError
from squirrel_torch.execution.encoding import decode
from squirrel_torch.execution.memory import SharedMemory
from squirrel_torch.execution.process import PATIENCE, Luggage, OwnProcess, Page, portable_bytes
from squirrel_torch.loader.line import TAKEN, Frame, Line, Order, read_frame
from squirrel_torch.loader.serving import Place, Serve, serve_passes
from squirrel_torch.loader.slots import FIRST_BYTES

__all__ = ["END", "End", "Workers"]

_LOOK: Final = 0.5
"""Seconds after which a silent worker is looked at: its line tells of a death only if no child of its own holds it too."""

_OURS: Final = "loader/serving.py"


class End(Enum):
    """What comes instead of a batch when there are no more."""

    END = "END"


END: Final = End.END
"""There are no more batches in this pass."""


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
        self._passes = 0
        opener = _Opener((serve, dataset, worker_init_fn), start_method)
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _close, self._workers, os.getpid())
        try:
            for worker in range(count):
                self._workers.append(_Worker(opener, Place(worker, count, prefetch, most_bytes)))
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
        for worker, seed in zip(self._workers, seeds, strict=True):
            worker.start(Order(self._passes, int(seed), data))

    def receive(self, worker: int) -> tuple[Any, Any] | Literal[End.END]:
        """The next ticket and batch of a worker, waited for; END after its last, as often as it is asked.

        Raises:
            ClosedRunError: If the workers have been closed.
            PipelineError: If no pass was started.
            StageTimeout: If it gives nothing for `timeout` seconds.
            WorkerDiedError: If it has died; batches that it had handed over come first.
            Exception: Whatever the worker raised, after the batches before, as often as it is asked.
        """
        self._check_open()
        if not self._passes:
            raise PipelineError("no pass was started: call start() before receive()")
        return self._workers[worker].receive(self._timeout, pinned=self._pinned and _cuda())

    def poll(self, worker: int) -> bool:
        """Whether `receive` would not have to wait."""
        self._check_open()
        return self._workers[worker].poll()

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


def _close(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the process that they belong to
    for worker in workers:
        worker.hang_up()
    until = monotonic() + PATIENCE
    for worker in workers:
        worker.end(until)
    workers.clear()


class _Opener:
    """What opening a worker takes."""

    def __init__(self, things: Any, start_method: str | None) -> None:
        self._context = multiprocessing.get_context(start_method)
        self._luggage = Luggage(things, self._context)

    @property
    def start_method(self) -> str:
        return self._context.get_start_method()

    def open(self, place: Place) -> tuple[OwnProcess[Page], SharedMemory]:
        """A process, and the memory for its batches."""
        try:
            page, memory = Page(), SharedMemory(FIRST_BYTES)
        except OSError as error:
            raise PipelineError(f"a worker needs a page of memory to share, and has none: {error}") from None
        # To end with the thread that starts them is right only for the main thread: another may end long before.
        tied = threading.current_thread() is threading.main_thread()
        name = f"squirrel_torch_worker_{place.worker}"
        arguments = self._luggage.pack(), place
        process = OwnProcess(self._context, serve_passes, arguments, page, name, tied=tied, owned=[memory])
        with suppress(OSError):  # it has ended already: reading will tell
            send_handle(process.connection, memory.handle, process.pid)
        return process, memory


class _Worker:
    """One worker: its process, what it has said, and what became of its pass."""

    def __init__(self, opener: _Opener, place: Place) -> None:
        self._opener = opener
        self._place = place
        self._number = 0
        self._frames: deque[Frame] = deque()
        self._last: Exception | End | None = None  # what comes after the frames
        self._open()

    def _open(self) -> None:
        self.process, self._memory = self._opener.open(self._place)
        self._line = Line(self.process.connection)
        self._dead = False

    def start(self, order: Order) -> None:
        """Begin a pass."""
        self._frames.clear()
        self._last = None
        self._number = order.number
        if not self._dead and (self._line.closed or not self.process.is_alive()):
            self._bury()
        if self._dead:
            self._open()
        self._line.post(order.to_bytes())

    def receive(self, timeout: float, *, pinned: bool) -> tuple[Any, Any] | Literal[End.END]:
        """See `Workers.receive`."""
        if not self._frames and self._last is None:
            self._wait(timeout)
        if self._frames:
            return self._taken(self._frames.popleft(), pinned)
        if isinstance(self._last, Exception):
            raise self._last.with_traceback(None)
        return END

    def poll(self) -> bool:
        """Whether there is something."""
        while not self._frames and self._last is None and not self._dead and self._heard(0):
            pass
        return bool(self._frames) or self._last is not None

    def _wait(self, timeout: float) -> None:
        deadline = monotonic() + timeout if timeout else inf
        while not self._frames and self._last is None:
            if self._heard(min(_LOOK, max(deadline - monotonic(), 0))) or self._last is not None:
                continue
            if not self.process.is_alive() and not self._heard(0):
                self._last = self._last or self._died()
            elif monotonic() >= deadline:
                raise self._too_long(timeout)

    def _heard(self, seconds: float) -> bool:
        """Wait for the worker to say something; whether it did. It may also be that it has died.

        Only called when there are no frames: their batches are in memory that goes with the process.
        """
        heard = self._line.move(seconds)
        while (frame := read_frame(self._line.received)) is not None:
            if frame.number == self._number:
                self._sort_in(frame)
        if self._line.closed and self._last is None:
            self._last = self._died()
        return heard

    def _sort_in(self, frame: Frame) -> None:
        if frame.kind == Frame.END:
            self._last = END
        elif frame.kind == Frame.ERROR:
            self._last = pickle.loads(frame.body)  # noqa: S301  # from a process of ours
        else:
            self._frames.append(frame)

    def _taken(self, frame: Frame, pinned: bool) -> tuple[Any, Any]:
        try:
            taken: tuple[Any, Any] = self._copy(frame, pinned)
        except Exception as error:
            self._frames.clear()
            self._last = error  # nothing comes behind a batch that is missing
            raise
        if not self._dead:
            self._line.post(TAKEN)
        return taken

    def _copy(self, frame: Frame, pinned: bool) -> Any:
        if frame.kind == Frame.PIPED:
            return decode(memoryview(frame.body)[frame.numbers :], frame.body, 0, pinned=pinned)
        end = frame.start + frame.numbers
        if self._memory.size < end + frame.pickled:  # the worker has made it larger
            self._memory.follow()
        memory = self._memory.memory
        return decode(frame.body or memory[end : end + frame.pickled], memory, frame.start, pinned=pinned)

    def _died(self) -> WorkerDiedError:
        ready = self.process.page.listens
        pid, how = self.process.pid, self._bury()
        text = f"worker {self._place.worker} of {self._place.count} (pid {pid}) died: {how}"
        if not ready:
            text += (
                f", before it was ready: see what it wrote to stderr (start method {self._opener.start_method!r}; with any "
                'but "fork" a script needs `if __name__ == "__main__":` around its own code)'
            )
        elif "SIGKILL" in how:
            text += " (the system does so to processes when memory runs out)"
        return WorkerDiedError(text)

    def _bury(self) -> str:
        self._dead = True
        return self.process.end(monotonic() + PATIENCE)

    def _too_long(self, timeout: float) -> StageTimeout:
        stack = self.process.stack(_OURS)
        who = f"worker {self._place.worker} of {self._place.count} (pid {self.process.pid})"
        return StageTimeout(
            f"{who} has given no batch for {timeout:g} s; it was in:\n{stack.rstrip() or '(no stack could be had)'}", stack
        )

    def hang_up(self) -> None:
        """Let it come to its end."""
        self.process.connection.close()

    def end(self, until: float) -> None:
        """Wait for that."""
        if not self._dead:
            self._dead = True
            self.process.end(until)
