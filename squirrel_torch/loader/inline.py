"""Batches that are made by the process that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

from squirrel_torch import recording
from squirrel_torch.loader.course import END
from squirrel_torch.loader.spans import made_batch
from squirrel_torch.loader.work import Serve, Work
from squirrel_torch.observe.collected import Collected

__all__ = ["Inline"]


class Inline:
    """One worker that is no process of its own.

    Args:
        serve: Makes the batches.
        lane: Of whoever takes them, in a recording.
    """

    def __init__(self, serve: Serve, lane: str = "loader") -> None:
        self.begins: Callable[[Collected | None], object] | None = None
        """Told what looks at a pass that begins."""
        self._serve = serve
        self._lane = lane
        self._batches: Iterator[tuple[Any, Any]] = iter(())

    def start(self, work: Work, seeds: Sequence[int]) -> None:
        """Begin a pass."""
        self.close()
        collected = Collected() if self._serve.observes else None
        if self.begins is not None:
            self.begins(collected)
        self._batches = self._serve(work, 0, 1, collected)

    def receive(self, worker: int) -> Any:
        """The next (ticket, batch), made now; `END` behind the last."""
        began = perf_counter()
        made = next(self._batches, END)
        if (recorder := recording.recorder) is not None and made is not END:
            made_batch(recorder, self._lane, made[0], began)
        return made

    def close(self) -> None:
        """End the pass."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
