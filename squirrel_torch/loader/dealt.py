"""Going through a chain whose beginning every process has to run as a whole, and deal out what comes behind it.

What stands before the split counts, or looks at neighbours, or can't be divided for another reason; what stands behind it makes
one item of each. So item p of the split belongs to rank p mod ranks, batch j of a rank to worker j mod workers, as in a planned
chain; only that a position is found by running up to it. A state is a position and what the beginning of the chain remembers
there. It is the same for all ranks, and so is the order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count as count_from
from typing import Any, NamedTuple

from squirrel_torch.errors import PipelineError, StateError
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.layout import Layout
from squirrel_torch.iterstream.planned import planned_prefix
from squirrel_torch.iterstream.stage import Context, Step
from squirrel_torch.iterstream.stages import Batched
from squirrel_torch.iterstream.tracking import Given, Tracked, check_state, track
from squirrel_torch.loader.course import END, Course, Hands, World, is_automatic, require_end
from squirrel_torch.loader.filling import filled, mask_of, real_samples
from squirrel_torch.loader.padding import with_mask
from squirrel_torch.loader.work import with_stage
from squirrel_torch.observe.collected import Collected
from squirrel_torch.plan.state import whole

__all__ = ["DealtCourse", "is_dealt"]


def is_dealt(layout: Layout, place: int) -> bool:
    """Whether all behind the split at `place` makes one item of each, but for one stage that makes batches."""
    batches = 0
    for link in layout.links[place:]:
        stage = None if link._custom else link._stage
        batches += isinstance(stage, Batched)
        if stage is None or not (stage.one_to_one or isinstance(stage, Batched)) or batches > 1:
            return False
    return True


class Place(NamedTuple):
    """A place in such a stream.

    Args:
        epoch: Which epoch, from 0.
        position: How many items of the split were delivered, on all ranks together.
        step: How many batches of the epoch each rank has got.
        at: The position at which the beginning of the chain can be started: `position`, or a little before it.
        state: What it remembers there.
        ended: Whether that was all.
    """

    epoch: int
    position: int = 0
    step: int = 0
    at: int = 0
    state: list[Any] | None = None
    ended: bool = False


class Ticket(NamedTuple):
    """What comes with a batch.

    Args:
        step: Which step of the pass it is, from 0.
        at: The position behind the last item that was read for it.
        state: What the beginning of the chain remembers there.
        real: How many samples of the batch are of the epoch, and don't only fill it up.
    """

    step: int
    at: int
    state: list[Any] | None
    real: int


@dataclass(frozen=True)
class DealtWork:
    """A pass from `place` on, for one rank.

    Args:
        place: Where it begins.
        split: The index of the split in the links of the chain.
        ranks: How many there are.
        rank: Whose batches are made.
        batch: Samples of a batch.
        fills: Whether a last batch that is smaller is filled up.
        automatic: Whether the chain is divided among several processes without saying so.
    """

    place: Place
    split: int
    ranks: int
    rank: int
    batch: int
    fills: bool = False
    automatic: bool = False

    def batches(
        self, layout: Layout, worker: int, count: int, collected: Collected | None = None
    ) -> Iterator[tuple[Ticket, Any]]:
        """The batches of every `count`-th step; the last one may be smaller."""
        before = layout.links[: self.split]
        beginning = track(before, self.place.epoch, self.place.state, collected, automatic=self.automatic)
        marks: deque[tuple[int, list[Any] | None]] = deque()
        links = self._links(layout, self._own(beginning, marks, worker, count))
        # The rest has a place of its own for the beginning.
        observer = None if collected is None else collected.numbered([None, *range(self.split, len(layout.links))])
        run = Tracked(filled(links) if self.fills else links, self.place.epoch, observer=observer)
        try:
            for step, (own, batch) in zip(count_from(worker, count), run):
                real = real_samples(own)
                if collected is not None:
                    collected.batches += 1
                    collected.samples += real
                yield Ticket(step, *marks.popleft(), real), batch
        finally:
            run.close()
            beginning.close()

    def _own(self, beginning: Tracked, marks: Any, worker: int, count: int) -> Iterator[Step]:
        """The items of this worker's batches; behind the last of each, what the beginning of the chain remembers is noted."""
        place, size = self.place, self.ranks * self.batch
        had = False
        for position, step in enumerate(beginning, place.at):
            if position < place.position or position % self.ranks != self.rank:
                continue
            number, inside = divmod(position - place.position, size)
            if number % count != worker:
                continue
            if inside + self.ranks >= size:  # the rank's last one of the batch
                marks.append((position + 1, beginning.snapshot()))
            had = inside + self.ranks < size
            yield step
        if had:
            marks.append((0, None))  # a last batch that is smaller: nothing is left behind it

    def _links(self, layout: Layout, steps: Iterator[Step]) -> list[Composable[Any]]:
        links: list[Composable[Any]] = [Given(layout.links[: self.split], steps)]
        for link in layout.links[self.split :]:
            stage = link._stage
            links.append(with_stage(link, replace(stage, drop_last=False)) if isinstance(stage, Batched) else link)
        return links


