"""What a loader says of its passes: where the time goes."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, Generic, TextIO, TypeVar

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.layout import Layout
from squirrel_torch.loader.seen import KIND, SeenPass
from squirrel_torch.loader.waits import Waited, Waits
from squirrel_torch.loader.workers import Workers
from squirrel_torch.observe.adding import added
from squirrel_torch.observe.figures import Figures
from squirrel_torch.observe.live import Watch, watching
from squirrel_torch.observe.report import Report
from squirrel_torch.observe.trace import Tracing, tracing
from squirrel_torch.observe.verdict import verdict_of
from squirrel_torch.sharding import gathered, ranks_of

__all__ = ["Looked"]

T_co = TypeVar("T_co", covariant=True)


class Looked(Generic[T_co]):
    """The part of a loader that is for whoever wants to see what it does."""

    num_workers: int
    prefetch_factor: int | None
    _layout: Layout
    _seen: SeenPass
    _waits: Waits | None

    @abstractmethod
    def _chain(self) -> Composable[T_co]:
        """What it loads."""

    @property
    @abstractmethod
    def _group(self) -> Any:
        """Whose ranks share the stream."""

    @property
    def waited(self) -> Waited:
        """How long whoever takes the batches has waited for them, in the pass that goes on or went last; any thread may ask.

        Example:
            >>> from squirrel_torch import IterableSource, StreamLoader
            >>> loader = StreamLoader(IterableSource(range(6)).batched(2))
            >>> for batch in loader:
            ...     pass
            >>> loader.waited.batches
            3
        """
        return Waited() if self._waits is None else self._waits.read()

    def report(self, *, ranks: bool = False) -> Report:
        """Where the time goes in the pass that goes on or went last: what limits it, why, and what to change.

        Any thread may ask, at any time. Workers tell of their stages once a second, and at their end.

        Args:
            ranks: Add up what the ranks have seen that share the stream. All ranks have to ask then, as they gather it by
                torch.distributed.

        Returns:
            What to print. Its attributes hold the verdict and the figures; `save("report.html")` draws them.

        Example:
            >>> from squirrel_torch import IterableSource, StreamLoader
            >>> loader = StreamLoader(IterableSource(range(6)).batched(2))
            >>> for batch in loader:
            ...     pass
            >>> loader.report().figures.items
            3
        """
        figures = self._seen.figures()
        if ranks:
            everybody = gathered(figures.to_dict())
            figures = added([Figures.from_dict(everybody[rank]) for rank in ranks_of(self._group)], ranks=True)
        return Report(repr(self._chain()), figures, verdict_of(figures))

    def watch(self, every: float = 1.0, file: TextIO | None = None) -> Watch:
        """Show what the loader does, as long as a `with` block takes: ``with loader.watch(): train()``.

        In a terminal it is a table that is drawn anew, with rich (extra `observe`); elsewhere it is a line each time.

        Args:
            every: Seconds between two views.
            file: Where to; None: standard error.
        """
        return watching(self.report, every, file)

    def trace(self, path: str | os.PathLike[str], *, most_bytes: int = 64 << 20) -> Tracing:
        """Record the steps of this loader, its workers, and whatever else streams in this process, as a trace for Perfetto.

        ``with loader.trace("trace.json"): ...`` around the passes, or around a part of one. It is
        `squirrel_torch.observe.tracing`, which tells what is in the file.

        Args:
            path: Ends in ".json", or in ".json.gz". A file that is there is replaced.
            most_bytes: Of the file, before it is compressed.
        """
        return tracing(path, most_bytes=most_bytes)

    def _note_pass(self, waits: Waits, hands: Any) -> None:
        """Look at a pass that begins."""
        self._seen = SeenPass(self._layout, waits, self.num_workers, self.num_workers * (self.prefetch_factor or 0))
        hands.begins = self._seen.begins
        if isinstance(hands, Workers):
            hands.handlers[KIND] = self._seen.take
