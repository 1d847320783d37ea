"""What a worker process does: passes, one after the other."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from time import perf_counter
from typing import Any, Final, Protocol

import torch.utils.data._utils.worker as torch_worker

from squirrel_torch import recording
from squirrel_torch.execution.carry import Carried
from squirrel_torch.execution.encoding import encode
from squirrel_torch.execution.luggage import Luggage
from squirrel_torch.execution.memory import SharedMemory
from squirrel_torch.execution.page import Page
from squirrel_torch.execution.process import seed_generators
from squirrel_torch.loader.collating import collate_quickly
from squirrel_torch.loader.handing import Handing
from squirrel_torch.loader.line import Frame, Line, Order, read_orders
from squirrel_torch.loader.notes import Notes
from squirrel_torch.loader.slots import FIRST_BYTES, Slots
from squirrel_torch.loader.spans import BatchSpans
from squirrel_torch.reporting import set_home

__all__ = ["Place", "Serve", "serve_passes"]

_log = logging.getLogger(__name__)

_INLINE: Final = 1024
"""Up to so many pickled bytes go through the pipe; more of them through shared memory, like the numbers."""

_END: Final[Any] = object()


class Serve(Protocol):
    """What workers do; carried to them once."""

    def __call__(self, work: Any, worker: int, count: int) -> Iterable[tuple[Any, Any]]:
        """The tickets and batches of one pass.

        Args:
            work: What the main process gave to `Workers.start`.
            worker: Which of the workers this is, from 0.
            count: How many there are.

        Returns:
            An iterator over (ticket, batch). Its `close`, if it has one, is called when the pass ends early.
        """


@dataclass(frozen=True)
class Place:
    """Who a worker is, and how much it may do ahead.

    Args:
        worker: Its number.
        count: How many there are.
        prefetch: Batches that it makes before the first of them is taken.
        most_bytes: Of shared memory.
    """

    worker: int
    count: int
    prefetch: int
    most_bytes: int


def serve_passes(connection: Connection, _: Page, packed: Any, place: Place) -> None:
    """Serve passes until the main process hangs up; what runs as the process's main function.

    Args:
        connection: To the main process, which sends a handle of the memory for the batches first.
        _: What both sides see, besides.
        packed: A `Serve`, the dataset and the worker_init_fn, as `Luggage` packs them.
        place: Who this is.
    """
    shared = SharedMemory(FIRST_BYTES, recv_handle(connection))
    collate_quickly()
    notes = Notes()
    set_home(notes)
    server = _Server(Line(connection), Slots(shared, place.most_bytes), place, notes)
    server.unpack(packed)
    while (order := server.next_order()) is not None:
        server.serve(order)


class _Server:
    def __init__(self, line: Line, slots: Slots, place: Place, notes: Notes) -> None:
        self._line = line
        self._slots = slots
        self._place = place
        self._notes = notes
        self._spans = BatchSpans(notes)
        self._handing = Handing(notes)
        self._waiting: Order | None = None
        self._broken: Exception | None = None
        self._begun = False

    def unpack(self, packed: Any) -> None:
        """Open the luggage. What fails is raised in the first pass, where somebody hears it."""
        self._serve: Serve
        self._dataset: Any
        self._worker_init_fn: Callable[[int], object] | None
        try:
            self._serve, self._dataset, self._worker_init_fn = Luggage.unpack(packed)
        except Exception as error:  # noqa: BLE001  # see above
            self._broken = error

    def next_order(self) -> Order | None:
        """The pass to begin; None if the main process is gone."""
        while self._waiting is None and not self._line.closed:
            self._listen(None)
        order, self._waiting = self._waiting, None
        return None if self._line.closed else order

    def _listen(self, seconds: float | None) -> None:
        if self._line.move(seconds):
            orders = read_orders(self._line.received)
            for _ in range(min(orders.taken, len(self._slots))):  # those of a pass that has ended count for nothing
                self._slots.free_oldest()
            self._waiting = orders.begin or self._waiting
            if orders.records is not None:
                self._spans.records(orders.records)

    def serve(self, order: Order) -> None:
        """One pass, to its end or until something else is asked for."""
        self._slots.free_all()
        self._notes.clear()
        self._handing.begin()
        try:
            ended = self._served(order)
        except Exception as error:  # noqa: BLE001  # raised where the batches are consumed
            if self._wanted:
                self._say(Frame(Frame.ERROR, order.number, body=pickle.dumps(Carried(error))))
            else:
                _log.warning("worker %d: a pass that was given up failed", self._place.worker, exc_info=error)
        else:
            if ended:
                self._say(Frame(Frame.END, order.number))

    def _served(self, order: Order) -> bool:
        batches = self._begin(order)
        with ExitStack() as stack:
            stack.callback(getattr(batches, "close", _nothing))
            while self._may_go_on():
                began = perf_counter()
                made = next(batches, _END)
                if made is _END:
                    return True
                if recording.recorder is not None:
                    self._spans.made()
                packing, held = perf_counter(), len(self._slots)
                frame = self._packed(order.number, made)
                self._handing.packed(packing, held)
                if recording.recorder is not None:
                    self._spans.packed(began, made[0], frame)
                self._say(frame)
                del made, frame  # not beside the next one
        return False

    def _begin(self, order: Order) -> Iterator[tuple[Any, Any]]:
        if self._broken is not None:
            raise self._broken
        place = self._place
        seed_generators(order.seed)
        torch_worker._worker_info = torch_worker.WorkerInfo(
            id=place.worker, num_workers=place.count, seed=order.seed, dataset=self._dataset
        )
        if not self._begun and self._worker_init_fn is not None:
            try:
                self._worker_init_fn(place.worker)
            except Exception as error:
                self._broken = error
                raise
        self._begun = True
        return iter(self._serve(pickle.loads(order.work), place.worker, place.count))  # noqa: S301  # from the parent

    @property
    def _wanted(self) -> bool:
        """Whether somebody waits for the pass that is going on."""
        return self._waiting is None and not self._line.closed

    def _may_go_on(self) -> bool:
        """Whether to make one more batch; waits until there is a place for it."""
        self._listen(0)
        if self._wanted and len(self._slots) >= self._place.prefetch:
            began = perf_counter()
            while self._wanted and len(self._slots) >= self._place.prefetch:
                self._listen(None)
            self._handing.blocked(began, self._place.prefetch)
            if recording.recorder is not None:
                self._spans.waited(began)
        return self._wanted

    def _packed(self, number: int, made: tuple[Any, Any]) -> Frame:
        encoded = encode(made)
        pickled, numbers = encoded.pickled, encoded.size
        inline = len(pickled) <= _INLINE
        start = self._slots.hold(numbers if inline else numbers + len(pickled))
        if start is None:
            body = bytearray(numbers)
            encoded.write(body, 0)
            return Frame(Frame.PIPED, number, 0, numbers, len(pickled), body + pickled)
        memory = self._slots.shared.memory
        encoded.write(memory, start)
        if not inline:
            memory[start + numbers : start + numbers + len(pickled)] = pickled
        return Frame(Frame.SHARED, number, start, numbers, len(pickled), pickled if inline else b"")

    def _say(self, frame: Frame) -> None:
        last = frame.kind in (Frame.END, Frame.ERROR)
        self._handing.told(last=last)
        if recording.recorder is not None:
            self._spans.told(last=last)
        for note in self._notes.frames(frame.number):
            self._line.post(note.to_bytes())
        self._line.post(frame.to_bytes())
        while self._line.busy and self._wanted:
            self._listen(None)


def _nothing() -> None:
    """What closing an iterator does that has no `close`."""
