"""Where the boxes of a picture lie: below each other, branches beside each other, long chains in columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Final

from squirrel_torch.observe.boxes import (
    TAB,
    Box,
    Flow,
    box_of_consumer,
    box_of_loader,
    box_of_more,
    box_of_place,
    flow_of_loader,
    flow_of_place,
)
from squirrel_torch.observe.places import Chain
from squirrel_torch.observe.report import Report
from squirrel_torch.observe.spelling import amount_of

__all__ = ["GAP", "GUTTER", "WIDEST", "Block", "Edge", "Unit", "columns_of"]

GAP: Final = 50.0
"""Between a box and the next one below."""
GUTTER: Final = 64.0
"""Between columns."""
WIDEST: Final = 440.0
"""A box that has nothing beside it."""

_JOIN: Final = 76.0
"""Between the last boxes of branches and their mix."""
_BESIDE: Final = 28.0
_COLUMN: Final = 8
"""Boxes in a column, before a second one is made."""
_COLUMNS: Final = 4
_LANES: Final = 4
_WIDTHS: Final = {1: WIDEST, 2: 350.0}
_NARROWEST: Final = 300.0


@dataclass(frozen=True)
class Edge:
    """A line from a box to another.

    Args:
        points: Its corners.
        flow: What goes through it.
        room: Pixels on each side of its beginning, for what is written there.
    """

    points: tuple[tuple[float, float], ...]
    flow: Flow
    room: float


@dataclass(frozen=True)
class Block:
    """Boxes that have their places, relative to the upper left corner of all of them.

    Args:
        width: Of all.
        height: Of all.
        leaves: Where a line leaves the last of them, from the left side.
        boxes: With their upper left corners.
        edges: Between them.
        notes: Names of branches: where, what, and how many pixels there are.
    """

    width: float
    height: float
    leaves: float
    boxes: tuple[tuple[float, float, Box], ...] = ()
    edges: tuple[Edge, ...] = ()
    notes: tuple[tuple[float, float, str, float], ...] = ()

    def moved(self, right: float, down: float) -> Block:
        """The same elsewhere."""
        return replace(
            self,
            boxes=tuple((x + right, y + down, box) for x, y, box in self.boxes),
            edges=tuple(replace(edge, points=tuple((x + right, y + down) for x, y in edge.points)) for edge in self.edges),
            notes=tuple((x + right, y + down, text, width) for x, y, text, width in self.notes),
        )


@dataclass(frozen=True)
class Unit:
    """A block, and what leaves it.

    Args:
        block: One box, or a source with all branches before it.
        flow: To the next one.
        inside: Whether each worker of the loader has it.
    """

    block: Block
    flow: Flow
    inside: bool = True


def columns_of(chain: Chain, report: Report) -> list[tuple[Block, list[Unit]]]:
    """The columns of a picture, and what is in each: the chain, the loader and the consumer.

    Args:
        chain: That of the report.
        report: What is shown.
    """
    counts = _counts(chain, report)
    width = _WIDTHS.get(max(len(counts), min(_LANES, _lanes(chain))), _NARROWEST)
    return _laid(counts, _units(chain, report, width))


def _lanes(chain: Chain) -> int:
    """How many boxes lie beside each other."""
    return max(1, sum(_lanes(branch) for branch in chain.branches))


def _deep(chain: Chain) -> int:
    """How many boxes lie below each other."""
    return len(chain.places) + max((_deep(branch) for branch in chain.branches), default=0)


def _counts(chain: Chain, report: Report) -> list[int]:
    """How many units each column has; the first unit is the source with all branches before it."""
    first = 1 + max((_deep(branch) for branch in chain.branches), default=0) if chain.places or chain.branches else 0
    rest = max(0, len(chain.places) - 1) + 1 + (report.figures.loading is not None)
    count = min(_COLUMNS, max(1, ceil((first + rest) / _COLUMN)))
    high = ceil((first + rest) / count)
    columns, units = list[int](), [first] * bool(first) + [1] * rest
    taken = 0
    for size in units:
        if not columns or (taken + size > high and len(columns) < count):
            columns.append(0)
            taken = 0
        columns[-1] += 1
        taken += size
    return columns


def _units(chain: Chain, report: Report, width: float) -> list[Unit]:
    """The main chain, the loader and the consumer."""
    figures, loading = report.figures, report.figures.loading
    units = []
    if chain.places or chain.branches:
        first = replace(chain, places=chain.places[:1])
        units.append(Unit(_block(first, report, width), _flow(first)))
    for place in chain.places[1:]:
        units.append(Unit(_single(box_of_place(place, report.verdict, width)), flow_of_place(place)))
    if loading is not None:
        box = box_of_loader(report, loading, width)
        units.append(Unit(_single(box), flow_of_loader(figures, loading), inside=False))
    units.append(Unit(_single(box_of_consumer(report, width)), Flow(None, ""), inside=False))
    return units


def _flow(chain: Chain) -> Flow:
    return flow_of_place(chain.places[-1]) if chain.places else Flow(None, "not counted")


def _single(box: Box) -> Block:
    return Block(box.width, box.height, box.width / 2, boxes=((0.0, 0.0, box),))


def _stacked(above: Block, flow: Flow, below: Block) -> Block:
    """One below the other, with an edge between them; the one below is a single box."""
    top = above.height + GAP
    left = above.leaves - below.width / 2
    edge = Edge(((above.leaves, above.height), (above.leaves, top)), flow, below.width / 2)
    moved = below.moved(left, top)
    return replace(
        above,
        height=top + below.height,
        boxes=above.boxes + moved.boxes,
        edges=(*above.edges, edge),
        notes=above.notes + moved.notes,
    )


def _block(chain: Chain, report: Report, width: float) -> Block:
    """A chain with its branches beside each other above it."""
    boxes = [box_of_place(place, report.verdict, width) for place in chain.places]
    flows = [flow_of_place(place) for place in chain.places]
    block = _joined(chain, report, width, boxes[0] if boxes else None) if chain.branches else _single(boxes[0])
    for box, flow in zip(boxes[1:], flows[:-1], strict=True):
        block = _stacked(block, flow, _single(box))
    return block


def _joined(chain: Chain, report: Report, width: float, mix: Box | None) -> Block:
    shown, left_out = _busiest(chain.branches)
    lanes = [(branch.name, _block(branch, report, width), _flow(branch)) for branch in shown]
    if left_out:
        items = [branch.places[-1].stage.items if branch.places else None for branch in left_out]
        total = None if None in items else sum(count or 0 for count in items)
        more = _single(box_of_more([branch.name for branch in left_out], total, width))
        rate = total / report.figures.seconds if total is not None and report.figures.seconds else None
        lanes.append(("", more, Flow(rate, "not counted" if rate is None else f"{amount_of(rate)}/s")))
    high = max(block.height for _, block, _ in lanes) + 20
    wide = sum(block.width for _, block, _ in lanes) + _BESIDE * (len(lanes) - 1)
    whole = Block(wide, high + _JOIN, wide / 2)
    right = 0.0
    for name, block, flow in lanes:
        top = high - block.height
        x = right + block.leaves
        bend = high + _JOIN - 26
        way = ((x, high), (x, bend), (wide / 2, bend), (wide / 2, high + _JOIN))
        moved = block.moved(right, top)
        aside = TAB + 6 if any(box.mark and not (x or y) for x, y, box in block.boxes) else 0.0
        note = ((right + aside, top - 7, f"branch {name}", block.width - aside),) if name else ()
        edge = Edge(way, flow, width / 2)
        whole = replace(
            whole,
            boxes=whole.boxes + moved.boxes,
            edges=(*whole.edges, *moved.edges, edge),
            notes=whole.notes + moved.notes + note,
        )
        right += block.width + _BESIDE
    if mix is None:
        return whole
    below = _single(mix).moved(wide / 2 - width / 2, high + _JOIN)
    return replace(whole, height=high + _JOIN + mix.height, boxes=whole.boxes + below.boxes)


def _busiest(branches: tuple[Chain, ...]) -> tuple[list[Chain], list[Chain]]:
    """Branches to draw, in their order, and the rest: the one that limits the stream and those that work most are drawn."""
    if len(branches) <= _LANES:
        return list(branches), []

    def weight(branch: Chain) -> tuple[bool, float]:
        places = [place for _, _, place in branch.rows()]
        return any(place.limits for place in places), sum(place.busy for place in places)

    ranked = sorted(branches, key=weight, reverse=True)[: _LANES - 1]
    return [branch for branch in branches if branch in ranked], [branch for branch in branches if branch not in ranked]


def _laid(columns: list[int], units: list[Unit]) -> list[tuple[Block, list[Unit]]]:
    """The blocks of columns, with the units in each."""
    laid, left = [], list(units)
    for count in columns:
        own, left = left[:count], left[count:]
        block = own[0].block
        for before, unit in pairwise(own):
            block = _stacked(block, before.flow, unit.block)
        laid.append((block, own))
    return laid
