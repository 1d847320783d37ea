"""What a worker does in one pass: it makes the batches that are its own, each with a ticket."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from squirrel_torch.errors import PipelineError
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.layout import Layout
from squirrel_torch.iterstream.monitors import monitors_of
from squirrel_torch.iterstream.planned import Numbered, Planned
from squirrel_torch.iterstream.run import Run
from squirrel_torch.iterstream.stage import Stage
from squirrel_torch.iterstream.stages import Batched, ZipIndex
from squirrel_torch.loader.reports import gathered
from squirrel_torch.loader.seen import seen
from squirrel_torch.observe.collected import Collected
from squirrel_torch.plan import Deal
from squirrel_torch.storage import Ids

__all__ = ["Nothing", "PlannedWork", "Serve", "Work", "with_stage"]

_END: Final = object()
_MOST_ROWS: Final = 4096


class Work(Protocol):
    """One pass, as a worker is told of it."""

    def batches(self, layout: Layout, worker: int, count: int, collected: Collected | None = None) -> Iterator[tuple[Any, Any]]:
        """(ticket, batch) of worker `worker` of `count`.

        Args:
            layout: The chain.
            worker: Who makes them.
            count: How many workers there are.
            collected: Looks at the runs, and is told of each batch; None: nobody does.
        """


class Serve:
    """What a worker process runs: it knows the chain, and is told of each pass.

    Args:
        layout: The chain.
        observes: Whether it looks at where the time goes.
    """

    def __init__(self, layout: Layout, *, observes: bool = True) -> None:
        self._layout = layout
        self.observes = observes
        self.monitors = [monitor for monitor in monitors_of(layout.links) if monitor.measures]
        """Those of the chain that have something to tell."""

    def __call__(self, work: Work, worker: int, count: int, collected: Collected | None = None) -> Iterator[tuple[Any, Any]]:
        if self.observes:
            collected = Collected() if collected is None else collected
            batches = seen(work.batches(self._layout, worker, count, collected), collected)
        else:
            batches = work.batches(self._layout, worker, count)
        return gathered(batches, self.monitors, count) if self.monitors else batches


class Nothing:
    """A pass without batches, for workers that have to leave one."""

    def batches(self, layout: Layout, worker: int, count: int, collected: Collected | None = None) -> Iterator[tuple[Any, Any]]:
        """None."""
        return iter(())


@dataclass(frozen=True)
class PlannedWork:
    """A pass over a planned chain. The tickets are the numbers of the steps, from 0.

    Args:
        epoch: Which epoch.
        deal: Who gets which positions.
        rank: Whose batches are made.
    """

    epoch: int
    deal: Deal
    rank: int

    def batches(self, layout: Layout, worker: int, count: int, collected: Collected | None = None) -> Iterator[tuple[int, Any]]:
        """Batch j is made by worker j mod `count`: which worker makes a batch decides nothing else about it.

        Raises:
            PipelineError: If the source has changed since the pass began, or a stage that says that it gives one item for
                each does not.
        """
        planned = layout.planned(self.epoch)
        if planned.order.length != self.deal.length:
            raise PipelineError(
                f"the source has changed while it was read: the epoch had {self.deal.length} samples when it began, and has "
                f"{planned.order.length} in worker {worker}"
            )
        steps = self.deal.steps(self.rank)
        own = range(worker, sys.maxsize if steps is None else steps, count)
        size = self.deal.batch
        # The run begins with one place for all that order and choose.
        places = [0, *range(len(layout.ordering), len(layout.links))]
        observer = None if collected is None else collected.numbered(places)
        run: Run[Any] = Run(self._links(layout, planned, own), lambda: self.epoch, observer=observer)
        with run:
            for step in own:
                # Not zip: what comes behind the last batch is looked at too.
                batch = next(run, _END)
                if batch is _END:
                    raise _unequal(layout, "fewer")
                if collected is not None:
                    collected.batches += 1
                    collected.samples += size
                yield step, batch
            if next(run, _END) is not _END:
                raise _unequal(layout, "more")
            if collected is not None and own:  # only the last one may be smaller
                collected.samples += len(self.deal.positions(self.rank, own[-1])) - size

    def _links(self, layout: Layout, planned: Planned, own: range) -> list[Composable[Any]]:
        first = layout.ordering[0]
        draws = sum(link._draws for link in layout.ordering)
        links: list[Composable[Any]] = [Numbered(first, planned, draws, self._positions(own))]
        for link in layout.data:
            stage = link._stage
            if isinstance(stage, ZipIndex):
                link = with_stage(link, _ZippedPositions(stage, partial(self._positions, own)))
            elif isinstance(stage, Batched) and stage is layout.batch:
                link = with_stage(link, replace(stage, size=self.deal.batch, drop_last=False))
            links.append(link)
        return links

    def _positions(self, own: range) -> Iterator[Ids]:
        """The positions of these steps, of more and more steps at a time."""
        most = max(1, _MOST_ROWS // self.deal.batch)
        some, steps = [], 1
        for step in own:
            some.append(self.deal.positions(self.rank, step))
            if len(some) == steps:
                yield np.concatenate(some)
                some, steps = [], min(2 * steps, most)
        if some:
            yield np.concatenate(some)


@dataclass(frozen=True)
class _ZippedPositions(Stage[Any, Any]):
    """(position in the epoch, item). Order: kept. Holds: nothing. State: none."""

    zipped: ZipIndex[Any]
    positions: Callable[[], Iterator[Ids]]

    def apply(self, items: Iterator[Any]) -> Iterator[Any]:
        length = self.zipped.pad_length
        for positions in self.positions():
            for position, item in zip(positions.tolist(), items, strict=False):
                yield (position if length is None else str(position).zfill(length)), item


def with_stage(link: Composable[Any], stage: Stage[Any, Any]) -> Composable[Any]:
    """The place of a chain, with another stage."""
    changed: Composable[Any] = Composable(stage=stage)
    changed._site = link._site
    return changed


def _unequal(layout: Layout, which: str) -> PipelineError:
    stages = ", ".join(link._describe() for link in layout.data)
    return PipelineError(
        f"there are {which} batches than were planned: one of {stages} does not give exactly one item for each, and says so "
        "(one_to_one); a stage that leaves items out or adds some must not say it"
    )
