"""Messages between two processes: small things through a pipe, arrays and tensors through memory that both see."""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Channel", "ChannelClosed", "SharedMemory", "dumps", "offsets_of"]

_LARGE: Final = 16_384
"""Buffers of so many bytes go through shared memory."""

_ROOM: Final = 256 << 20
"""A channel shares no more than this much memory in each direction; what is larger goes through the pipe."""

_ALIGNED: Final = 64
_PIPE, _MEMORY, _NEW_MEMORY = 0, 1, 2


class ChannelClosed(Exception):  # noqa: N818  # an event, as EOFError
    """The other side is gone. No error of pickling is ever one of these."""


class SharedMemory:
    """Memory without a name: it is gone with the last process that sees it, however that ends.

    It does not count against the size of /dev/shm.

    Args:
        size: Bytes.
        handle: A descriptor of the memory, if another process has made it.

    Raises:
        OSError: If there is not so much.
    """

    def __init__(self, size: int, handle: int | None = None) -> None:
        if handle is None:
            handle = _nameless()
            try:
                _reserve(handle, size)
            except OSError:
                os.close(handle)
                raise
        self.size = size
        self.handle = handle
        self.memory = mmap.mmap(handle, size)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self.memory, np.uint8)

    def close(self) -> None:
        """Let go of it."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
            del self.bytes
            with suppress(BufferError):  # somebody still looks at it: it goes when they do
                self.memory.close()


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("squirrel_torch", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # unlinked already
        return os.dup(file.fileno())


def _reserve(handle: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)  # what is not there is known now, not by a signal at the first write
    else:
        os.ftruncate(handle, size)


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
        data, buffers = dumps(message)
        try:
            self._write(data, buffers)
        except (OSError, EOFError) as error:
            raise ChannelClosed from error

    def _write(self, data: bytes, buffers: Sequence[memoryview]) -> None:
        sizes = [view.nbytes for view in buffers]
        how = self._place(buffers) if buffers else _PIPE
        if how == _NEW_MEMORY and self._out is not None:
            self._connection.send_bytes(struct.pack("<BQ", _NEW_MEMORY, self._out.size))
            send_handle(self._connection, self._out.handle, self._peer)
            how = _MEMORY
        self._connection.send_bytes(struct.pack(f"<BQ{len(sizes)}Q", how, len(sizes), *sizes) + data)
        if how == _PIPE:
            for view in buffers:
                self._connection.send_bytes(view)

    def _place(self, buffers: Sequence[memoryview]) -> int:
        """Copy the buffers into the memory; which way they go."""
        offsets, end = offsets_of([view.nbytes for view in buffers])
        how = _MEMORY
        if self._out is None or self._out.size < end:
            if end > self._room:
                return _PIPE
            size = min(max(1 << (end - 1).bit_length(), 1 << 20), self._room)
            if self._out is not None:
                self._out.close()
                self._out = None
            try:
                self._out = SharedMemory(size)
            except OSError:
                self._room = 0  # there is no more to be had
                return _PIPE
            how = _NEW_MEMORY
        target = self._out.bytes
        for offset, view in zip(offsets, buffers, strict=True):
            target[offset : offset + view.nbytes] = np.frombuffer(view, np.uint8)
        return how

    def receive(self) -> Any:
        """The next message, waited for. Arrays and tensors in it are copies that belong to the caller.

        Raises:
            ChannelClosed: If the other side is gone.
            Exception: Whatever unpickling raises; the message has been read.
        """
        try:
            data, buffers = self._read()
        except (OSError, EOFError) as error:
            raise ChannelClosed from error
        return pickle.loads(data, buffers=buffers)  # noqa: S301  # from the other end of our own pipe

    def _read(self) -> tuple[memoryview, list[Any]]:
        data = memoryview(self._connection.recv_bytes())
        how, count = struct.unpack_from("<BQ", data)
        if how == _NEW_MEMORY:
            handle = recv_handle(self._connection)
            if self._in is not None:
                self._in.close()
            self._in = SharedMemory(count, handle)
            data = memoryview(self._connection.recv_bytes())
            how, count = struct.unpack_from("<BQ", data)
        sizes = struct.unpack_from(f"<{count}Q", data, 9)
        if how == _MEMORY and self._in is not None:
            shared = self._in.bytes
            offsets, _ = offsets_of(sizes)
            buffers: list[Any] = [shared[offset : offset + size].copy() for offset, size in zip(offsets, sizes, strict=True)]
        else:
            buffers = [bytearray(self._connection.recv_bytes()) for _ in sizes]
        return data[9 + 8 * count :], buffers

    def close(self) -> None:
        """Close the pipe and let go of the memory."""
        self._connection.close()
        for memory in (self._out, self._in):
            if memory is not None:
                memory.close()
        self._out = self._in = None


def offsets_of(sizes: Sequence[int]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNED) * _ALIGNED
    return offsets, end


class _Pickler(pickle.Pickler):
    """Tensors go like arrays: their bytes apart from the rest."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and _plain(value):
            flat = value.reshape(-1).view(torch.uint8) if value.numel() else torch.empty(0, dtype=torch.uint8)
            return _tensor, (flat.numpy(), value.dtype, tuple(value.shape))
        return NotImplemented


def _plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is its bytes in order, and nothing else."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and tensor.is_contiguous()
        and not tensor.__dict__
    )


def _tensor(flat: npt.NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not flat.nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(flat if flat.flags.writeable else flat.copy()).view(dtype).reshape(shape)


def dumps(message: Any, large: int = _LARGE) -> tuple[bytes, list[memoryview]]:
    """`message` pickled, and apart from it the bytes of arrays and tensors that have at least `large` of them.

    Raises:
        Exception: Whatever pickling raises, if cloudpickle can't do it either.
    """
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < large:
            return True
        buffers.append(view)
        return False

    try:
        return _plain_dumps(message, keep), buffers
    except Exception as first:  # noqa: BLE001  # raised below, if cloudpickle can't either
        buffers.clear()
        import cloudpickle

        try:
            return cloudpickle.dumps(message, 5, keep), buffers
        except Exception as error:
            raise first from error  # the first error says it in pickle's well-known words


def _plain_dumps(message: Any, keep: Callable[[pickle.PickleBuffer], bool]) -> bytes:
    file = BytesIO()
    _Pickler(file, 5, buffer_callback=keep).dump(message)
    return file.getvalue()
