"""One worker process as the main process sees it."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections import deque
from contextlib import suppress
from enum import Enum
from math import inf
from multiprocessing.reduction import send_handle
from time import monotonic, perf_counter
from typing import Any, Final, Literal

from squirrel_torch import recording
from squirrel_torch.errors import PipelineError, StageTimeout, WorkerDiedError
from squirrel_torch.execution.encoding import decode
from squirrel_torch.execution.luggage import Luggage
from squirrel_torch.execution.memory import SharedMemory
from squirrel_torch.execution.page import PATIENCE, Page
from squirrel_torch.execution.process import OwnProcess
from squirrel_torch.loader.handing import Handed
from squirrel_torch.loader.line import RECORD, REST, TAKEN, Frame, Line, Order, read_frame
from squirrel_torch.loader.notes import Handlers, handle
from squirrel_torch.loader.serving import Place, serve_passes
from squirrel_torch.loader.slots import FIRST_BYTES

__all__ = ["END", "OURS", "End", "Opener", "Worker"]

_LOOK: Final = 0.5
"""Seconds after which a silent worker is looked at: its line tells of a death only if no child of its own holds it too."""

OURS: Final = "loader/serving.py"
"""The file of the frames that all stacks of workers end with."""


class End(Enum):
    """What comes instead of a batch when there are no more."""

    END = "END"


END: Final = End.END
"""There are no more batches in this pass."""


class Opener:
    """What opening a worker takes."""

    def __init__(self, things: Any, start_method: str | None) -> None:
        self._context = multiprocessing.get_context(start_method)
        self._luggage = Luggage(things, self._context)

    @property
    def start_method(self) -> str:
        """Its name."""
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


class Worker:
    """One worker: its process, what it has said, and what became of its pass.

    Args:
        opener: Opens it.
        place: Who it is.
        handlers: Of notes.
        lane: Of whoever takes its batches, in a recording.
    """

    def __init__(self, opener: Opener, place: Place, handlers: Handlers, lane: str) -> None:
        self._opener = opener
        self._place = place
        self._handlers = handlers
        self._lane = lane
        self._notes: deque[Frame] = deque()
        self._records = False
        self._handed = Handed()
        self._number = 0
        self._frames: deque[Frame] = deque()
        self._last: Exception | End | None = None  # what comes after the frames
        self._open()

    def _open(self) -> None:
        self.process: OwnProcess[Page]
        self.process, self._memory = self._opener.open(self._place)
        self._line = Line(self.process.connection)
        self._dead = False
        self._records = False

    def record(self, on: bool) -> None:
        """Have it send spans of what it does, or no more."""
        if on != self._records and not self._dead:
            self._records = on
            self._line.post(RECORD if on else REST)

    def start(self, order: Order, handed: Handed, *, records: bool = False) -> None:
        """Begin a pass, tell `handed` of its batches, and send spans of it or not."""
        self._handed = handed
        self._frames.clear()
        self._notes.clear()
        self._last = None
        self._number = order.number
        if not self._dead and (self._line.closed or not self.process.is_alive()):
            self._bury()
        if self._dead:
            self._open()
        self.record(records)
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
        while self._notes:  # a handler may raise: all else is in order then
            handle(self._handlers, self._place.worker, self._notes.popleft().body)
        return heard

    def _sort_in(self, frame: Frame) -> None:
        if frame.kind == Frame.END:
            self._last = END
        elif frame.kind == Frame.ERROR:
            self._last = pickle.loads(frame.body)  # noqa: S301  # from a process of ours
        elif frame.kind == Frame.NOTE:
            self._notes.append(frame)
        else:
            self._frames.append(frame)

    def _taken(self, frame: Frame, pinned: bool) -> tuple[Any, Any]:
        began = perf_counter()
        try:
            taken: tuple[Any, Any] = self._copy(frame, pinned)
        except Exception as error:
            self._frames.clear()
            self._last = error  # nothing comes behind a batch that is missing
            raise
        if not self._dead:
            self._line.post(TAKEN)
        now, size = perf_counter(), frame.numbers + frame.pickled
        self._handed.unpacking += now - began
        self._handed.size += size
        if (recorder := recording.recorder) is not None:
            recorder.put((recording.UNPACK, self._lane, began, now, self._place.worker, size))
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
        stack = self.process.stack(OURS)
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
