"""How many items each place has given, as far as that follows from what is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, TypeAlias

from squirrel_torch.iterstream.stage import Stage
from squirrel_torch.iterstream.stages import Batched
from squirrel_torch.observe.figures import StageFigures

__all__ = ["Key", "counted", "in_order"]

Key: TypeAlias = "tuple[tuple[str, ...], int]"
"""The branch and the place of a stage."""


def counted(
    figures: Sequence[StageFigures], stages: Mapping[Key, Stage[Any, Any] | None], made: tuple[int, int] | None
) -> list[StageFigures]:
    """Figures with the items of each place, as far as they follow from what is counted.

    Args:
        figures: Of the places of a chain and its branches.
        stages: The stage of each place; None of a source.
        made: Batches that the last place has given, and samples in them, where those were counted.
    """
    known: dict[Key, int] = {(one.branch, one.place): one.calls.count for one in figures if one.calls is not None}
    main = [one.place for one in figures if not one.branch]
    if made is not None and main:
        known[(), main[-1]] = made[0]
        _count_samples(known, stages, main[-1], made[1])
    derived = _derived(known, stages)
    if len(main) > 1 and main[1] > 1:  # what stands between only orders what the source gives
        stage = stages[(), main[1]]
        behind = known.get(((), main[1] - 1))
        if behind is None and stage is not None and stage.one_to_one:
            behind = derived.get(((), main[1]))
        if behind is not None:
            derived.setdefault(((), 0), behind)
    return [replace(one, items=derived.get((one.branch, one.place)), exact=(one.branch, one.place) in known) for one in figures]


def _count_samples(known: dict[Key, int], stages: Mapping[Key, Stage[Any, Any] | None], last: int, samples: int) -> None:
    """The samples of the batches are what stands before the stage that makes them."""
    place = last
    while (stage := stages.get(((), place))) is not None and stage.one_to_one:
        place -= 1
    if isinstance(stage, Batched):
        known.setdefault(((), place - 1), samples)


def _derived(known: Mapping[Key, int], stages: Mapping[Key, Stage[Any, Any] | None]) -> dict[Key, int]:
    """How many items each place has given, as far as that follows from the counts of some.

    A stage that gives one item for each passes the count on, in both directions.
    """
    found = dict(known)
    order = sorted(stages, key=in_order)
    for (branch, place), before in zip(order[1:], order, strict=False):
        stage = stages[branch, place]
        if before == (branch, place - 1) and before in found and stage is not None and (stage.one_to_one or stage.moves_only):
            found.setdefault((branch, place), found[before])
    for (branch, place), before in reversed(list(zip(order[1:], order, strict=False))):
        stage = stages[branch, place]
        if before == (branch, place - 1) and (branch, place) in found and stage is not None and stage.one_to_one:
            found.setdefault(before, found[branch, place])
    return found


def in_order(key: Key) -> tuple[float, tuple[str, ...], int]:
    """The main chain, and behind it the branches."""
    branch, place = key
    return (inf if branch else 0.0, branch, place)
