"""Which samples are in a batch and where they lie, the batch made again, and steps that are left out."""

from __future__ import annotations

import logging
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from squirrel_torch.checks import require_at_least, require_epoch, require_int
from squirrel_torch.errors import NotPlannedError, PipelineError
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.layout import Layout
from squirrel_torch.iterstream.planned import Planned
from squirrel_torch.loader.course import Course, World
from squirrel_torch.loader.device import on_device
from squirrel_torch.loader.padding import with_mask
from squirrel_torch.loader.places import Place
from squirrel_torch.loader.planned import PlannedCourse
from squirrel_torch.loader.work import PlannedWork
from squirrel_torch.plan import Deal
from squirrel_torch.storage import Located

__all__ = ["Epochs", "Origin", "Traced", "say_left_out"]

T_co = TypeVar("T_co", covariant=True)

_REMEMBERED: Final = 1024
"""Epochs that were gone through: how their steps were dealt takes some 100 bytes each."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Origin(Located):
    """Where a sample of a batch comes from: what `StreamLoader.samples` tells, besides what `Located` has.

    Args:
        source: The URL or path of the store, else the source in words.
        row: The number of the sample in its source, from 0: `store.row(row)`, `items[row]`.
        shard: The file of the source that holds it, where there are several.
        shard_row: Its number in that file, from 0.
        key: Its key in the store, or the text that the source gives; None where there is none, or it would have to be read.
        stream: Which stream of a mix it is of, from 0, and of a mix in that one, and so on; empty without mixes.
        position: Its position in the order of the epoch, from 0: what `zip_index` gives.
        sample: Its number among all samples of the chain, from 0, by which callbacks get their random numbers. It is `row`, but
            for mixes, where those of a stream are counted on from those of the stream before it, and for selections.
        padding: Whether it only fills up the batch, as `tail="pad"` has it.
    """

    position: int
    sample: int
    padding: bool = False


class _Dealt(NamedTuple):
    """A batch of one rank, as the plan has it: step `step` of `deal`."""

    epoch: int
    planned: Planned
    deal: Deal
    rank: int
    step: int

    def origins(self) -> list[Origin]:
        """Where its samples come from."""
        positions = self.deal.positions(self.rank, self.step)
        ids = self.planned.order.ids(positions)
        told = zip(positions.tolist(), ids.tolist(), self.deal.real(self.rank, self.step).tolist(), strict=True)
        return [
            Origin(**asdict(located), position=position, sample=sample, padding=not real)
            for located, (position, sample, real) in zip(self.planned.locate(ids), told, strict=True)
        ]

    def batch(self, layout: Layout) -> Any:
        """The batch, made now."""
        work = PlannedWork(self.epoch, self.deal, self.rank)
        # As the worker of this number would make it, of so many that none has a second step to make.
        ((_, batch),) = work.batches(layout, self.step, sys.maxsize)
        return with_mask(batch, torch.from_numpy(self.deal.real(self.rank, self.step))) if self.deal.tail == "pad" else batch


class Epochs:
    """How far epochs have come that a loader was in before, and who took part."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[Place, World]] = {}

    def note(self, place: object, world: World) -> None:
        """Remember how far an epoch of a planned chain has come."""
        if isinstance(place, Place):
            self._places.pop(place.epoch, None)
            self._places[place.epoch] = place, world
            if len(self._places) > _REMEMBERED:
                del self._places[next(iter(self._places))]

    def forget_from(self, epoch: int) -> None:
        """Forget an epoch and those behind it: they are gone through anew."""
        self._places = {known: place for known, place in self._places.items() if known < epoch}

    def __getitem__(self, epoch: int) -> tuple[Place, World] | None:
        """The place that was noted last in an epoch; None if there is none."""
        return self._places.get(epoch)


