"""Items in flight: a feeder that pulls ahead, a place that works, a consumer that takes, and the bound between them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, islice
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any, Final, Literal

from squirrel_torch import recording
from squirrel_torch.errors import ClosedRunError, PipelineError
from squirrel_torch.execution.call import LocalGate, Outcome, belongs_to, is_of
from squirrel_torch.execution.exiting import close_at_exit
from squirrel_torch.execution.sizing import ChunkSize
from squirrel_torch.execution.spans import ChunkSpans
from squirrel_torch.execution.tally import Tally
from squirrel_torch.execution.tuning import MOST_BUFFER, Knob, Tuner
from squirrel_torch.execution.waiting import Waiting
from squirrel_torch.execution.work import Chunk, Deliver, Place

__all__ = ["Flow", "in_reader"]

_END: Final = object()
_WAKE: Final = object()

_PATIENCE = 0.5
"""Seconds that the feeder gets to come back from the stages before when a stream is closed."""

_GLANCE = 0.01
"""Seconds after which a consumer that waits looks for items of a chunk that is not full yet."""

_QUICK = 1e-3
_PART = 256

_numbers = count()
_feeding = threading.local()


class InterruptedFlow(GeneratorExit):
    """The stream is being closed while a thread of its own asks for an item: for generators just that."""


def _fed_here() -> Flow | None:
    """The flow whose feeder this thread is."""
    flow: Flow | None = getattr(_feeding, "flow", None)
    return None if flow is None or flow._pid != os.getpid() else flow  # a feeder may have forked


def in_reader(function: Callable[[], object]) -> None:
    """Call `function` in the thread that reads the stream: now, or if this is a feeder when the reader comes next.

    What loggers know of a run of theirs they often know in one thread only.
    """
    flow = _fed_here()
    if flow is None or flow._gate.closed:
        function()
    else:
        flow._finished.put(function)


class Flow:
    """The items of one stage that are in flight.

    A thread of its own, the feeder, pulls items from the stages before. Whenever the place can do with more work it gets a
    chunk of what has been pulled: the faster the callback, the more is there. Whoever consumes takes finished chunks: the
    oldest, or where order does not matter the next that is done. At most `buffer` items are between being pulled and the chunk
    that they are in having been consumed.

    Args:
        items: The stages before. Only the feeder touches it.
        open_place: Opens the place where the callback runs, given the gate and what to call with each outcome.
        buffer: How many items may be in flight; "auto" begins with four for each worker.
        ordered: Whether results leave in the order of their items.
        chunksize: How many items travel together; None to find out.
        stops: Whether a failure ends the stream.
        tuner: Finds the numbers that are "auto".
        tally: Told of each chunk that is back.
        name: Of the callback, for whoever records.
    """

    def __init__(
        self,
        items: Iterator[Any],
        open_place: Callable[[LocalGate, Deliver], Place],
        *,
        buffer: int | Literal["auto"],
        ordered: bool,
        chunksize: int | None,
        stops: bool,
        tuner: Tuner | None = None,
        tally: Tally | None = None,
        name: str = "async_map",
    ) -> None:
        self.error: BaseException | None = None
        """What the stages before have raised: comes after the last item."""
        self.is_taking: bool = False
        """Whether the consumer waits for a chunk, or takes it. Any thread may ask."""
        self._items: Iterator[Any] | None = items
        self._ordered = ordered
        self._stops = stops
        self._pid = os.getpid()
        self._closed = False
        self._gate = LocalGate()
        # What the feeder asks just now, and whether it is closing something of its own: a stage before that is one of these.
        self._asked: Flow | None = None
        self._closing_inner = False
        # Between the feeder and the place. The lock is for those who form chunks.
        self._lock = threading.RLock()  # an executor may be done before `submit` returns, in the same thread
        self._pumping = False
        self._filling = Waiting()
        self._formed = 0
        self._outstanding = 0
        self._hungry = True
        self._stalled = False
        self._pulled = 0
        self._part = 1
        self._pulled_all = False
        # Between the place and the consumer.
        self._pending: deque[Chunk] = deque()  # oldest first; only where the order is kept
        self._finished: SimpleQueue[Any] = SimpleQueue()  # chunks that are back, calls for the reader, _END or _WAKE
        self._received = 0
        self._ended = False
        # Between the consumer and the feeder.
        self._consumed: SimpleQueue[int] = SimpleQueue()
        self._taken = 0
        self._through = 0
        self._tally = Tally() if tally is None else tally
        self._spans = ChunkSpans(name)
        self.place: Place = open_place(self._gate, self._deliver)
        self._room = min(4 * self.place.workers, MOST_BUFFER) if buffer == "auto" else buffer
        self.sizing: ChunkSize = ChunkSize(self.place.overhead, self.place.workers, self._room, chunksize)
        self._tuner = tuner
        if tuner is not None:
            tuner.connect(
                Knob("max_workers", self.place.workers, self.place.most_workers, self._set_workers),
                Knob("buffer", self._room, MOST_BUFFER, self._set_buffer),
                cheap=lambda: self.sizing.fixed is None and self.sizing.size > 1,
            )
        self._tally.begins(self)
        close_at_exit(self)
        # No thread of the flow holds the generator that holds the flow: an abandoned stream is closed at once.
        self.feeder = threading.Thread(target=self._feed, name=f"squirrel_torch_feeder_{next(_numbers)}", daemon=True)
        """The thread that pulls from the stages before."""
        try:
            self.feeder.start()
        except RuntimeError:
            self.place.close()
            raise

    # -- the consumer -------------------------------------------------------------------------------------------------

    def take(self) -> Chunk | None:
        """The next chunk that is done, waited for; None after the last. The chunk that was taken before is consumed now."""
        if self._pid != os.getpid():
            raise PipelineError(f"this run belongs to process {self._pid}, this is a fork of it: iterate the pipeline here")
        if self._taken:
            self._consumed.put(self._taken)
            self._through += self._taken
            self._taken = 0
        since, self.is_taking = perf_counter(), True
        outer = _fed_here()
        if outer is not None:
            outer._asked = self
        try:
            chunk = self._oldest() if self._ordered else self._any()
        finally:
            self.is_taking = False
            if outer is not None:
                outer._asked = None
        if chunk is not None:
            self._taken = chunk.size
            if (recorder := recording.recorder) is not None:
                self._spans.counts(recorder, self.in_flight, self.sizing.buffer)
            if self._tuner is not None:
                self._tuner.took(self._taken, perf_counter() - since)
        return chunk

    def _set_workers(self, workers: int) -> None:
        self.place.workers = self.sizing.workers = workers

    def _set_buffer(self, buffer: int) -> None:
        self._consumed.put(buffer - self.sizing.buffer)
        self.sizing.buffer = buffer

    def _oldest(self) -> Chunk | None:
        pending = self._pending
        while not (pending and pending[0].done):
            if self._wait() is None:
                return None
        chunk = pending.popleft()
        pending.extendleft(reversed(chunk.rest))
        return chunk

    def _any(self) -> Chunk | None:
        chunk = self._wait()
        while chunk is True:
            chunk = self._wait()
        return chunk or None

    def _wait(self) -> Any:
        """Wait for something to happen: the chunk that came back, True if it was something else, None at the end."""
        if self._ended and self._is_empty():
            return None
        outer = _fed_here()
        if outer is not None and outer._gate.closed:
            raise InterruptedFlow
        try:
            # Chunks are held back until they are full, and items while the feeder pulls several: but not for ever.
            event = self._finished.get(timeout=None if self._ended else _GLANCE)
        except Empty:
            self._pump(part=True)
            return True
        if event is _WAKE:
            if self._gate.closed:
                self._finished.put(_WAKE)  # for whoever asks again
                raise InterruptedFlow
            return True
        if event is _END:
            self._ended = True
            return True
        if not isinstance(event, Chunk):
            in_reader(event)
            return True
        self._received += event.size
        event.done = True
        return event

    def _is_empty(self) -> bool:
        with self._lock:
            return self._received == self._formed and not len(self._filling)

    @property
    def first_without_result(self) -> int | None:
        """The index of the oldest item in flight, where the order is kept. Any thread may ask."""
        try:
            return self._pending[0].start
        except IndexError:  # there is none, or the reader has just taken it
            return None

    @property
    def in_flight(self) -> int:
        """About how many items have been pulled and not consumed. Any thread may ask."""
        return max(self._pulled - self._through, 0)

    @property
    def is_hungry(self) -> bool:
        """Whether the place could do with more. Any thread may ask."""
        return not self._pulled_all and self._outstanding < self.place.depth

    # -- the place ----------------------------------------------------------------------------------------------------

    def _deliver(self, chunk: Chunk, outcome: Outcome) -> None:
        """Called by the place, in any thread: the chunk is back."""
        chunk.outcome = outcome
        if (recorder := recording.recorder) is not None:
            self._spans.back(recorder, chunk, outcome)
        ends = outcome.fatal is not None or (self._stops and outcome.failures)
        with self._lock:
            self.sizing.measured(outcome.count, outcome.seconds)  # it is for one thread at a time
            self._outstanding -= 1
            self._tally.add(outcome)
            self._stalled = self._stalled or outcome.fatal is not None
            if outcome.count < len(chunk.items) and not ends and not self._gate.closed:
                # It came back early: its items turned out to be slow. The rest travels one by one.
                for offset in range(outcome.count, len(chunk.items)):
                    chunk.rest.append(Chunk(chunk.start + offset, [chunk.items[offset]], chunk.limit))
                for part in chunk.rest:
                    self._outstanding += 1
                    self._submit(part)
        self._finished.put(chunk)
        self._pump()

    def _pump(self, *, part: bool = False) -> bool:
        """Give the place what it can do with; whether the feeder should go on.

        Args:
            part: Give it a chunk that is not full, too.
        """
        filling, sizing, place = self._filling, self.sizing, self.place
        with self._lock:
            if self._pumping:
                return True  # further out in this thread
            self._pumping = True
            try:
                while not (self._gate.closed or self._stalled):
                    # Said before looking: an item that comes after the look finds it said.
                    self._hungry = self._outstanding < place.depth
                    size = min(sizing.size, len(filling)) if self._hungry else 0
                    if not size or (size < sizing.size and not (part or self._pulled_all)):
                        return True
                    chunk = Chunk(self._formed, filling.take(size), sizing.limit)
                    self._formed += size
                    self._outstanding += 1
                    if self._ordered:
                        self._pending.append(chunk)
                    self._submit(chunk)
            finally:
                self._pumping = False
        return False

    def _submit(self, chunk: Chunk) -> None:
        if recording.recorder is not None:
            chunk.sent = perf_counter()
        try:
            self.place.submit(chunk)
        except BaseException as error:  # noqa: BLE001  # raised where the stream is consumed
            self._outstanding -= 1
            self._stalled = True
            chunk.outcome = Outcome(fatal=error)
            self._finished.put(chunk)

    # -- the feeder ---------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        _feeding.flow = self
        belongs_to(self._gate)
        items = self._items
        assert items is not None  # noqa: S101  # set until here
        try:
            while (room := self._wanted()) and self._pull(items, room):
                pass
        except InterruptedFlow:
            if not self._gate.closed:  # not this stream was closed, but one that it reads
                self.error = ClosedRunError("a run that the source reads was closed by somebody else")
        except BaseException as error:  # noqa: BLE001  # raised where the stream is consumed
            # Without these frames: what is left are the frames of the stages before.
            self.error = error.with_traceback(_below(error.__traceback__, 2))
        finally:
            self._items = None
            del items
            self._pulled_all = True
            try:
                self._pump()
            finally:
                self._finished.put(_END)
                _feeding.flow = None

    def _pull(self, items: Iterator[Any], room: int) -> bool:
        """Pull `room` items; whether there may be more."""
        filling, sizing, part = self._filling, self.sizing, min(self._part, room)
        while room:
            began = perf_counter()
            filling.put(islice(items, part))
            self._pulled += part
            # Chunks are worth waiting for where it is not for long. While items come fast, several are pulled at a time.
            took, size = (perf_counter() - began) / part, sizing.size
            late = sizing.fixed is None and took * size > _QUICK
            if self._hungry and (late or len(filling) >= size) and not self._pump(part=late):
                return False
            if self._gate.closed or self._has_ended():
                return False
            room -= part
            self._part = min(2 * part if took < _QUICK / _PART else 1, _PART)
            part = min(self._part, room)
        return True

    def _has_ended(self) -> bool:
        """Whether fewer items came than were asked for."""
        with self._lock:
            return self._formed + len(self._filling) < self._pulled

    def _wanted(self) -> int:
        """How many items may be pulled now, waited for until there are some; 0 when the stream is closed."""
        room, self._room = self._room, 0
        try:
            while True:
                room += self._consumed.get_nowait()
        except Empty:
            pass
        while room <= 0 and not self._gate.closed:
            room += self._consumed.get()
        return 0 if self._gate.closed else room

    # -- the end ------------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Start nothing more, and wake whoever waits, here and in the stage before."""
        self._gate.close()
        self._hungry = True  # or the feeder would not look
        self._consumed.put(0)
        self._finished.put(_WAKE)
        asked = self._asked
        if asked is not None:
            asked._finished.put(_WAKE)

    def close(self) -> None:
        """End it: what is queued never runs, what runs is waited for, what was opened is closed. Can be called twice.

        The feeder gets half a second to come back from the stages before, and longer if these have callbacks that run. If it
        does not (a source that waits for the network), it is left to end by itself when it comes back.
        """
        if self._closed or self._pid != os.getpid():  # inherited by a fork: the threads are not here
            return
        self._closed = True
        # Collected as garbage in a thread of its own: it can't wait for itself.
        wait = not is_of(self._gate)
        outer = _fed_here()
        if outer is not None:
            outer._closing_inner = True
        try:
            self.interrupt()
            deadline = monotonic() + _PATIENCE
            self.place.close(wait=wait)
            while wait and self.feeder.is_alive() and monotonic() < deadline:
                self.feeder.join(_GLANCE)
                if self._closing_inner:
                    deadline = monotonic() + _PATIENCE
            self.place.close(wait=wait)  # the feeder may have been starting one more thread
        finally:
            if outer is not None:
                outer._closing_inner = False
            self._pending.clear()
            self._filling.clear()
            if (recorder := recording.recorder) is not None:
                self._spans.ended(recorder)

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close()
        if kind is None or kind is GeneratorExit:
            self._call_what_is_left()

    def _call_what_is_left(self) -> None:
        """Have the reader make the calls that it has not come to; results that it does not want any more are dropped."""
        with suppress(Empty):
            while True:
                event = self._finished.get_nowait()
                if callable(event):
                    in_reader(event)


def _below(traceback: TracebackType | None, frames: int) -> TracebackType | None:
    for _ in range(frames):
        traceback = None if traceback is None else traceback.tb_next
    return traceback
