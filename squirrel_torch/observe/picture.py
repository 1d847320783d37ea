"""A report as a picture: the chain from top to bottom, in columns where it is long."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from typing import Final

from squirrel_torch.observe.arrange import GAP, GUTTER, WIDEST, Block, Edge, Unit, columns_of
from squirrel_torch.observe.boxes import Flow
from squirrel_torch.observe.drawing import STYLE, Pen, Style, lines_of, quoted
from squirrel_torch.observe.places import chain_of, facts_of, headline, makers_of, sentence
from squirrel_torch.observe.report import Report
from squirrel_torch.observe.spelling import clean, fill_of

__all__ = ["drawn", "svg_of"]

_MARGIN: Final = 22.0
_LEGEND: Final = (
    "blue gauges: how full buffers are; lines are as thick as much goes through; cpu: share of busy; ~ not counted exactly"
)
_HEAD: Final = Style(16, bold=True)
_FACTS: Final = Style(12, "soft")
_LABEL: Final = Style(12, bold=True)
_SMALL: Final = Style(11, "soft")
_BRANCH: Final = Style(12, "soft", mono=True, bold=True)


def svg_of(report: Report) -> str:
    """A picture of the chain, as SVG that needs nothing else and can be put into a page as it is.

    Args:
        report: What is shown.
    """
    return drawn(report, head=True)


def drawn(report: Report, *, head: bool = False) -> str:
    """The picture, with what it means above it or without.

    Args:
        report: What is shown.
        head: Whether the limit is named above the picture.
    """
    chain = chain_of(report)
    columns = columns_of(chain, report)
    pen = Pen()
    wide = max(WIDEST, sum(block.width for block, _ in columns) + GUTTER * (len(columns) - 1)) + 2 * _MARGIN
    down = _head(pen, report, wide) if head else _MARGIN + 18
    framed = bool(report.figures.loading is not None and report.figures.loading.workers and chain.places)
    down += (26 if framed else 0) + (10 if len(columns) > 1 else 0)
    down = _draw(pen, columns, down, makers_of(report.figures) if framed else "")
    down = _foot(pen, report, wide, down)
    size = f'width="{wide:.0f}" height="{down:.0f}" viewBox="0 0 {wide:.0f} {down:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sqt-picture" role="img" {size} style="max-width:100%;height:auto">'
        f"<title>{quoted(report.title or 'a stream')}</title><desc>{quoted(sentence(report))}</desc><style>{STYLE}</style>"
        f'<rect class="card" width="{wide:.0f}" height="{down:.0f}"/>{"".join(pen.parts)}</svg>\n'
    )


def _head(pen: Pen, report: Report, wide: float) -> float:
    """What limits the stream, in words; gives how far down that goes."""
    inner, down = wide - 2 * _MARGIN, _MARGIN - 2
    for style, text, most in ((_HEAD, headline(report), 4), (_FACTS, facts_of(report.figures), 2)):
        for line in lines_of(text, inner, style, most):
            down += style.size + 5
            pen.text(_MARGIN, down, line, style, inner)
    return down + 30


def _draw(pen: Pen, laid: list[tuple[Block, list[Unit]]], top: float, makers: str) -> float:
    """The columns; gives how far down they go."""
    right, placed = _MARGIN, list[tuple[Block, float, list[Unit]]]()
    for block, units in laid:
        placed.append((block.moved(right, top), right, units))
        right += block.width + GUTTER
    if makers:
        for number, (block, x, units) in enumerate(placed):
            _frame(pen, block, x, top, units, "" if number else f"each of {makers}")
    turned = [_turn(one[0], one[1], one[2][-1].flow, following, top) for one, following in pairwise(placed)]
    edges = [*turned, *(edge for block, _, _ in placed for edge in block.edges)]
    fastest = max((edge.flow.rate or 0.0 for edge in edges), default=0.0)
    for edge in edges:
        _edge(pen, edge, fastest)
    for block, _, _ in placed:
        _fill(pen, block)
    turns = GAP if len(placed) > 1 else 0.0
    return top + max(block.height for block, _, _ in placed) + turns + 14


def _fill(pen: Pen, block: Block) -> None:
    for x, down, text, width in block.notes:
        pen.text(x, down, text, _BRANCH, width)
    for x, down, box in block.boxes:
        box.draw(pen, x, down)


def _turn(block: Block, x: float, flow: Flow, column: tuple[Block, float, list[Unit]], top: float) -> Edge:
    """From the end of a column to the beginning of the next."""
    following, left, _ = column
    start, bottom = x + block.leaves, top + block.height
    # Where it begins its way down: above the first box, branches or not.
    end = left + following.leaves
    between = left - GUTTER / 2
    way = ((start, bottom), (start, bottom + 40), (between, bottom + 40), (between, top - 26), (end, top - 26), (end, top))
    return Edge(way, flow, following.width / 2)


def _frame(pen: Pen, block: Block, x: float, top: float, units: list[Unit], label: str) -> None:
    """Around what runs in each worker."""
    inside = sum(unit.inside for unit in units)
    if not inside:
        return
    outside = [unit for unit in units if not unit.inside]
    high = block.height - sum(unit.block.height + GAP for unit in outside)
    pen.rect(x - 10, top - 24, block.width + 20, high + 30, "frame", rx=8)
    if label:
        pen.text(x, top - 30, label, _LABEL, block.width)


def _edge(pen: Pen, edge: Edge, fastest: float) -> None:
    flow, (x, y) = edge.flow, edge.points[0]
    known = flow.rate is not None and fastest > 0
    thick = 1.5 + 7 * sqrt((flow.rate or 0.0) / fastest) if known else 1.5
    dashes = {} if flow.rate is not None else {"stroke_dasharray": "3 3"}
    pen.path((*edge.points[:-1], _short_of(edge.points)), "edge", stroke_width=f"{thick:.1f}", **dashes)
    end, down = edge.points[-1]
    half = thick / 2 + 4
    pen.path([(end - half, down - 10), (end + half, down - 10), (end, down)], "tip")
    beside = thick / 2 + 8
    pen.text(x + beside, y + 21, flow.label, _LABEL, edge.room - beside)
    pen.text(x + beside, y + 35, flow.size, _SMALL, edge.room - beside)
    if flow.fill is not None:
        _gauge(pen, x - beside, y + 12, flow)


def _short_of(points: tuple[tuple[float, float], ...]) -> tuple[float, float]:
    x, y = points[-1]
    return x, y - 8


def _gauge(pen: Pen, right: float, y: float, flow: Flow) -> None:
    """How full a buffer is."""
    held, room = flow.fill or (0.0, 1)
    pen.group("gauge", f"{held:.1f} of {room} {flow.held}, on average")
    pen.rect(right - 50, y, 50, 9, "rest")
    pen.rect(right - 50, y, 50 * min(1.0, max(0.0, held / room)), 9, "level")
    pen.text(right - 55, y + 9, fill_of(held, room), _SMALL, 90, "end")
    pen.end()


def _foot(pen: Pen, report: Report, wide: float, down: float) -> float:
    """What signs mean, and warnings; gives how far down that goes."""
    x = _MARGIN
    for text, draw, width in (
        ("busy", (1.0, 0.0, 0.0), 34),
        ("starved: waits for input", (0.0, 1.0, 0.0), 145),
        ("blocked: waits for its taker", (0.0, 0.0, 1.0), 165),
    ):
        if x + 36 + width > wide - _MARGIN:
            x, down = _MARGIN, down + 18
        pen.shares(x, down + 1, 26, 9, draw)
        pen.text(x + 32, down + 10, text, _SMALL, wide - _MARGIN - x - 32)
        x += 42 + width
    down += 18
    notes = [
        "blue gauges: how full buffers are; lines are as thick as much goes through; cpu: share of busy; ~ not counted exactly"
    ]
    notes += [f"warning: {clean(warning)}" for warning in report.figures.warnings]
    for note in notes:
        for line in lines_of(note, wide - 2 * _MARGIN, _SMALL, 3):
            pen.text(_MARGIN, down + 10, line, _SMALL, wide - 2 * _MARGIN)
            down += 16
    return down + 14