class Traced(ABC, Generic[T_co]):
    """A loader that can be asked what its batches are made of. What it tells follows from the plan: nothing is recorded.

    Steps are counted from 0 in each epoch, as the batches that the rank gets: step n is the one that `enumerate(loader)` calls
    n in an epoch that begins at its beginning. Stops do not count: the first batch after `load_state_dict` is step
    `state["step"]`, also if the number of ranks or the batch size has changed.
    """

    _course: Course[Any]
    _layout: Layout
    device: torch.device | None

    def samples(self, step: int, epoch: int | None = None, *, rank: int | None = None) -> list[Origin]:
        """Where the samples of a batch come from, in the order of the batch. Nothing is read, and nothing moves on.

        Any step can be asked for, delivered or not. Steps before a stop are told as they were dealt then, among as many ranks
        and with the batch size of then: the state says so. Of an epoch before the one of the state nothing is known but
        what this loader has gone through itself; others are told as the ranks and the batch size of now would have it.

        Args:
            step: Which batch of the epoch, from 0. Steps that were left out by `skip` are not counted.
            epoch: By default that of the pass that goes on or was left, else the next one.
            rank: Whose batch; by default that of this rank.

        Raises:
            NotPlannedError: If the order of the chain is not arithmetic.
            IndexError: If the rank gets no such batch.
            StateError: If it is a step before a stop, and the state is too old to tell how it was dealt.
            ValueError: If there was no such rank.
        """
        return self._dealt("samples", step, epoch, rank).origins()

    def replay(self, step: int, epoch: int | None = None, *, rank: int | None = None) -> T_co:
        """Make a batch again, here and now, without workers: the same numbers as were delivered, or will be.

        The loader stays where it is. Random numbers are the same for callbacks that ask for a generator (`rng`); of those
        that use the global generators the batch depends on what was made before, so they give something else. These
        generators are as before afterwards.

        Args:
            step: See `samples`, as for `epoch` and `rank`.
            epoch: Which epoch.
            rank: Whose batch.

        Raises:
            Exception: What `samples` raises, and what the callbacks do.
        """
        dealt = self._dealt("replay", step, epoch, rank)
        with _generators_kept():
            batch = dealt.batch(self._layout)
        if self.device is not None:
            ((_, batch),) = on_device(iter([(None, batch)]), self.device, pin_memory=False)
        made: T_co = batch
        return made

    def skip(self, first: int, last: int) -> None:
        """Leave out the steps from `first` on before `last` in the epoch that goes on, or in the next one between passes.

        They are those that `samples` tells of under these numbers, of all ranks: every rank has to call it. What comes behind
        moves up: the batch that was step `last` is step `first` then, and `len` is less. `state_dict` holds it, so it is
        left out after a resume as well, on any number of ranks; other epochs are not changed. A pass that goes on drops what
        its workers have made ahead. The log says how many samples are left out.

        Args:
            first: The first step to leave out, not delivered yet.
            last: The step behind the last one.

        Raises:
            NotPlannedError: If the order of the chain is not arithmetic.
            PipelineError: If one of the steps has been delivered, or the pass that they are of was left.
            ValueError: If there are no such steps.
        """
        course = self._planned_course("skip")
        require_at_least("first", first, 0)
        require_at_least("last", last, first + 1)
        place, world, following = self._next()
        if following != place:
            raise PipelineError(
                f"the pass over epoch {place.epoch} was left at step {place.step}, the next one is epoch {following.epoch}: "
                "to go on with the one that was left, call load_state_dict(state_dict()) before skip; to leave it for good, "
                f"set_epoch({following.epoch})"
            )
        changed = _without(course, place, world, int(first), int(last))
        self._go_on_from(changed)
        count = changed.gaps.total - place.gaps.total
        _log.warning(
            "the steps from %d on before %d of epoch %d are left out, %d samples of all ranks, and those behind move up (skip)",
            *(first, last, place.epoch, count),
        )

    @abstractmethod
    def _chain(self) -> Composable[Any]:
        """What it goes through."""

    @abstractmethod
    def _place_of(self, epoch: int | None) -> tuple[Any, World]:
        """How far an epoch has come, and who takes part; None: the one that goes on, else the next one."""

    @abstractmethod
    def _next(self) -> tuple[Any, World, Any]:
        """How far the epoch has come that goes on or was left, who takes part, and where the next batch of the loader is."""

    @abstractmethod
    def _go_on_from(self, place: Any) -> None:
        """Go on from `place`, which is where it is, with other gaps."""

    def _planned_course(self, method: str) -> PlannedCourse:
        if isinstance(self._course, PlannedCourse):
            return self._course
        told = self._chain().explain()
        remedy = f"; better: {told.remedy}" if told.remedy else ""
        raise NotPlannedError(
            f"{method} needs a chain whose order is arithmetic, and this one is {told.mode}: {told.decided_by}: {told.because}"
            f"{remedy}"
        )

    def _dealt(self, method: str, step: int, epoch: int | None, rank: int | None) -> _Dealt:
        course = self._planned_course(method)
        require_at_least("step", step, 0)
        if epoch is not None:
            require_epoch(epoch)
        if rank is not None:
            require_int("rank", rank)
        place, world = self._place_of(None if epoch is None else int(epoch))
        deal, inside = course.dealt(place, world, int(step))
        index = world.rank.index if rank is None else int(rank)
        if not 0 <= index < deal.ranks:
            raise ValueError(
                f"step {step} of epoch {place.epoch} is dealt to {deal.ranks} ranks, there is no rank {index}: name another "
                "one (rank=)"
            )
        steps = deal.steps(index)
        if steps is not None and inside >= steps:
            most = step - inside + steps
            raise IndexError(
                f"rank {index} gets {most} batches in epoch {place.epoch}, counted from 0: there is no step {step}"
            )
        return _Dealt(place.epoch, course.planned(place.epoch), deal, index, inside)


def _without(course: PlannedCourse, place: Place, world: World, first: int, last: int) -> Place:
    """The place, where steps of the epoch are left out that come behind it."""
    if first < place.step:
        raise PipelineError(
            f"steps up to {place.step - 1} of epoch {place.epoch} have been delivered, so steps from {first} on can't be left "
            "out: load a state from before them (load_state_dict), then skip"
        )
    gaps = course.deal(place, world).without(first, last, made=place.step, epoch=f"epoch {place.epoch}")
    return replace(place, gaps=gaps)


def say_left_out(place: object, why: str) -> None:
    """Say in the log how many samples are left out from `place` on, if some are.

    Args:
        place: Of any chain.
        why: What leads to that, or to the opposite.
    """
    if isinstance(place, Place) and (count := place.gaps.left_out_after(place.position)):
        _log.warning("%d samples of epoch %d were to be left out by skip: %s", count, place.epoch, why)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave the global random generators as they are, whatever callbacks draw from them."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
