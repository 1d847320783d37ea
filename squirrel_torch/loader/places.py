"""Places in a planned stream, and how they are told in a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any, Final, get_args

from squirrel_torch.errors import StateError
from squirrel_torch.plan import NO_GAPS, Deal, Gaps, Tail
from squirrel_torch.plan.state import LEFT_OUT, whole

__all__ = ["Place", "Stretch", "place_told", "told_of"]

_DEALS: Final = "deals"


@dataclass(frozen=True)
class Stretch:
    """Steps that were dealt in one way, from one on to wherever the next stretch begins.

    Args:
        step: The first of them, as steps of the epoch are counted.
        start: The place in the epoch where that begins.
        ranks: See `Deal`, as the others.
        batch: Samples per rank and step.
        tail: What becomes of the end.
        keep_partial: Whether a last batch may be smaller.
    """

    step: int
    start: int
    ranks: int
    batch: int
    tail: Tail
    keep_partial: bool

    def deal(self, length: int | None, gaps: Gaps) -> Deal:
        """The deal of it, in an epoch of `length` positions."""
        return Deal(length, self.start, self.ranks, self.batch, self.tail, self.keep_partial, gaps)

    def goes_on_as(self, other: Stretch) -> bool:
        """Whether a stretch behind this one is dealt in the same way."""
        return replace(other, step=self.step, start=self.start) == self

    def reaches(self, step: int, start: int, end: int | None) -> bool:
        """Whether it leads to `step`, and to the place `start` there, in an epoch of `end` places.

        At the end the last step may be smaller, and some rank may not have made it.
        """
        size = self.ranks * self.batch
        whole_steps = self.start + (step - self.step) * size
        return step >= self.step and (start == whole_steps or (start == end and abs(start - whole_steps) < size))


@dataclass(frozen=True)
class Place:
    """A place in a planned stream.

    Args:
        epoch: Which epoch, from 0.
        position: How many positions of its order have been delivered, on all ranks together.
        step: How many batches of the epoch each rank has got.
        gaps: The positions of the epoch that are left out. They are not counted in `position`.
        deals: How the steps before it were dealt. Empty at the beginning, and in states that do not tell.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    gaps: Gaps = NO_GAPS
    deals: tuple[Stretch, ...] = ()

    def dealt_by(self, deal: Deal) -> tuple[Stretch, ...]:
        """The stretches of a place behind this one, to which `deal` leads."""
        own = Stretch(self.step, self.position, deal.ranks, deal.batch, deal.tail, deal.keep_partial)
        return self.deals if self.deals and self.deals[-1].goes_on_as(own) else (*self.deals, own)

    def stretch_of(self, step: int) -> Stretch | None:
        """The stretch to which a step before this place belongs; None if it is not known."""
        return next((stretch for stretch in reversed(self.deals) if stretch.step <= step), None)


def told_of(place: Place) -> dict[str, Any]:
    """A place as plain JSON types."""
    told: dict[str, Any] = {"epoch": place.epoch, "position": place.position, "step": place.step}
    if place.deals:
        told[_DEALS] = [list(astuple(stretch)) for stretch in place.deals]
    if place.gaps:
        told[LEFT_OUT] = [list(part) for part in place.gaps.parts]
    return told


def place_told(content: Mapping[str, Any], length_of: Callable[[int], int | None]) -> Place:
    """The place that a state tells of.

    Args:
        content: Of the state.
        length_of: Gives the positions of an epoch; None: they don't end.

    Raises:
        StateError: If it tells of none.
    """
    epoch, position, step = (whole(content, name) for name in ("epoch", "position", "step"))
    gaps, deals, length = _gaps_told(content.get(LEFT_OUT, [])), _deals_told(content.get(_DEALS, [])), length_of(epoch)
    if length is not None and gaps.end > length:
        raise StateError(f"the state leaves out positions up to {gaps.end} of an epoch that has {length}")
    count = None if length is None else length - gaps.total
    if count is not None and position > count:
        raise StateError(f"the state is at position {position} of an epoch that has {count}")
    for stretch, behind in zip(deals, [*((one.step, one.start) for one in deals[1:]), (step, position)], strict=False):
        if not stretch.reaches(*behind, count):
            raise StateError(f"the steps in the state don't follow each other: {stretch}, and step {behind[0]} at {behind[1]}")
    return Place(epoch, position, step, gaps, deals)


def _gaps_told(parts: object) -> Gaps:
    try:
        return Gaps(tuple((first, end) for first, end in _lists(parts, 2, LEFT_OUT)))
    except (TypeError, ValueError) as error:
        raise StateError(f"{LEFT_OUT} in the state holds no gaps: {error}") from None


def _deals_told(parts: object) -> tuple[Stretch, ...]:
    stretches = []
    for values in _lists(parts, 6, _DEALS):
        *numbers, tail, keep = values
        counted = all(type(number) is int and number >= least for number, least in zip(numbers, (0, 0, 1, 1), strict=True))
        if not counted or tail not in get_args(Tail) or type(keep) is not bool:
            raise StateError(
                f"{_DEALS} in the state must hold [step, start, ranks, batch, tail, keep_partial], got {values!r:.80}"
            )
        stretches.append(Stretch(*values))
    return tuple(stretches)


def _lists(value: object, length: int, name: str) -> list[list[Any]]:
    if not isinstance(value, list) or not all(isinstance(part, list) and len(part) == length for part in value):
        raise StateError(f"{name} in the state must be a list of lists of {length}, got {value!r:.80}")
    return value
