"""A stream watched while it is used: a view in a terminal, or a line now and then in a log."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from squirrel_torch.checks import require_positive_seconds
from squirrel_torch.observe.adding import since
from squirrel_torch.observe.figures import Figures
from squirrel_torch.observe.places import chain_of, facts_of, headline, split_of_consumer
from squirrel_torch.observe.report import Report
from squirrel_torch.observe.spelling import clean, percent
from squirrel_torch.observe.text import Column, columns_of, consumer_of, left_for_names, line_of, rich_table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Watch", "watching"]

_BAR: Final = 24
_SHORTEST_NAME: Final = 20
_FEWEST: Final = 3
_LEAST: Final = ("busy", "per s", "in flight", "starved", "blocked", "cpu", "skipped", "retries", "p50 / p99", "items")
"""Columns of the table, those first that tell most."""


def watching(ask: Callable[[], Report], every: float = 1.0, file: TextIO | None = None) -> Watch:
    """A view of what a stream does while it is used, for as long as a `with` block takes.

    `with watching(loader.report): train()`

    In a terminal it is a table with bars, which is drawn anew, if rich is installed (extra `observe`). Elsewhere, and without
    rich, it is a line each time. Rates and shares are those of the time since the last one; the verdict is the report's own.

    Args:
        ask: Gives a report; it is called in a thread of its own.
        every: Seconds between two views.
        file: Where to; None: standard error.

    Raises:
        ValueError: If `every` is not more than 0.
    """
    return Watch(ask, every, file)


class _View(Protocol):
    """How reports are shown."""

    def show(self, report: Report) -> None:
        """Show one in place of the one before, or below it."""

    def end(self) -> None:
        """Leave the terminal as it was."""


class Watch:
    """See `watching`. It asks once more when it ends, and shows the figures of all of the time then.

    Args:
        ask: Gives a report.
        every: Seconds between two views.
        file: Where to; None: standard error.
    """

    def __init__(self, ask: Callable[[], Report], every: float = 1.0, file: TextIO | None = None) -> None:
        require_positive_seconds("every", every)
        self._ask = ask
        self._every = every
        self._file = file
        self._over = Event()
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Watch:
        """Begin."""
        self._over.clear()
        self._error = None
        view = _view(sys.stderr if self._file is None else self._file)
        self._thread = Thread(target=self._run, args=(view,), name="squirrel_torch-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        """End, and wait for the last view. What went wrong while it was watched is a warning: what was watched went on."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            warnings.warn(f"the stream was no longer watched: {self._error!r}", RuntimeWarning, stacklevel=2)

    def _run(self, view: _View) -> None:
        try:
            self._watch(view)
        except Exception as error:  # noqa: BLE001  nobody can catch it in this thread; it is told at the end
            self._error = error

    def _watch(self, view: _View) -> None:
        earlier: Figures | None = None
        try:
            while not self._over.wait(self._every):
                report = self._ask()
                now = report.figures
                view.show(report if earlier is None else replace(report, figures=since(now, earlier)))
                earlier = now
            view.show(self._ask())
        finally:
            view.end()


# -- views -------------------------------------------------------------------------------------------------------------


def _view(file: TextIO) -> _View:
    if file.isatty() and find_spec("rich"):
        from rich.console import Console

        console = Console(file=file)
        if console.is_terminal and not console.is_dumb_terminal:
            return _Drawn(console)
    return _Lines(file)


class _Lines:
    """A line each time."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def show(self, report: Report) -> None:
        self._file.write(f"{line_of(report)}\n")
        self._file.flush()

    def end(self) -> None:
        """Nothing is to be put back."""


class _Drawn:
    """A table that is drawn again in the same place."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        # It is drawn by the thread that asks: rich needs none of its own.
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._console = console
        self._live.start()

    def show(self, report: Report) -> None:
        self._live.update(view_of(report, self._console.width), refresh=True)

    def end(self) -> None:
        self._live.stop()


def view_of(report: Report, room: int) -> RenderableType:
    """What is drawn in a terminal.

    Args:
        report: What is shown.
        room: Columns of the terminal.
    """
    from rich.console import Group
    from rich.text import Text

    fine = report.verdict.cause == "consumer"
    lines: list[RenderableType] = [Text(headline(report), style="bold green" if fine else "bold yellow")]
    verdict = report.verdict
    lines.append(Text(clean(verdict.because)))
    if verdict.remedy:
        lines.append(Text(f"about {verdict.gain:.1f}x as fast with {clean(verdict.remedy)}", style="cyan"))
    lines.append(Text(f"{facts_of(report.figures)}", style="dim"))
    rows = list(chain_of(report).rows())
    limits = next((number for number, (_, _, place) in enumerate(rows) if place.limits), None)
    if rows:
        lines += [Text(""), rich_table(_fitting(report, room), room, limits), Text("")]
    works, waits = split_of_consumer(report.figures)
    if works + waits:
        full = round(_BAR * works)
        bar = "\u2588" * full + "\u2591" * (_BAR - full)
        lines.append(Text(f"the consumer  {bar}  works {percent(works)}, waits for data {percent(waits)}"))
    lines += [Text(text, style="dim") for text in (consumer_of(report.figures),) if text]
    lines += [Text(f"warning: {clean(warning)}", style="red") for warning in report.figures.warnings]
    return Group(*lines)


def _fitting(report: Report, room: int) -> list[Column]:
    """The columns of the table; those that tell most, where there is no room for all."""
    columns = columns_of(report, "\u2588", "\u2591")
    while len(columns) > _FEWEST and left_for_names(columns, room) < min(columns[0].width, _SHORTEST_NAME):
        last = max(columns[1:], key=lambda column: _LEAST.index(column.title))
        columns.remove(last)
    return columns
