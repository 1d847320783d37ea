"""A report as a table of text."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Final

from squirrel_torch.observe.figures import Figures, Loading
from squirrel_torch.observe.places import Place, chain_of, makers_of, sentence
from squirrel_torch.observe.report import Report
from squirrel_torch.observe.spelling import amount_of, cells, clean, cut, fill_of, padded, percent, time_of, times_of, wrapped

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Column", "columns_of", "consumer_of", "left_for_names", "line_of", "rich_table", "table_of"]

_BAR: Final = 10
_LONGEST_NAME: Final = 60
_SHORTEST_NAME: Final = 20
_WIDTH: Final = 120
"""Where there is no terminal."""

_LEGEND: Final = (
    "busy: share of the time of its thread or of its workers; cpu: of that; starved: waits for input; blocked: for its taker"
)


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Args:
        title: What it holds.
        values: One for each place; empty where there is none.
        left: Whether values are aligned on the left side.
    """

    title: str
    values: tuple[str, ...]
    left: bool = False

    @property
    def width(self) -> int:
        """Columns of a terminal that it takes."""
        return max(map(cells, (self.title, *self.values)))


def columns_of(report: Report, full: str = "#", empty: str = ".") -> list[Column]:
    """The columns of the table, the names first. Those with no value at all are left out.

    Args:
        report: What is shown.
        full: What a bar is made of.
        empty: The rest of a bar.
    """
    rows = list(chain_of(report).rows())
    places = [place for _, _, place in rows]
    names = Column("stage", tuple(_name(depth, branch, place) for depth, branch, place in rows), left=True)
    columns = [
        Column("items", tuple(place.items for place in places)),
        Column("per s", tuple(place.rate_text for place in places)),
        Column("busy", tuple(_busy(place, full, empty) for place in places), left=True),
        Column("cpu", tuple("" if place.cpu is None else percent(place.cpu) for place in places)),
        Column("starved", tuple(_waits(place, place.upstream) for place in places)),
        Column("blocked", tuple(_waits(place, place.downstream) for place in places)),
        Column("in flight", tuple("" if place.fill is None else fill_of(*place.fill) for place in places)),
        Column("p50 / p99", tuple("" if place.times is None else times_of(place.times) for place in places)),
        Column("retries", tuple(_count(place.stage.retries) for place in places)),
        Column("skipped", tuple(_count(place.stage.skipped) for place in places)),
    ]
    return [names, *(column for column in columns if any(column.values))]


def table_of(report: Report, width: int | None = None) -> str:
    """The verdict, how long the consumer waits, a row for each place, and warnings: readable without colour.

    It is drawn with rich where that is installed (extra `observe`), and is plain ASCII, but for names, without it.

    Args:
        report: What is shown.
        width: Columns that there are; None: those of the terminal, and 120 where there is none. Names are cut to it, figures
            never: where names would be shorter than 20 they get lines of their own.
    """
    room = max(20, get_terminal_size((_WIDTH, 24)).columns if width is None else width)
    lines = wrapped(sentence(report), room)
    consumer = consumer_of(report.figures)
    if consumer:
        lines += wrapped(consumer, room)
    lines += _table(report, room) if report.figures.stages else ["no stage was seen"]
    lines += [line for text in _notes(report) for line in wrapped(text, room)]
    return "\n".join(line.rstrip() for line in lines)


def line_of(report: Report) -> str:
    """All in one line, for a log."""
    figures = report.figures
    known = figures.items is not None and figures.seconds
    rate = f", {amount_of((figures.items or 0) / figures.seconds)} items a second" if known else ""
    waits = "" if figures.loading is None else f", the consumer waits {percent(figures.loading.wait_share)} of its time"
    return f"{time_of(figures.seconds)}{rate}{waits}; {sentence(report)}"


def _notes(report: Report) -> list[str]:
    """What is below the table."""
    notes = []
    if any(place.limits for _, _, place in chain_of(report).rows()):
        notes.append("> limits the stream")
    notes += [_LEGEND, *_threads(report)] if report.figures.stages else []
    return notes + [f"warning: {clean(warning)}" for warning in report.figures.warnings]


def _threads(report: Report) -> list[str]:
    """What stages share a thread, and how busy that is, if there are several."""
    threads: dict[str, list[Place]] = {}
    for _, _, place in chain_of(report).rows():
        threads.setdefault(place.stage.thread, []).append(place)
    if len(threads) == 1:
        return []
    total = report.figures.seconds * max(1, report.figures.makers)
    lines = []
    for thread, places in threads.items():
        busy = min(1.0, sum(place.stage.busy for place in places) / total) if total else 0.0
        lines.append(f"thread {clean(thread)}, busy {percent(busy)}: {', '.join(cut(place.name, 30) for place in places)}")
    return lines


