"""Going through a planned chain: a place is a position, the same on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from squirrel_torch.errors import PipelineError, StateError
from squirrel_torch.iterstream.layout import Layout, signature
from squirrel_torch.iterstream.planned import Planned
from squirrel_torch.loader.course import END, Course, Hands, World
from squirrel_torch.loader.padding import with_mask
from squirrel_torch.loader.work import PlannedWork
from squirrel_torch.plan import Deal, Tail
from squirrel_torch.plan.state import whole
from squirrel_torch.storage import Rows

__all__ = ["Place", "PlannedCourse"]


@dataclass(frozen=True)
class Place:
    """A place in a planned stream.

    Args:
        epoch: Which epoch, from 0.
        position: How many positions of its order have been delivered, on all ranks together.
        step: How many batches of the epoch each rank has got.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0


class PlannedCourse(Course[Place]):
    """The epochs of a planned chain.

    Args:
        layout: The chain.
        tail: What becomes of the last samples, where they make no whole step.
    """

    def __init__(self, layout: Layout, tail: Tail) -> None:
        super().__init__(layout)
        self._tail = tail
        self._known: tuple[int, Planned] | None = None
        self._data: dict[str, Any] | None = None
        self._chain = signature(layout.ordering)

    @property
    def chain(self) -> list[str]:
        """What decides the order. What is made of the samples may be changed between two runs."""
        return self._chain

    def planned(self, epoch: int) -> Planned:
        """The order of an epoch."""
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, self.layout.planned(epoch)
        return self._known[1]

    def deal(self, place: Place, world: World) -> Deal:
        """Who gets what is left of the epoch."""
        batch = self.layout.batch
        return Deal(
            self.planned(place.epoch).order.length,
            place.position,
            world.rank.count,
            1 if batch is None else batch.size,
            self._tail,
            keep_partial=batch is None or not batch.drop_last,
        )

    def fresh(self, epoch: int, world: World) -> Place:
        return Place(epoch)

    def epoch(self, place: Place) -> int:
        return place.epoch

    def is_over(self, place: Place, world: World) -> bool:
        if place.position == 0:
            return False
        deal = self.deal(place, world)
        return not any(deal.steps(rank) != 0 for rank in range(world.rank.count))

    def batches(self, place: Place, world: World) -> int | None:
        steps = self.deal(place, world).steps(world.rank.index)
        return None if steps is None else place.step + steps

    def dropped(self, place: Place, world: World) -> int:
        return self.deal(place, world).dropped

    def deliver(self, place: Place, world: World, hands: Hands, seeds: Sequence[int]) -> Iterator[tuple[Place, Any]]:
        deal, rank = self.deal(place, world), world.rank.index
        hands.start(PlannedWork(place.epoch, deal, rank), seeds)
        steps = deal.steps(rank)
        pads = self._tail == "pad"
        for step in count() if steps is None else range(steps):
            received = hands.receive(step % world.workers)
            if received is END or received[0] != step:
                raise PipelineError(f"worker {step % world.workers} was to give batch {step}, and gave {received!r:.80}")
            batch = received[1]
            if pads:
                batch = with_mask(batch, torch.from_numpy(deal.real(rank, step)))
            yield Place(place.epoch, deal.after(step + 1), place.step + step + 1), batch
        for worker in range(world.workers):
            if hands.receive(worker) is not END:
                raise PipelineError(f"worker {worker} gave more batches than were planned")
        # Where all ranks are when they are through: one may have made a step less.
        most = max((deal.steps(one) or 0 for one in range(world.rank.count)), default=0)
        yield Place(place.epoch, deal.after(most), place.step + (steps or 0)), END

    def content(self, place: Place, world: World) -> dict[str, Any]:
        return {"epoch": place.epoch, "position": place.position, "step": place.step}

    def placed(self, contents: Sequence[Mapping[str, Any]]) -> Place:
        places = {Place(*(whole(content, name) for name in ("epoch", "position", "step"))) for content in contents}
        if len(places) > 1:
            raise StateError(f"the states of the ranks are of different moments: {', '.join(map(str, places))}")
        place = places.pop()
        length = self.planned(place.epoch).order.length
        if length is not None and place.position > length:
            raise StateError(f"the state is at position {place.position} of an epoch that has {length}")
        return place

    def data(self) -> dict[str, Any]:
        if self._data is None:
            self._data = self._rows().fingerprint()
        return self._data

    def difference(self, data: dict[str, Any]) -> str:
        return self._rows().difference(data)

    def _rows(self) -> Rows:
        return self.planned(0 if self._known is None else self._known[0]).rows
