"""Pictures of the table: for each group of jobs one, whose bars begin at the limit, on a logarithmic axis.

Drawn by hand as SVG, so that they take the colours of the page, light or dark, and no font has to be fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from xml.sax.saxutils import escape

from beside_jobs import COLUMNS, OURS
from beside_table import Row, number

__all__ = ["picture"]

WIDTH = 640
PANEL = 320
LABELS = 112
"""Of a panel, the part left of the bars."""

VALUES = 40
"""And the part right of them."""

LINE = 14
HEAD = 36
GAP = 14

_STYLE = (
    "<style>.bn,.bv,.bt{fill:var(--md-default-fg-color,#768390)}.bl{fill:var(--md-default-fg-color--light,#768390)}"
    ".bt{font-weight:bold}.bh{font-size:12px}.bo{fill:#d9530f}.bp{fill:#7d93a8}"
    ".bg{stroke:var(--md-default-fg-color--light,#768390)}.bf{stroke:var(--md-default-fg-color--lightest,#76839055)}</style>"
)


class _Axis:
    """A logarithmic axis from one power of ten to another, or from the limit if nobody is on the other side."""

    def __init__(self, ratios: Sequence[float]) -> None:
        self.low = min(0.0, floor(log10(min(ratios)) + 0.05))
        self.high = max(1.0, ceil(log10(max(ratios)) - 0.05))

    def at(self, ratio: float) -> float:
        """Where a ratio is, from the left of a panel; what is a little outside is on the edge."""
        part = (log10(ratio) - self.low) / (self.high - self.low)
        return LABELS + min(max(part, 0), 1) * (PANEL - LABELS - VALUES)

    @property
    def powers(self) -> list[float]:
        """The ratios that have a line."""
        step = 1 if self.high - self.low <= 4 else 2
        return [10.0**power for power in range(round(self.low), round(self.high) + 1) if power % step == 0]


def picture(rows: Sequence[Row]) -> str:
    """The SVG of some jobs, in two columns."""
    axis = _Axis([ratio for row in rows for ratio in row.ratios.values()])
    parts, y = [], 0
    for left, right in zip(rows[::2], [*rows[1::2], None], strict=False):
        pair = [row for row in (left, right) if row is not None]
        parts += [_panel(row, axis, x * PANEL, y) for x, row in enumerate(pair)]
        y += HEAD + LINE * max(len(row.ratios) for row in pair) + GAP + LINE
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP}" font-family="sans-serif" font-size="11">'
    )
    return "\n".join([opening, _STYLE, *parts, "</svg>"]) + "\n"


def _panel(row: Row, axis: _Axis, x: int, y: int) -> str:
    shown = [column for column in COLUMNS if column in row.ratios]
    bottom = HEAD + LINE * len(shown)
    limit, _, time = row.limit.rpartition(": ")
    parts = [_text("bt bh", 4, 13, row.job.name), _text("bl", 4, 27, f"1 = {limit}, {time}")]
    for power in axis.powers:
        at = f"{axis.at(power):.1f}"
        parts.append(f'<path class="{"bg" if power == 1 else "bf"}" d="M{at} {HEAD - 3}V{bottom + 2}"/>')
        parts.append(_text("bl", axis.at(power), bottom + 12, f"{power:,g}", "middle"))
    for line, column in enumerate(shown):
        parts += _bar(column, row.ratios[column], axis, HEAD + LINE * line)
    return f'<g transform="translate({x} {y})">\n' + "\n".join(parts) + "\n</g>"


def _bar(column: str, ratio: float, axis: _Axis, y: int) -> list[str]:
    start, end = sorted((axis.at(1), axis.at(ratio)))
    middle = y + 10
    kind = "bo" if column == OURS else "bp"
    return [
        _text("bt" if column == OURS else "bn", LABELS - 6, middle, column, "end"),
        f'<rect class="{kind}" x="{start:.1f}" y="{y + 1}" width="{max(end - start, 1.5):.1f}" height="{LINE - 4}" rx="1.5"/>',
        _text("bv", end + 4, middle, number(ratio)),
    ]


def _text(kind: str, x: float, y: float, text: str, anchor: str = "") -> str:
    placed = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}"{placed}>{escape(text)}</text>'
