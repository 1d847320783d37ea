"""The page of the documentation about peers: what is between two marks of it is made anew, the rest is written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from beside import Results
from beside_jobs import GROUPS
from beside_pictures import picture
from beside_table import Row, absent, by_peer, described, missed

__all__ = ["unexplained", "write_page"]

BEGIN = "<!-- made by `python tests/benchmarks --docs`: do not edit from here -->"
END = "<!-- to here -->"


def write_page(page: Path, pictures: Path, rows: Sequence[Row], results: Results) -> None:
    """Put what was measured into the page, and its pictures beside the others.

    Args:
        page: Has both marks.
        pictures: The folder of pictures.
        rows: The whole table.
        results: Of which the rows are.

    Raises:
        ValueError: If a mark is missing.
    """
    before, found, rest = page.read_text().partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{page} needs the lines {BEGIN!r} and {END!r}, between which the figures are written")
    for group in GROUPS:
        if mine := _of_group(rows, group):
            (pictures / f"beside-{group}.svg").write_text(picture(mine))
    page.write_text(f"{before}{BEGIN}\n\n{_made(rows, results)}\n\n{END}{after}")


def _of_group(rows: Sequence[Row], group: str) -> list[Row]:
    return [row for row in rows if row.job.group == group and row.ratios]


def _made(rows: Sequence[Row], results: Results) -> str:
    rough = (
        ["**Few rounds of few items (`--quick`), on a machine that did other work too: not to be quoted.**"]
        if results.quick
        else []
    )
    missing = [f"Not installed: {', '.join(found)}."] if (found := absent(rows)) else []
    parts = [*rough, "\n".join([described(results.environment, results.rounds), *missing])]
    for group, title in GROUPS.items():
        if mine := _of_group(rows, group):
            shown = f"![{title}: times as bars, from the limit on](../pictures/beside-{group}.svg)"
            parts += [f"### {title}", shown, by_peer(mine)]
    parts += ["### Where a peer is faster", _listed(f"{row.job.name}: {', '.join(row.faster)}" for row in rows if row.faster)]
    parts += ["### Targets that are missed", _listed(missed(results.tables))]
    return "\n\n".join(parts)


def _listed(lines: Iterable[str]) -> str:
    found = list(lines)
    return "\n".join(f"* {line}" for line in found) if found else "None."


def unexplained(page: Path, rows: Sequence[Row], results: Results) -> list[str]:
    """The jobs that a peer does faster, or that miss a target, and of which the part written by hand says nothing in bold."""
    text = page.read_text()
    written = text.partition(BEGIN)[0] + text.partition(END)[2]
    lost = [row.job for row in rows if row.faster or missed({row.job.table: results.tables[row.job.table]})]
    return [job.name for job in lost if f"**{job.name}**" not in written]
