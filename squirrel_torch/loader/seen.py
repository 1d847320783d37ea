"""What is seen of the passes of a loader: here, and in the workers, whose figures come home."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from squirrel_torch.iterstream.layout import Layout, Mode
from squirrel_torch.iterstream.stages import Batched
from squirrel_torch.loader.handing import Handed, Pace
from squirrel_torch.loader.waits import Waits
from squirrel_torch.observe.adding import added
from squirrel_torch.observe.collected import Collected, cores
from squirrel_torch.observe.figures import Figures, Loading, StageFigures
from squirrel_torch.observe.naming import unseen
from squirrel_torch.observe.sampler import Sampler
from squirrel_torch.reporting import home

__all__ = ["KIND", "SeenPass", "seen"]

KIND: Final = "figures"
"""Of the notes."""


def seen(batches: Iterator[Any], collected: Collected) -> Iterator[Any]:
    """The batches of a pass in this process, whose chain is looked at meanwhile. A worker tells the main process of it.

    Args:
        batches: Their runs have the observer.
        collected: The observer.
    """
    way, pace = home(), Pace()
    collected.makes_batches = True
    with Sampler(collected) as sampler, ExitStack() as stack:
        stack.callback(getattr(batches, "close", lambda: None))  # what that raises comes out, too
        for made in batches:
            if way is not None and pace.due():
                way.send(KIND, collected.figures().to_dict())
            yield made
            del made
            if sampler.clock.thread is None:
                sampler.wake()
        collected.end()
    if way is not None:
        way.send(KIND, collected.figures().to_dict())


class SeenPass:
    """What is seen of one pass.

    Args:
        layout: The chain.
        waits: Of whoever takes the batches.
        workers: How many processes make them; 0: the own one.
        most_ready: How many batches may wait to be taken.
    """

    def __init__(self, layout: Layout, waits: Waits, workers: int, most_ready: int) -> None:
        self._layout = layout
        self._waits = waits
        self._workers = workers
        self._most_ready = most_ready
        self._told: dict[int, Figures] = {}
        self._then: Loading | None = None
        self._collected: Collected | None = None
        self._handed: Handed | None = None

    def begins(self, by: Collected | Handed | None) -> None:
        """Those begin who make the batches: what looks at them here, or at how their batches come."""
        self._told, self._then = {}, None
        self._handed = by if isinstance(by, Handed) else None
        self._collected = by if isinstance(by, Collected) else None

    def take(self, worker: int, payload: Any) -> None:
        """Figures of a worker; the handler of its notes."""
        self._told[worker] = Figures.from_dict(payload)
        self._then = self._loading()

    def figures(self) -> Figures:
        """What has been seen so far, in all of them."""
        parts = list(self._told.values()) if self._collected is None else [self._collected.figures()]
        read = self._waits.read()
        figures = added(parts) if parts else Figures(read.waiting + read.working, (), cores=cores())
        missing = self._workers - len(parts) if self._workers else 0
        if missing > 0:
            said = f"{missing} of {self._workers} workers have told nothing yet: each does once a second, and at its end"
            figures = replace(figures, makers=max(1, len(parts)), warnings=(*figures.warnings, said))
        # What the workers have told is of a moment, and so is the rest until they are through.
        loading = self._loading() if self._then is None or self._waits.over else self._then
        made = loading.waited if not self._workers else figures.seconds * figures.makers - loading.packing - loading.blocked
        stages = _completed(self._named(figures), made)
        return replace(figures, stages=stages, loading=replace(loading, samples=self._samples(stages)))

    def _samples(self, stages: Sequence[StageFigures]) -> int | None:
        """How many samples the batches are made of, as far as that is known."""
        batched = next((place for place, link in enumerate(self._layout.links) if isinstance(link._stage, Batched)), None)
        return stages[-1 if batched is None else batched - 1].items if stages else None

    def _named(self, figures: Figures) -> tuple[StageFigures, ...]:
        """All places of the chain, as they were written, and the branches behind the mix that they belong to."""
        main = {stage.place: stage for stage in figures.stages if not stage.branch}
        branches = [stage for stage in figures.stages if stage.branch]
        planned = len(self._layout.ordering) if self._layout.mode is Mode.PLANNED else 0
        stages = []
        for place, link in enumerate(self._layout.links):
            own = unseen(link, place, planned=0 < place < planned)
            known = main.get(place)
            stages.append(own if known is None else replace(known, name=own.name, kind=own.kind, site=own.site))
        if planned:  # the order is arithmetic, so what is read is what comes behind it
            stages[1:planned] = [replace(stage, items=stages[0].items, exact=False) for stage in stages[1:planned]]
        return (*stages, *branches)

    def _loading(self) -> Loading:
        read, handed = self._waits.read(), self._handed
        loading = Loading(
            self._workers,
            batches=read.batches,
            waited=read.waiting,
            outside=read.working,
            outside_cpu=min(read.computing, read.working),
            most_ready=self._most_ready,
        )
        if handed is None:
            return loading
        size = handed.size / read.batches if read.batches else None
        packing, blocked, ready = map(handed.total, ("packing", "blocked", "ready"))
        return replace(loading, unpacking=handed.unpacking, size=size, packing=packing, blocked=blocked, ready=ready)


def _completed(stages: tuple[StageFigures, ...], made: float) -> tuple[StageFigures, ...]:
    """With the work that was too short to be seen.

    Args:
        stages: As they were sampled.
        made: Seconds in which batches were made, by the clock: those are what the stages have worked, where no thread waits
            for calls that run elsewhere.
    """
    if made <= 0 or any(stage.calls is not None for stage in stages):
        return stages
    seen = sum(stage.busy for stage in stages)
    work = [stage for stage in stages if not stage.branch and not stage.planned and stage.place]
    if not seen:  # nothing else is known of it
        return tuple(replace(stage, busy=made / len(work)) if stage in work else stage for stage in stages)
    part = made / seen
    return tuple(
        replace(stage, busy=part * stage.busy, cpu=None if stage.cpu is None else min(part * stage.cpu, part * stage.busy))
        for stage in stages
    )
