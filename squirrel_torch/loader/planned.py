"""Going through a planned chain: a place is a position, the same on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from squirrel_torch.errors import PipelineError, StateError
from squirrel_torch.iterstream.layout import Layout, signature
from squirrel_torch.iterstream.planned import Planned
from squirrel_torch.loader.course import END, Course, Hands, World, require_end
from squirrel_torch.loader.padding import with_mask
from squirrel_torch.loader.places import Place, place_told, told_of
from squirrel_torch.loader.work import PlannedWork
from squirrel_torch.plan import Deal, Tail
from squirrel_torch.storage import Rows

__all__ = ["Place", "PlannedCourse"]


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
            gaps=place.gaps,
        )

    def dealt(self, place: Place, world: World, step: int) -> tuple[Deal, int]:
        """The deal to which a step of the epoch belongs, before or behind `place`, and which of its steps that is.

        Raises:
            StateError: If it is not known how the step was dealt.
        """
        if step >= place.step and not (place.deals and self.is_over(place, world)):
            return self.deal(place, world), step - place.step
        stretch = place.stretch_of(step)
        if stretch is None:
            known = place.deals[0].step if place.deals else place.step
            raise StateError(
                f"the state that was loaded is of an earlier version, and does not tell how the steps before {known} of epoch "
                f"{place.epoch} were dealt: take a loader that begins the epoch, with as many ranks and the batch size of then"
            )
        return stretch.deal(self.planned(place.epoch).order.length, place.gaps), step - stretch.step

    def fresh(self, epoch: int, world: World) -> Place:
        return Place(epoch)

    def epoch(self, place: Place) -> int:
        return place.epoch

    def is_over(self, place: Place, world: World) -> bool:
        if place.position == 0:
            return False
        return self.deal(place, world).most_steps == 0

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
        deals = place.dealt_by(deal)
        for step in count() if steps is None else range(steps):
            received = hands.receive(step % world.workers)
            if received is END or received[0] != step:
                raise PipelineError(f"worker {step % world.workers} was to give batch {step}, and gave {received!r:.80}")
            batch = received[1]
            if pads:
                batch = with_mask(batch, torch.from_numpy(deal.real(rank, step)))
            yield Place(place.epoch, deal.after(step + 1), place.step + step + 1, place.gaps, deals), batch
        require_end(hands, world)
        # Where all ranks are when they are through: one may have made a step less.
        most = deal.most_steps or 0
        yield (
            replace(place, position=deal.after(most), step=place.step + (steps or 0), deals=deals if most else place.deals),
            END,
        )

    def content(self, place: Place, world: World) -> dict[str, Any]:
        return told_of(place)

    def placed(self, contents: Sequence[Mapping[str, Any]]) -> Place:
        places = {place_told(content, lambda epoch: self.planned(epoch).order.length) for content in contents}
        if len(places) > 1:
            raise StateError(f"the states of the ranks are of different moments: {', '.join(map(str, places))}")
        return places.pop()

    def data(self) -> dict[str, Any]:
        if self._data is None:
            self._data = self._rows().fingerprint()
        return self._data

    def difference(self, data: dict[str, Any]) -> str:
        return self._rows().difference(data)

    def _rows(self) -> Rows:
        return self.planned(0 if self._known is None else self._known[0]).rows
