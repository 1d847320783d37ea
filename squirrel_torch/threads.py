"""Threads that look after something, and the frames of others."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Final

__all__ = ["end_thread", "frames_from", "frames_of"]

_PATIENCE: Final = 5.0


def end_thread(done: threading.Event, thread: threading.Thread) -> None:
    """Tell a thread that waits for `done` to end, and wait for that some seconds, unless it is this one."""
    done.set()
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join(_PATIENCE)


def frames_of(thread: int) -> list[FrameType]:
    """Those of another thread, by Python's number of it, the innermost first. Of the own one they would hold themselves."""
    return frames_from(sys._current_frames().get(thread))


def frames_from(frame: FrameType | None) -> list[FrameType]:
    """A frame and those further out."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames
