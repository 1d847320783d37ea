"""A page that two processes see; one of them writes its stack there when it is asked."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from contextlib import suppress
from itertools import takewhile
from typing import Final

from squirrel_torch.execution.memory import SharedMemory

__all__ = ["PATIENCE", "Page"]

PATIENCE: Final = 0.5
"""Seconds that a process gets to do what should take none."""

_DUMP: Final = getattr(signal, "SIGUSR1", None)
"""Makes a child write where its threads are, also while it is deep in C code."""

_LISTENS: Final = 32
_STACK_AT: Final = 64
_STACK_ROOM: Final = 65_536


class Page:
    """Memory that both sides see: some words of whoever uses it, and a stack."""

    def __init__(self, handle: int | None = None) -> None:
        self.shared: SharedMemory = SharedMemory(_STACK_AT + _STACK_ROOM, handle)

    def take_stacks(self) -> None:
        """Have `faulthandler` write here when the signal comes."""
        if _DUMP is not None and hasattr(faulthandler, "register"):
            os.lseek(self.shared.handle, _STACK_AT, os.SEEK_SET)
            faulthandler.register(_DUMP, file=self.shared.handle, all_threads=True)
            self.shared.memory[_LISTENS] = 1

    @property
    def listens(self) -> bool:
        """Whether the other side is ready to say where it is."""
        return self.shared.memory[_LISTENS] != 0

    def ask_stack(self, pid: int, ours: str) -> str:
        """Where the threads of the other side are; empty if it does not say.

        Args:
            pid: Its process id. It must not have been waited for.
            ours: Part of the name of the file whose frames are the same for all callbacks: it ends each stack.
        """
        if _DUMP is None or not self.listens:
            return ""  # the signal would end it
        self.shared.memory[_STACK_AT:] = bytes(self.shared.size - _STACK_AT)
        os.lseek(self.shared.handle, _STACK_AT, os.SEEK_SET)  # the descriptors of both sides share the place
        with suppress(ProcessLookupError):
            os.kill(pid, _DUMP)
        end = time.monotonic() + PATIENCE
        while not self.shared.memory[_STACK_AT] and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.01)  # the rest of it
        return self._stack(ours)

    def _stack(self, ours: str) -> str:
        text = self.shared.memory[_STACK_AT:].rstrip(bytes(1)).decode(errors="replace")
        lines: list[str] = []
        for thread in text.split("\n\n"):
            if "in _die_with_parent" not in thread:
                # From the callback's own frames outwards come ours.
                lines += takewhile(lambda line: ours not in line, thread.splitlines())
        return "\n".join(lines)

    def close(self) -> None:
        """Let go of the page."""
        self.shared.close()
