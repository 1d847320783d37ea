"""Batches that are made by the process that trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from squirrel_torch.loader.course import END
from squirrel_torch.loader.work import Serve, Work

__all__ = ["Inline"]


class Inline:
    """One worker that is no process of its own.

    Args:
        serve: Makes the batches.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._batches: Iterator[tuple[Any, Any]] = iter(())

    def start(self, work: Work, seeds: Sequence[int]) -> None:
        """Begin a pass."""
        self.close()
        self._batches = self._serve(work, 0, 1)

    def receive(self, worker: int) -> Any:
        """The next (ticket, batch), made now; `END` behind the last."""
        return next(self._batches, END)

    def close(self) -> None:
        """End the pass."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
