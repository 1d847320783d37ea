"""How things are measured here: side by side, round by round, and only after their output was checked.

The machine's speed changes from minute to minute, and with it every time that is measured. So nobody's time is compared with a
number, nor with a time of another round: figures are medians of ratios taken within one round.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from record import environment, write_json

__all__ = ["Claim", "Contender", "Table", "Times", "command_line", "exhaust", "measure", "report"]


def exhaust(stream: Iterable[Any]) -> None:
    """Take every item and drop it, as plainly as Python can."""
    for _ in stream:
        pass


@dataclass(frozen=True)
class Contender:
    """One way to do the job.

    Args:
        name: As the table shows it.
        make: Gives, for a number of items, what the table's `work` is timed on. Not in the time itself.
        share: The part of the table's items it gets, where all would take minutes. Times are per item.
        needs: The module that has to be installed.
        base: The contender whose time is taken off to get the cost of what this one does more.
        note: What a reader has to know.
    """

    name: str
    make: Callable[[int], Any]
    share: float = 1.0
    needs: str = "squirrel_torch"
    base: str = ""
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """What was promised, and whether it holds; None where nothing was promised."""

    text: str
    holds: bool | None = None

    def __str__(self) -> str:
        return self.text if self.holds is None else f"{self.text}: {'holds' if self.holds else 'MISSED'}"


class Times(dict[str, list[float]]):
    """Seconds per item of each contender, a number for each round; and of whom there are none, as its output was wrong."""

    def __init__(self, times: Mapping[str, list[float]], failed: Mapping[str, str] | None = None) -> None:
        super().__init__(times)
        self.failed = dict(failed or {})

    def median(self, name: str) -> float:
        """The time in the middle."""
        return median(self[name])

    def ratio(self, name: str, other: str) -> float:
        """How many times as long as `other` it took: the median over rounds."""
        return median(own / its for own, its in zip(self[name], self[other], strict=True))

    def cost(self, name: str, base: str) -> float:
        """How much longer than `base` an item took: the median over rounds."""
        return median(own - its for own, its in zip(self[name], self[base], strict=True))


@dataclass(frozen=True)
class Table:
    """Contenders for one job.

    Args:
        name: For the command line.
        title: What the job is.
        items: How many items there are.
        limit: The contender that all others are compared with.
        contenders: In the order of the table.
        check: Raises AssertionError unless what `make` gave does the job for a number of items.
        claims: What the figures say about the targets.
        work: What is timed. Its result is dropped outside the time.
        close: What is done with it afterwards, outside the time.
        took: The seconds that the result of `work` tells of, where it measures itself; otherwise it is timed from here.
        unit: Of the times shown, and how many of them a second has.
        more: Further columns: what each says of a contender by its name.
    """

    name: str
    title: str
    items: int
    limit: str
    contenders: Sequence[Contender]
    check: Callable[[Contender, Any, int], None]
    claims: Callable[[Times], list[Claim]]
    work: Callable[[Any], Any] = exhaust
    close: Callable[[Any], None] = lambda made: None
    took: Callable[[Any], float] | None = None
    unit: tuple[str, float] = field(default=("ns/item", 1e9))
    more: Mapping[str, Callable[[str], str]] = field(default_factory=dict)

    @property
    def present(self) -> list[Contender]:
        """The contenders that are installed."""
        return [contender for contender in self.contenders if find_spec(contender.needs) is not None]

    def count(self, contender: Contender) -> int:
        """How many items it gets."""
        return int(self.items * contender.share)


def measure(table: Table, rounds: int) -> Times:
    """Check every contender, then time them all in each round, in an order that is new each time.

    A peer that fails the check is left out, and its row says so; one of ours ends the measurement.
    """
    failed = {contender.name: text for contender in table.present if (text := _failure(table, contender))}
    present = [contender for contender in table.present if contender.name not in failed]
    times = Times({contender.name: [] for contender in present}, failed)
    rng = random.Random(0)
    for _ in range(rounds):
        for contender in rng.sample(present, len(present)):
            with _made(table, contender) as made:
                times[contender.name].append(_seconds(table, made) / table.count(contender))
            del made
    return times


def _failure(table: Table, contender: Contender) -> str:
    """What is wrong with a peer; nothing, if it does the job."""
    try:
        with _made(table, contender) as made:
            table.check(contender, made, table.count(contender))
    except Exception as error:
        if contender.needs == Contender.needs:
            raise
        return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    return ""


@contextmanager
def _made(table: Table, contender: Contender) -> Iterator[Any]:
    made = contender.make(table.count(contender))
    try:
        yield made
    finally:
        table.close(made)


def _seconds(table: Table, made: Any) -> float:
    """One timing. What lived before is frozen: the garbage collector has only the contender's own objects to look at."""
    gc.collect()
    gc.freeze()
    try:
        start = perf_counter()
        result = table.work(made)
        seconds = perf_counter() - start
    finally:
        gc.unfreeze()
    return seconds if table.took is None else table.took(result)


