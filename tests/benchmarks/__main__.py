"""This project beside its peers, on the same work, in one table: ``python tests/benchmarks``; see README.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from beside import FOLDER, Results, Settings, measure
from beside_jobs import GROUPS, JOBS, Job, chosen
from beside_page import unexplained, write_page
from beside_table import absent, described, missed, rows_of, summary

DOCS = FOLDER.parents[1] / "docs"


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    names = ", ".join([*GROUPS, *dict.fromkeys(job.table for job in JOBS)])
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, metavar="N", help="times that everyone is measured (default 3 to 7, by script)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"groups or tables, or how they begin: {names}")
    parser.add_argument("--quick", action="store_true", help="one round of few items: whether it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every time of every round")
    parser.add_argument("--read", type=Path, metavar="FILE", help="take these results; only what --only names is measured anew")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where datasets are written (default a temporary folder)")
    parser.add_argument("--docs", action="store_true", help="also write the table and its pictures into docs/")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    if options.only and not chosen(options.only, quick=False):
        parser.error(f"--only must begin one of {names}; got {' '.join(options.only)}")
    if options.docs and options.only and not options.read:
        parser.error("--docs writes the whole table: leave out --only, or give --read FILE with the other results")
    return options


def show(results: Results, jobs: list[Job]) -> bool:
    """Print the table; whether all that was asked for is in it."""
    rows = rows_of(jobs, results.tables)
    print(described(results.environment, results.rounds), "", summary(rows), sep="\n")
    failed = [f"{name}: {text}" for table in results.tables.values() for name, text in table["failed"].items()]
    notes = [f"absent: {', '.join(absent(rows)) or 'nobody'}"]
    notes += [f"faster than we are, {row.job.name}: {', '.join(row.faster)}" for row in rows if row.faster]
    notes += [*(f"missed, {text}" for text in missed(results.tables)), *(f"wrong output, {text}" for text in failed)]
    print("", *notes, sep="\n")
    for script, text in results.broken.items():
        print(f"\n{script} ended with an error:\n{text}", file=sys.stderr)
    return not failed and not results.broken


def main() -> int:
    """Measure, show, write."""
    options = parsed()
    results = Results.read(options.read) if options.read else Results()
    wanted = chosen(options.only, quick=options.quick)
    if options.only or not options.read:
        measure(wanted, Settings(options.rounds, options.quick, options.folder), results, options.json)
    whole = show(results, list(JOBS) if options.read else wanted)
    if options.docs:
        page, rows = DOCS / "explanation" / "beside-other-loaders.md", rows_of(JOBS, results.tables)
        write_page(page, DOCS / "pictures", rows, results)
        for name in unexplained(page, rows, results):
            print(
                f"{page.name} does not say why a peer is faster or a target missed: it needs a paragraph with **{name}**",
                file=sys.stderr,
            )
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