def consumer_of(figures: Figures) -> str:
    """How long the consumer waits, and what the loader does; empty without a loader."""
    loading = figures.loading
    if loading is None:
        return ""
    parts = [f"the consumer waits {percent(loading.wait_share)} of its time for data"]
    rate = f" ({amount_of(loading.batches / figures.seconds)} a second)" if figures.seconds else ""
    parts.append(f"{loading.batches:,} batches{rate}")
    if loading.most_ready:
        parts.append(f"{fill_of(loading.ready, loading.most_ready)} ready")
    return "; ".join([*parts, *_workers_of(figures, loading)])


def _workers_of(figures: Figures, loading: Loading) -> list[str]:
    parts, total = [], figures.seconds * max(1, figures.makers)
    makers = makers_of(figures)
    if makers:
        parts.append(makers)
    for word, seconds, of in (
        ("packing", loading.packing, total),
        ("blocked", loading.blocked, total),
        ("unpacking", loading.unpacking, figures.seconds * max(1, figures.ranks)),
    ):
        if of and seconds >= 0.005 * of:
            parts.append(f"{word} {percent(min(1.0, seconds / of))}")
    return parts


# -- cells -------------------------------------------------------------------------------------------------------------


def _name(depth: int, branch: str, place: Place) -> str:
    mark = "> " if place.limits else "  "
    label = f"{branch}: " if branch else "  " if depth else ""
    return f"{mark}{'  ' * depth}{label}{place.name}{' (planned)' if place.stage.planned else ''}"


def _busy(place: Place, full: str, empty: str) -> str:
    if place.stage.planned:
        return ""
    filled = min(_BAR, round(_BAR * place.busy))
    return f"{full * filled}{empty * (_BAR - filled)} {percent(place.busy)}"


def _waits(place: Place, share: float) -> str:
    return "" if place.stage.planned or not share else percent(share)


def _count(count: int) -> str:
    return f"{count:,}" if count else ""


# -- the table ---------------------------------------------------------------------------------------------------------


def _table(report: Report, room: int) -> list[str]:
    if not find_spec("rich"):
        return _rows(columns_of(report), room)
    columns = columns_of(report, "\u2588", "\u2591")
    if left_for_names(columns, room) < min(columns[0].width, _SHORTEST_NAME):
        return _rows(columns, room)  # names on lines of their own, which a table of rich can't have
    from rich.console import Console

    console = Console(width=room, color_system=None, force_terminal=False, legacy_windows=False, highlight=False)
    with console.capture() as captured:
        console.print(rich_table(columns, room))
    return ["", *captured.get().splitlines(), ""]


def left_for_names(columns: list[Column], room: int) -> int:
    """Columns of a terminal that the others leave for names.

    Args:
        columns: Those of the table, names first.
        room: Columns of the terminal.
    """
    return room - sum(column.width + 2 for column in columns[1:])


def _rows(columns: list[Column], room: int) -> list[str]:
    names, others = columns[0], columns[1:]
    left = min(names.width, _LONGEST_NAME, left_for_names(columns, room))
    apart = left < min(names.width, _SHORTEST_NAME)
    lines = []
    for number, text in enumerate([names.title, *names.values]):
        row = [[column.title, *column.values][number] for column in others]
        figures = "".join(f"  {padded(value, one.width, left=not one.left)}" for one, value in zip(others, row, strict=True))
        lines += [cut(text, room), f"  {figures}"] if apart else [padded(cut(text, left), left) + figures]
        if not number:
            lines.append("-" * min(room, cells(lines[-1])))
    return ["", *lines, ""]


def rich_table(columns: list[Column], room: int, limits: int | None = None) -> RenderableType:
    """The table as rich draws it.

    Args:
        columns: Those of the table, names first.
        room: Columns of a terminal that it may take.
        limits: The row of the place that limits, if it gets a colour.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    left = max(_SHORTEST_NAME, min(_LONGEST_NAME, left_for_names(columns, room)))
    # One space beside each value and one that rich puts between columns: two, as without it.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        style = "dark_orange" if column.title == "busy" else ""
        table.add_column(Text(column.title), justify="left" if column.left else "right", no_wrap=True, style=style)
    for number, name in enumerate(columns[0].values):
        values = [cut(name, left), *(column.values[number] for column in columns[1:])]
        # As texts, not as markup: a name may have brackets in it.
        table.add_row(*map(Text, values), style="bold yellow" if number == limits else "")
    return table
