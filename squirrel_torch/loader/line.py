"""The line between the main process and a worker: frames one way, orders the other."""

from __future__ import annotations

import math
import os
import select
from dataclasses import dataclass
from multiprocessing.connection import Connection
from struct import Struct
from typing import ClassVar, Final, NamedTuple

__all__ = ["RECORD", "REST", "TAKEN", "Frame", "Line", "Order", "Orders", "read_frame", "read_orders"]

_CHUNK: Final = 1 << 16

TAKEN: Final = b"T"
"""The order that says: the oldest batch has been taken, its memory is free."""

RECORD: Final = b"R"
"""The order to record spans, and send them home."""

REST: Final = b"Q"
"""The order to do so no more."""


class Line:
    """One end of a pair of sockets, on which nobody waits for the other to listen.

    Args:
        connection: The end; from now on only this object may use it.
    """

    def __init__(self, connection: Connection) -> None:
        self._handle = connection.fileno()
        os.set_blocking(self._handle, False)
        self._unsent = bytearray()
        self._poll = select.poll()
        self._poll.register(self._handle, select.POLLIN)
        self.received: bytearray = bytearray()
        """What has come and was not read; whoever reads it deletes it."""
        self.closed: bool = False
        """Whether the other side is gone, and all that it has sent was received."""

    @property
    def busy(self) -> bool:
        """Whether something that was posted is still here."""
        return bool(self._unsent)

    def post(self, data: bytes | bytearray) -> None:
        """Send `data`; what does not fit onto the line is sent while `move` waits. Dropped if the other side is gone."""
        if self._unsent:
            self._unsent += data
            return
        sent = self._written(data)
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._poll.modify(self._handle, select.POLLIN | select.POLLOUT)

    def _written(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._handle, data)
        except BlockingIOError:
            return 0
        except OSError:  # nobody there: reading will tell, once all that came before was read
            return len(data)

    def move(self, seconds: float | None) -> bool:
        """Wait until there is something to receive, or to send and room for it; do it; whether something was received.

        Args:
            seconds: How long to wait at most; None for as long as it takes.
        """
        for _, event in self._poll.poll(None if seconds is None else math.ceil(seconds * 1000)):
            if event & select.POLLOUT and self._unsent:
                del self._unsent[: self._written(self._unsent)]
                if not self._unsent:
                    self._poll.modify(self._handle, select.POLLIN)
            if event & ~select.POLLOUT:
                return self._read()
        return False

    def _read(self) -> bool:
        try:
            data = os.read(self._handle, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self.received += data
        self.closed = self.closed or not data
        return bool(data)


# -- from the worker ---------------------------------------------------------------------------------------------------

_HEAD: Final = Struct("<BIQQQQ")


@dataclass(frozen=True, slots=True)
class Frame:
    """What a worker says.

    Args:
        kind: One of those below.
        number: The pass that it belongs to.
        start: Where the batch is in shared memory.
        numbers: Bytes of its arrays and tensors.
        pickled: Bytes of the rest. They follow the numbers, or are the body.
        body: What came through the pipe: the rest, or the numbers and the rest, or an error.
    """

    kind: int
    number: int
    start: int = 0
    numbers: int = 0
    pickled: int = 0
    body: bytes | bytearray = b""

    SHARED: ClassVar = 0
    """A batch in shared memory; the rest may be the body."""
    PIPED: ClassVar = 1
    """A batch in the body."""
    END: ClassVar = 2
    """There are no more batches."""
    ERROR: ClassVar = 3
    """There are no more batches; why is in the body, pickled."""
    NOTE: ClassVar = 4
    """What something in the worker has to say (`reporting.home`): the body is JSON, a list of its kind and the rest."""

    def to_bytes(self) -> bytes:
        """As it goes through the pipe."""
        return _HEAD.pack(self.kind, self.number, self.start, self.numbers, self.pickled, len(self.body)) + self.body


def read_frame(received: bytearray) -> Frame | None:
    """The first frame of what has come, which is deleted there; None if it is not all there yet."""
    if len(received) < _HEAD.size:
        return None
    kind, number, start, numbers, pickled, length = _HEAD.unpack_from(received)
    end = _HEAD.size + length
    if len(received) < end:
        return None
    frame = Frame(kind, number, start, numbers, pickled, received[_HEAD.size : end])
    del received[:end]
    return frame


# -- from the main process ---------------------------------------------------------------------------------------------

_PASS: Final = Struct("<cIQQ")
_START: Final = b"S"


@dataclass(frozen=True, slots=True)
class Order:
    """The order to begin a pass.

    Args:
        number: Which one it is.
        seed: For the worker's random generators, 64 bits.
        work: What to do, pickled.
    """

    number: int
    seed: int
    work: bytes | bytearray

    def to_bytes(self) -> bytes:
        """As it goes through the pipe."""
        return _PASS.pack(_START, self.number, self.seed, len(self.work)) + self.work


class Orders(NamedTuple):
    """What the main process wants.

    Args:
        taken: How many batches have been taken.
        begin: The last order to begin a pass.
        records: Whether to record; None: as before.
    """

    taken: int
    begin: Order | None
    records: bool | None


def read_orders(received: bytearray) -> Orders:
    """What has come; what was read is deleted."""
    taken, order, records = 0, None, None
    while received:
        first = bytes(received[:1])
        if first in (TAKEN, RECORD, REST):
            taken += first == TAKEN
            records = records if first == TAKEN else first == RECORD
            del received[:1]
            continue
        if len(received) < _PASS.size:
            break
        _, number, seed, length = _PASS.unpack_from(received)
        end = _PASS.size + length
        if len(received) < end:
            break
        order = Order(number, seed, received[_PASS.size : end])
        del received[:end]
    return Orders(taken, order, records)
