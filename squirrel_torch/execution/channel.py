"""Messages between two processes: small things through a pipe, arrays and tensors through memory that both see."""

from __future__ import annotations

import struct
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Final

from squirrel_torch.execution.encoding import Encoded, decode, encode
from squirrel_torch.execution.memory import SharedMemory

__all__ = ["Channel", "ChannelClosed"]

_LARGE: Final = 16_384
"""Messages with so many bytes of numbers have them go through shared memory."""

_ROOM: Final = 256 << 20
"""A channel shares no more than this much memory in each direction; what is larger goes through the pipe."""

_LEAST: Final = 1 << 20

_HEAD: Final = struct.Struct("<BQ55x")
"""How the numbers go, and how many bytes they are. So long that they stay aligned behind it."""

_PIPE, _MEMORY, _NEW_MEMORY = 0, 1, 2


class ChannelClosed(Exception):  # noqa: N818  # an event, as EOFError
    """The other side is gone. No error of pickling is ever one of these."""


class Channel:
    """One end of a conversation in which the two sides take turns.

    Because they do, the memory of a message is free again when the answer has come: one piece of it for each direction is
    used again and again, and grows when a message needs more.

    Args:
        connection: A duplex pipe of `multiprocessing`.
        peer: The process id of the other side.
    """

    def __init__(self, connection: Connection, peer: int) -> None:
        self._connection = connection
        self._peer = peer
        self._out: SharedMemory | None = None
        self._in: SharedMemory | None = None
        self._room = _ROOM

    def send(self, message: Any) -> None:
        """Send `message`.

        Raises:
            ChannelClosed: If the other side is gone.
            Exception: Whatever pickling raises; nothing has been sent then.
        """
        encoded = encode(message)
        try:
            self._write(encoded)
        except (OSError, EOFError) as error:
            raise ChannelClosed from error

    def _write(self, encoded: Encoded) -> None:
        known = self._out
        shared = self._memory(encoded.size) if encoded.size >= _LARGE else None
        if shared is None:
            data = bytearray(_HEAD.size + encoded.size)
            _HEAD.pack_into(data, 0, _PIPE, encoded.size)
            encoded.write(data, _HEAD.size)
            self._connection.send_bytes(data + encoded.pickled)
            return
        encoded.write(shared.memory, 0)
        self._connection.send_bytes(_HEAD.pack(_NEW_MEMORY if known is None else _MEMORY, encoded.size) + encoded.pickled)
        if known is None:
            send_handle(self._connection, shared.handle, self._peer)

    def _memory(self, size: int) -> SharedMemory | None:
        """Memory for `size` bytes, if there is so much."""
        if size > self._room:
            return None
        if self._out is None or self._out.size < size:
            most = min(max(1 << (size - 1).bit_length(), _LEAST), self._room)
            try:
                if self._out is None:
                    self._out = SharedMemory(most)
                else:
                    self._out.grow(most)
            except OSError:
                self._room = 0 if self._out is None else self._out.size  # there is no more to be had
                return None
        return self._out

    def receive(self) -> Any:
        """The next message, waited for. Arrays and tensors in it are copies that belong to the caller.

        Raises:
            ChannelClosed: If the other side is gone.
            Exception: Whatever unpickling raises; the message has been read.
        """
        try:
            data = bytearray(self._connection.recv_bytes())
            how, size = _HEAD.unpack_from(data)
            if how == _NEW_MEMORY:
                self._in = SharedMemory(size, recv_handle(self._connection))
        except (OSError, EOFError) as error:
            raise ChannelClosed from error
        if how == _PIPE or self._in is None:
            return decode(memoryview(data)[_HEAD.size + size :], data, _HEAD.size)
        if self._in.size < size:
            self._in.follow()
        return decode(memoryview(data)[_HEAD.size :], self._in.memory, 0)

    def close(self) -> None:
        """Close the pipe and let go of the memory."""
        self._connection.close()
        for memory in (self._out, self._in):
            if memory is not None:
                memory.close()
        self._out = self._in = None
