"""Batches from one process to another: a small message through a pipe, the numbers through memory that both see.

The memory is a ring of slots that are used again and again. The sender writes batch n into slot n mod count, which is free:
it may be no more than `count` batches ahead of what the receiver has taken, and the receiver copies what it takes. So nothing
has to be freed, and the memory, which has no name, is gone with the last process that sees it.
"""

from __future__ import annotations

import pickle
import struct
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Final

import numpy as np

from squirrel_torch.execution.channel import ChannelClosed, SharedMemory, dumps, offsets_of

__all__ = ["BATCH", "END", "FAILED", "Receiver", "Sender"]

BATCH, FAILED, END, _MEMORY = range(4)

_HEAD: Final = struct.Struct("<BIQI")
"""Kind, pass, where in the memory (or `_IN_PIPE`), how many buffers."""

_IN_PIPE: Final = (1 << 64) - 1
_LARGE: Final = 4096
"""Buffers of so many bytes do not go through the pipe."""

_LEAST: Final = 1 << 16
_MOST: Final = 1 << 30


class Sender:
    """The end of the process that makes batches.

    Args:
        connection: A duplex pipe of `multiprocessing`.
        peer: The process id of the other side.
        slots: How many batches may be under way.
    """

    def __init__(self, connection: Connection, peer: int, slots: int) -> None:
        self._connection = connection
        self._peer = peer
        self._slots = slots
        self._number = 0
        self._size = 0
        self._memory: SharedMemory | None = None
        self._most = _MOST // slots

    def send(self, kind: int, number: int, thing: Any) -> None:
        """Send something of pass `number`.

        Raises:
            ChannelClosed: If the other side is gone.
            Exception: Whatever pickling raises; nothing has been sent then.
        """
        data, buffers = dumps(thing, _LARGE)
        try:
            self._write(kind, number, data, buffers)
        except OSError as error:
            raise ChannelClosed from error

    def _write(self, kind: int, number: int, data: bytes, buffers: list[memoryview]) -> None:
        sizes = [view.nbytes for view in buffers]
        offsets, end = offsets_of(sizes)
        begin = self._slot(end) if buffers else 0
        head = _HEAD.pack(kind, number, begin, len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
        if begin != _IN_PIPE and self._memory is not None:
            target = self._memory.bytes
            for offset, view in zip(offsets, buffers, strict=True):
                target[begin + offset : begin + offset + view.nbytes] = np.frombuffer(view, np.uint8)
        self._connection.send_bytes(head + data)
        if begin == _IN_PIPE:
            for view in buffers:
                self._connection.send_bytes(view)

    def _slot(self, size: int) -> int:
        """Where the next slot begins, which has at least `size` bytes; `_IN_PIPE` if there is not so much memory."""
        if size > self._size and not self._grown(size):
            return _IN_PIPE
        self._number += 1
        return self._number % self._slots * self._size

    def _grown(self, size: int) -> bool:
        if size > self._most:
            return False
        larger = max(1 << (size - 1).bit_length(), _LEAST)
        try:
            memory = SharedMemory(larger * self._slots)
        except OSError:
            self._most = self._size  # there is no more to be had
            return False
        self._connection.send_bytes(_HEAD.pack(_MEMORY, 0, memory.size, 0))
        send_handle(self._connection, memory.handle, self._peer)
        if self._memory is not None:
            self._memory.close()  # the other side has its own view on what is still under way there
        self._memory, self._size = memory, larger
        return True


class Receiver:
    """The end of the process that takes batches.

    Args:
        connection: A duplex pipe of `multiprocessing`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._memory: SharedMemory | None = None

    def receive(self, current: int) -> tuple[int, Any] | None:
        """What has come: its kind, and the thing itself, whose arrays and tensors belong to the caller.

        None if it was of another pass than `current`, or only the news of more memory.

        Raises:
            OSError, EOFError: If the other side is gone.
        """
        data = memoryview(self._connection.recv_bytes())
        kind, number, begin, count = _HEAD.unpack_from(data)
        if kind == _MEMORY:
            handle = recv_handle(self._connection)
            self.close()
            self._memory = SharedMemory(begin, handle)
            return None
        sizes = struct.unpack_from(f"<{count}Q", data, _HEAD.size)
        buffers: list[Any] = []
        if begin == _IN_PIPE:
            buffers = [bytearray(self._connection.recv_bytes()) for _ in sizes]
        if number != current:
            return None
        if begin != _IN_PIPE and self._memory is not None:
            shared = self._memory.bytes
            offsets, _ = offsets_of(sizes)
            buffers = [shared[begin + at : begin + at + size].copy() for at, size in zip(offsets, sizes, strict=True)]
        return kind, pickle.loads(data[_HEAD.size + 8 * count :], buffers=buffers)  # noqa: S301  # from a process of ours

    def close(self) -> None:
        """Let go of the memory."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
