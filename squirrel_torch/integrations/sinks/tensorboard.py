"""Metrics for TensorBoard."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from squirrel_torch.errors import MissingDependencyError

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise MissingDependencyError("tensorboard", "tensorboard") from error

__all__ = ["TensorBoardSink"]


class _Writer:
    """A writer that is closed when nobody holds it any more, by the process that opened it."""

    def __init__(self, folder: str | None) -> None:
        self.summary: Any = SummaryWriter(folder)
        self.close = weakref.finalize(self, _close, self.summary, os.getpid())


_writers: weakref.WeakValueDictionary[str, _Writer] = weakref.WeakValueDictionary()
"""By folder. TensorBoard goes on to the last file of a folder and does not come back, so that it must have one."""


class TensorBoardSink:
    """Writes metrics as scalars for TensorBoard. The file is made by the first of them, and each call is in it at once.

    Sinks over one folder write into one file. Give it another folder than the training's own writer.

    Args:
        log_dir: The folder; None: torch's choice, "runs/" and the time and host.
    """

    one_process: ClassVar[bool] = True

    def __init__(self, log_dir: str | os.PathLike[str] | None = None) -> None:
        self.log_dir: Path | None = None if log_dir is None else Path(log_dir)
        self._folder = None if log_dir is None else str(Path(log_dir).absolute())
        self._writer: _Writer | None = None
        self._calls = 0

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics. Without a `step` it is the number of the call, from 0."""
        if self._writer is None:
            self._writer = _writer_of(self._folder)
        number = self._calls if step is None else step
        for name, value in metrics.items():
            self._writer.summary.add_scalar(name, value, number)
        self._writer.summary.flush()
        self._calls += 1

    def close(self) -> None:
        """Let go of the file, which is closed when no other sink holds it. A call after that begins another one."""
        self._writer = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writer": None}

    def __repr__(self) -> str:
        return f"TensorBoardSink({'' if self.log_dir is None else repr(str(self.log_dir))})"


def _writer_of(folder: str | None) -> _Writer:
    if folder is None:
        return _Writer(None)
    writer = _writers.get(folder)
    if writer is None:
        writer = _writers[folder] = _Writer(folder)
    return writer


def _close(summary: Any, owner: int) -> None:
    if os.getpid() == owner:  # in a forked process its thread does not run
        summary.close()