class DealtCourse(Course[Place]):
    """The epochs of such a chain.

    Args:
        layout: The chain.
        split: The index in its links before which it is dealt out.
        pads: Whether a smaller batch is filled up, and all of them have masks.
    """

    def __init__(self, layout: Layout, split: int, *, pads: bool = False) -> None:
        super().__init__(layout)
        self._pads = pads
        self._split = split
        self._batch = next((link._stage.size for link in layout.links[split:] if isinstance(link._stage, Batched)), 1)
        planned = planned_prefix(layout.links, Context())
        self._data = None if planned is None else planned.rows.fingerprint()

    @property
    def chain(self) -> list[str]:
        """What decides the order: all before the split."""
        return super().chain[: self._split]

    def fresh(self, epoch: int, world: World) -> Place:
        return Place(epoch)

    def epoch(self, place: Place) -> int:
        return place.epoch

    def is_over(self, place: Place, world: World) -> bool:
        return place.ended

    def batches(self, place: Place, world: World) -> int | None:
        raise TypeError(
            f"the number of batches of a {self.layout.mode.value} chain is not known before its end: it has no length; "
            "pipeline.explain() says what to change"
        )

    def deliver(self, place: Place, world: World, hands: Hands, seeds: Sequence[int]) -> Iterator[tuple[Place, Any]]:
        ranks, size = world.rank.count, world.rank.count * self._batch
        automatic = is_automatic(self.layout, world)
        hands.start(DealtWork(place, self._split, ranks, world.rank.index, self._batch, self._pads, automatic), seeds)
        now = place
        for step in count_from():
            worker = step % world.workers
            received = hands.receive(worker)
            if received is END:
                break
            (number, at, state, real), batch = received
            if number != step:
                raise PipelineError(f"worker {worker} was to give batch {step}, and gave batch {number}")
            behind = place.position + (step + 1) * size
            now = Place(place.epoch, behind, place.step + step + 1, at, state, ended=state is None)
            yield now, with_mask(batch, mask_of(real, self._batch)) if self._pads else batch
        require_end(hands, world)
        yield now._replace(ended=True), END

    def over(self, place: Place) -> Place:
        return place._replace(ended=True)

    def content(self, place: Place, world: World) -> dict[str, Any]:
        return place._asdict()

    def placed(self, contents: Sequence[Mapping[str, Any]]) -> Place:
        places = [self._place(content) for content in contents]
        if len({(place.position, place.step) for place in places if not place.ended}) > 1:
            raise StateError("the states of the ranks are of different moments")
        # A rank that made a step less than others is at its end already.
        return min(places, key=lambda place: place.ended)

    def _place(self, content: Mapping[str, Any]) -> Place:
        epoch, position, step, at = (whole(content, name) for name in ("epoch", "position", "step", "at"))
        state, ended = content.get("state"), content.get("ended")
        if type(ended) is not bool or at > position or (state is None and at):
            raise StateError(f"the state is not sound: started at {at}, at position {position}, ended: {ended!r:.20}")
        check_state(self.layout.links[: self._split], state)
        return Place(epoch, position, step, at, state, ended)

    def data(self) -> dict[str, Any] | None:
        return self._data

    def difference(self, data: dict[str, Any]) -> str:
        planned = planned_prefix(self.layout.links, Context())
        return "it has no numbers now" if planned is None else planned.rows.difference(data)