def report(table: Table, times: Times) -> str:
    """The table as aligned markdown, and a last line with the targets."""
    unit, scale = table.unit
    rows = [["contender", f"median {unit}", "best", "x limit", *(["cost"] if _has_costs(table) else []), *table.more, "note"]]
    rows += [_row(table, contender, times, scale) for contender in table.contenders]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, _line(["-" * width for width in widths], widths))
    claims = "; ".join(map(str, table.claims(times)))
    return "\n".join([f"### {table.name}: {table.title}", "", *lines, "", f"{table.name}: {claims}"])


def _has_costs(table: Table) -> bool:
    return any(contender.base for contender in table.contenders)


def _row(table: Table, contender: Contender, times: Times, scale: float) -> list[str]:
    costs = [""] if _has_costs(table) else []
    name = f"{contender.name} (limit)" if contender.name == table.limit else contender.name
    if contender.name in times.failed:
        return [name, "failed", "", "", *costs, *("" for _ in table.more), times.failed[contender.name]]
    if contender.name not in times:
        return [name, "absent", "", "", *costs, *("" for _ in table.more), f"{contender.needs} is not installed"]
    if contender.base in times:
        costs = [_number(times.cost(contender.name, contender.base) * scale)]
    part = f"{contender.share * 100:.2g}% of the items" if contender.share < 1 else ""
    return [
        name,
        _number(times.median(contender.name) * scale),
        _number(min(times[contender.name]) * scale),
        _ratio(times.ratio(contender.name, table.limit)),
        *costs,
        *(told(contender.name) for told in table.more.values()),
        ", ".join(filter(None, [contender.note, part])),
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def command_line(description: str, tables: Mapping[str, Callable[[ExitStack], Table]], rounds: int) -> None:
    """Measure the tables that are asked for, and print each.

    Args:
        description: What they are about.
        tables: What makes each, by name; what it opens it puts onto the stack, which is closed behind it.
        rounds: How often everyone is measured, unless told otherwise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"times that everyone is measured (default {rounds})")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="NAME", help=f"tables, or how they begin: {', '.join(tables)}"
    )
    parser.add_argument("--part", type=float, default=1.0, help="the part of the items that everyone gets (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every time of every round")
    options = parser.parse_args()
    chosen = [name for name in tables if any(_is_meant(name, only, tables) for only in options.only)]
    if not chosen or options.rounds < 1 or not 0 < options.part <= 1:
        parser.error(f"--rounds is at least 1, --part in (0, 1], --only begins one of {', '.join(tables)}; got {sys.argv[1:]}")
    print(", ".join(f"{name} {found}" for name, found in environment().items()), f"; {options.rounds} rounds", sep="")
    results = {}
    for name in chosen:
        with ExitStack() as resources:
            table = tables[name](resources)
            table = replace(table, items=max(1, int(table.items * options.part)))
            if table.limit not in {contender.name for contender in table.present}:
                print(f"\n{name}: not measured, {table.limit!r} needs what is not installed")
                continue
            results[name] = table, measure(table, options.rounds)
        print(f"\n{report(*results[name])}", flush=True)
        if options.json is not None:  # also before the next one, which may fail
            write_json(options.json, results)


def _is_meant(name: str, only: str, tables: Iterable[str]) -> bool:
    return name == only if only in tables else name.startswith(only)
