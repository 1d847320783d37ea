"""What was measured, as one table: a row for each job, a column for each peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from beside_jobs import COLUMNS, OURS, Job
from rig import Times

__all__ = ["Row", "absent", "by_peer", "described", "missed", "number", "row_of", "rows_of", "summary"]

Recorded = Mapping[str, Any]
"""A table as `write_json` has it."""

ABSENT, FAILED, INEXACT = "absent", "failed", "loses samples"


@dataclass(frozen=True)
class Row:
    """A job, and what came of it.

    Args:
        job: Which.
        limit: What all are compared with, and its time.
        ratios: How many times as long as the limit each column took.
        words: What is said instead of a figure, by column.
    """

    job: Job
    limit: str
    ratios: Mapping[str, float]
    words: Mapping[str, str]

    @property
    def best(self) -> str:
        """The column that is fastest; nobody, if nobody was measured."""
        return min(self.ratios, key=self.ratios.__getitem__, default="")

    @property
    def faster(self) -> list[str]:
        """The peers that are faster than we are."""
        own = self.ratios.get(OURS, float("inf"))
        return [column for column, ratio in self.ratios.items() if column != OURS and ratio < own]

    def cell(self, column: str) -> str:
        """What the table shows."""
        return number(self.ratios[column]) if column in self.ratios else self.words.get(column, "")


def number(ratio: float) -> str:
    """A ratio in two or three digits."""
    return (
        f"{ratio:.2g}"
        if 0 < ratio < 0.1
        else f"{ratio:,.0f}"
        if ratio >= 100
        else f"{ratio:.1f}"
        if ratio >= 10
        else f"{ratio:.2f}"
    )


def rows_of(jobs: Iterable[Job], tables: Mapping[str, Recorded]) -> list[Row]:
    """The rows of the jobs whose tables were measured."""
    return [row_of(job, tables[job.table]) for job in jobs if job.table in tables]


def row_of(job: Job, recorded: Recorded) -> Row:
    """What a table says about a job."""
    times, bases = Times(recorded["seconds_per_item"]), recorded["bases"]
    ratios, words = dict[str, float](), dict[str, str]()
    for column in COLUMNS:
        names = [job.ours + job.ending] if column == OURS else _names_of(job, column, recorded)
        found = {name: _ratio(name, job.limit, times, bases) for name in names if name in times}
        exact = {name: ratio for name, ratio in found.items() if recorded["told"][name].get("exact") != "NO"}
        if exact:
            ratios[column] = min(exact.values())
        elif found:
            words[column] = INEXACT
        elif names:
            words[column] = FAILED if any(name in recorded["failed"] for name in names) else ABSENT
    return Row(job, f"{job.limit.removesuffix(job.ending)}: {_time_of(job.limit, recorded, times)}", ratios, words)


def _names_of(job: Job, column: str, recorded: Recorded) -> list[str]:
    """A peer's contenders; where costs are compared, those that have one."""
    names = [*recorded["seconds_per_item"], *recorded["absent"], *recorded["failed"]]
    bases = recorded["bases"]
    mine = [name for name in names if name.startswith(COLUMNS[column]) and name.endswith(job.ending)]
    return [name for name in mine if (name in bases) == (job.limit in bases)]


def _ratio(name: str, limit: str, times: Times, bases: Mapping[str, str]) -> float:
    if limit in bases:
        return times.cost(name, bases[name]) / times.cost(limit, bases[limit])
    return times.ratio(name, limit)


def _time_of(name: str, recorded: Recorded, times: Times) -> str:
    unit, scale = recorded["unit"]
    bases = recorded["bases"]
    seconds = times.cost(name, bases[name]) if name in bases else times.median(name)
    figure = seconds * scale
    return f"{figure:,.0f} {unit}" if figure >= 100 else f"{figure:.3g} {unit}"


# -- as text --------------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> str:
    """All of it, as aligned markdown: a line for each job."""
    return _aligned([_head(COLUMNS), *(_line(row, COLUMNS) for row in rows)])


def by_peer(rows: Sequence[Row]) -> str:
    """The same of a few jobs, for a page that is not as wide: a line for each peer that does any; the fastest in bold."""
    columns = [column for column in COLUMNS if any(row.cell(column) for row in rows)]
    lines = [_head(columns), *(_line(row, columns, bold=row.best) for row in rows)]
    return _aligned(list(zip(*lines, strict=True)))


def _head(columns: Iterable[str]) -> list[str]:
    return ["x limit", "limit", *columns]


def _line(row: Row, columns: Iterable[str], bold: str = "") -> list[str]:
    cells = (f"**{row.cell(column)}**" if column == bold else row.cell(column) for column in columns)
    return [row.job.name, row.limit, *cells]


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in ruled)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def missed(tables: Mapping[str, Recorded]) -> list[str]:
    """The targets that were not reached."""
    claims = ((name, claim) for name, recorded in tables.items() for claim in recorded["claims"])
    return [f"{name}: {claim['text']}" for name, claim in claims if claim["holds"] is False]


def absent(rows: Iterable[Row]) -> list[str]:
    """The peers that are not installed."""
    found = {column for row in rows for column, word in row.words.items() if word == ABSENT}
    return [column for column in COLUMNS if column in found]


def described(environment: Mapping[str, str], rounds: Mapping[str, int]) -> str:
    """The machine, the day, the versions, and how often everyone was measured."""
    machine = "{date}: {cpu}, {cores} cores, {memory} memory, {system}, Python {python}".format(**environment)
    told = {"date", "cpu", "cores", "memory", "system", "python"}
    versions = ", ".join(f"{name} {found}" for name, found in environment.items() if name not in told and found != ABSENT)
    often = ", ".join(f"{script.removesuffix('.py')} {count}" for script, count in rounds.items())
    return f"{machine}.\n{versions}.\nRounds: {often}."
