"""What a worker process of a loader does."""

from __future__ import annotations

import pickle
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import current_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NoReturn, Protocol

import torch
from torch.utils.data._utils import worker as torch_worker

from squirrel_torch.execution.carry import Carried
from squirrel_torch.execution.channel import ChannelClosed
from squirrel_torch.execution.child import Control, die_with, seed_generators
from squirrel_torch.loader.slots import BATCH, END, FAILED, Sender

__all__ = ["CREDIT", "LEAVE", "START", "Serve", "Start", "run_worker"]

START, LEAVE, CREDIT = b"s", b"l", b"c"

Order = tuple[int, Any, int]
"""The number of a pass, its work, and a seed."""


class Serve(Protocol):
    """Makes batches, in a worker."""

    def __call__(self, work: Any, worker: int, count: int) -> Iterator[tuple[Any, Any]]:
        """(ticket, batch) one after the other, of one pass.

        Args:
            work: What the pass is.
            worker: The number of this worker.
            count: How many there are.
        """


@dataclass(frozen=True)
class Start:
    """What a new worker is told.

    Args:
        serve: Makes batches.
        count: How many workers there are.
        prefetch: How many batches it may be ahead.
        init: Called with its number, before it makes anything.
        dataset: For `get_worker_info`.
    """

    serve: Serve
    count: int
    prefetch: int
    init: Callable[[int], object] | None
    dataset: Any


def run_worker(connection: Connection, other: Connection | None, parent: int, number: int, packed: Any) -> None:
    """Make batches until the other side is gone; the main function of the process.

    Args:
        connection: To the parent, which sends the handle of a `Control` first.
        other: The parent's end of it, if this process is a fork and has it too.
        parent: Its process id.
        number: Of this worker.
        packed: A `Start`, or the bytes of one.
    """
    if other is not None:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent sees to it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # callbacks may start processes of their own
    die_with(parent, thread=False)
    Control(recv_handle(connection)).take_stacks()
    with suppress(ChannelClosed):  # the other side is gone, or does not listen any more
        _Worker(connection, parent, number).run(packed)


class _Worker:
    """One worker: the pass it is at, and how far it may be ahead."""

    def __init__(self, connection: Connection, parent: int, number: int) -> None:
        self._connection = connection
        self._parent = parent
        self._number = number
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(connection.fileno(), select.POLLIN)
        self._credits = 0
        self._order: Order | None = None

    def run(self, packed: Any) -> None:
        try:
            start: Start = pickle.loads(packed) if isinstance(packed, bytes) else packed  # noqa: S301  # of the parent
            torch.set_num_threads(1)
            self._be(start, 0)
            if start.init is not None:
                start.init(self._number)
        except Exception as error:  # noqa: BLE001  # raised where batches are asked for
            self._refuse(error)
        sender = Sender(self._connection, self._parent, start.prefetch)
        order = self._next_order()
        while True:
            order = self._made(start, sender, *order) or self._next_order()

    def _refuse(self, error: Exception) -> NoReturn:
        """Answer every order with `error`."""
        sender = Sender(self._connection, self._parent, 1)
        while True:
            sender.send(FAILED, self._next_order()[0], Carried(error))

    def _next_order(self) -> Order:
        """The next pass to make."""
        while True:
            data = self._mail()
            if data[:1] == START:
                return _order(data)

    def _be(self, start: Start, seed: int) -> None:
        """Answer `get_worker_info` as a worker of torch does."""
        torch_worker._worker_info = torch_worker.WorkerInfo(
            id=self._number, num_workers=start.count, seed=seed, dataset=start.dataset
        )

    def _made(self, start: Start, sender: Sender, number: int, work: Any, seed: int) -> Order | None:
        """Make a pass; the next order, if one came before its end."""
        self._credits = start.prefetch
        seed_generators(seed)
        self._be(start, seed)
        batches: Iterator[tuple[Any, Any]] | None = None
        try:
            batches = iter(start.serve(work, self._number, start.count))
            while self._allowed():
                for made in batches:
                    sender.send(BATCH, number, made)
                    self._credits -= 1
                    break
                else:
                    sender.send(END, number, None)
                    return None
        except ChannelClosed:
            raise
        except Exception as error:  # noqa: BLE001  # raised where batches are asked for
            sender.send(FAILED, number, Carried(error))
            return None
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()
        order, self._order = self._order, None
        return order

    def _allowed(self) -> bool:
        """Whether one more batch is wanted, waited for until that is known; if not, there may be a next order."""
        while self._credits <= 0 or self._has_mail():
            data = self._mail()
            if data == CREDIT:
                self._credits += 1
            else:
                self._order = _order(data) if data[:1] == START else None
                return False
        return True

    def _mail(self) -> bytes:
        try:
            return self._connection.recv_bytes()
        except (OSError, EOFError) as error:
            raise ChannelClosed from error

    def _has_mail(self) -> bool:
        return self._connection.poll(0) if self._poll is None else bool(self._poll.poll(0))


def _order(data: bytes) -> Order:
    order: Order = pickle.loads(data[1:])  # noqa: S301  # of the parent
    return order
