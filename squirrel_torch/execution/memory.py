"""Memory that processes share and that has no name."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from contextlib import suppress

__all__ = ["SharedMemory"]


class SharedMemory:
    """Memory without a name: it is gone with the last process that sees it, however that ends.

    It does not count against the size of /dev/shm.

    Args:
        size: Bytes; with a `handle`, at most those that are there.
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
        self.size: int = size
        self.handle: int = handle
        self.memory: mmap.mmap = _map(handle, size)

    def grow(self, size: int) -> None:
        """Make it larger, for all who see it; they have to `follow`.

        Raises:
            OSError: If there is not so much. It is what it was.
        """
        _reserve(self.handle, size)
        self._see(size)

    def follow(self) -> None:
        """See all that is there now."""
        self._see(os.fstat(self.handle).st_size)

    def _see(self, size: int) -> None:
        before, self.memory = self.memory, _map(self.handle, size)
        self.size = size
        _unmap(before)

    def close(self) -> None:
        """Let go of it."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
            _unmap(self.memory)


def _map(handle: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(handle, size, trackfd=False)
    return mmap.mmap(handle, size)  # with a descriptor of its own


def _unmap(memory: mmap.mmap) -> None:
    with suppress(BufferError):  # somebody still looks at it: it goes when they do
        memory.close()


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
