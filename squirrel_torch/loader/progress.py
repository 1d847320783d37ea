"""What a pass is doing, told to whoever watches it."""

from __future__ import annotations

import threading
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Final

import torch

from squirrel_torch import recording
from squirrel_torch.iterstream.stage import Stage
from squirrel_torch.loader.waits import Waits
from squirrel_torch.recording import STEP, Recorder
from squirrel_torch.threads import frames_of

__all__ = ["ENDED", "LEFT", "Progress", "failed"]

ENDED: Final = "has ended its pass"
LEFT: Final = "has left its pass before its last batch"

_OURS: Final = str(Path(__file__).parents[1])
_TORCH: Final = str(Path(torch.__file__).parent)
_LONGEST: Final = 200
"""Characters of an error of another rank."""


class Progress:
    """What a pass is doing; the thread that takes its batches writes it, and another reads it.

    Args:
        epoch: Which epoch it goes through.
        lane: Of the loader, in a recording.
    """

    def __init__(self, epoch: int, lane: str = "loader") -> None:
        self.epoch = epoch
        self.ending: str = ""
        self.waits: Waits = Waits(monotonic())
        self._lane = lane
        self._asked = self.since
        self.thread: int = threading.get_ident()
        self.hands: Any = None
        recording.unfinished.add(self)

    @property
    def step(self) -> int:
        """How many batches it has given."""
        return self.waits.batches

    @property
    def inside(self) -> bool:
        """Whether a batch is waited for."""
        return self.waits.inside

    @property
    def since(self) -> float:
        """Since when it does what it is doing, by `time.monotonic`."""
        return self.waits.since

    def asked(self) -> None:
        """A batch was asked for."""
        now = monotonic()
        if (recorder := recording.recorder) is not None:
            self._worked(recorder, now)
        self._asked = now
        self.waits.asked(now)

    def given(self) -> None:
        """It was given."""
        self.waits.given(monotonic())

    def end(self, how: str) -> None:
        """It has ended, and how, in words."""
        now = monotonic()
        if (recorder := recording.recorder) is not None and self.inside:
            name, args = "wait for end" if how == ENDED else "wait in vain", {"step": self.step, "epoch": self.epoch}
            recorder.span(self._lane, "wait", name, self.since, now, args)
        elif recorder is not None:
            self._worked(recorder, now)
        self.waits.ended(now)
        self.ending = how

    def dropped(self) -> None:
        """The pass was let go of: a loop over it was left."""
        if (recorder := recording.recorder) is not None:
            self.so_far(recorder)

    def so_far(self, recorder: Recorder) -> None:
        """See `recording.Unfinished`."""
        if not (self.inside or self.ending):
            self._worked(recorder, monotonic())

    def _worked(self, recorder: Recorder, now: float) -> None:
        """A step is over, if there was one."""
        if self.step:
            recorder.put((STEP, self._lane, self._asked, self.since, now, self.step - 1, self.epoch))

    def line(self) -> str:
        """Where it is in code that is neither ours nor torch's."""
        return next((_line(frame) for frame in frames_of(self.thread) if not _is_in(frame, _OURS, _TORCH)), "")

    def agrees(self, frames: list[FrameType] | None = None) -> bool:
        """Whether it waits for the other ranks in the loader."""
        frames = frames_of(self.thread) if frames is None else frames
        return self.inside and any(frame.f_code.co_filename.endswith("loader/council.py") for frame in frames)

    def doing(self) -> str:
        """What it is doing now, in words."""
        if self.ending:
            return self.ending
        frames = frames_of(self.thread)
        if not self.inside:
            user = self.line()
            return f"works outside of the loader{user and f', in {user}'}"
        if self.agrees(frames):
            return "waits in the loader for the others to say how many steps they make"
        worker = getattr(self.hands, "waits_for", None)
        if worker is not None:
            return f"waits in the loader for worker {worker}, which is {_of_stack(self.hands.stack(worker))}"
        stage = next((one for frame in frames if isinstance(one := frame.f_locals.get("self"), Stage)), None)
        user = self.line()
        return f"makes a batch, in {'the source' if stage is None else stage.describe()}{user and f', in {user}'}"


def failed(error: Exception) -> str:
    """How a pass has ended that an error has ended."""
    message = " ".join(str(error).split())
    more = "..." if len(message) > _LONGEST else ""
    return f"has ended its pass by an error ({type(error).__name__}: {message[:_LONGEST]}{more})"


def _is_in(frame: FrameType, *folders: str) -> bool:
    return frame.f_code.co_filename.startswith(folders)


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _of_stack(stack: str) -> str:
    """Where a process is, by what `faulthandler` wrote: the stage, and the innermost line of somebody else's code."""
    lines = [line.strip() for line in stack.splitlines() if line.strip().startswith("File ")]
    stages = [line for line in lines if "squirrel_torch/iterstream/stages/" in line]
    stage = f"in stage {Path(stages[0].split(chr(34))[1]).stem}" if stages else "not in a stage"
    user = next((line for line in lines if _OURS not in line and _TORCH not in line and "/lib/python" not in line), "")
    return f"{stage}{user and f', at {user}'}"
