"""What it costs to stop in the middle of an epoch and to go on, and whether what comes then is right.

Run as ``python tests/benchmarks/resume.py [--rows N] [--stops PERCENT ...] [--folder DIR] [--rounds N] [--only NAME]
[--json FILE]``; see README.md.
All files were written just before: they are in the memory of the system, and no disk is measured.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from resume_peers import peers
from resume_ways import (
    BATCH,
    BUFFER,
    BY_COLUMNS,
    BY_HAND,
    SHARD_ROWS,
    STREAMED,
    WORKERS,
    BlockShuffle,
    Data,
    Way,
    by_hand,
    of_columns,
    of_rows,
    ours,
    plain,
)
from rig import Claim, Contender, Table, Times, command_line
from storage_samples import SMALL
from stream import OURS, at_most
from torch.utils.data import default_collate

from squirrel_torch import IterableSource, StreamLoader
from squirrel_torch.storage import ShardStore

STOPS = (10, 50, 90)
"""Where an epoch is stopped, in percent of its batches."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Args:
        rows: How many samples.
        stops: Where an epoch is stopped, in percent of its batches.
        folder: Where samples are written; None for a temporary one.
    """

    rows: int = 200_000
    stops: tuple[int, ...] = STOPS
    folder: Path | None = None


def data_of(options: Options, resources: ExitStack) -> Data:
    """The samples, in files that are removed."""
    folder = resources.enter_context(tempfile.TemporaryDirectory(dir=options.folder, prefix="resume-"))
    return Data(options.rows, Path(folder))


# -- going on -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stopped:
    """An epoch that was stopped: what was saved, how long that took, and the ids before and behind."""

    state: Any
    seconds: float
    before: list[int]
    rest: list[int]


@dataclass(frozen=True)
class Facts:
    """What came of going on: whether it was the rest, how many ids never came, how many came again."""

    exact: bool
    lost: int
    twice: int


def ids_of(batches: Iterable[Any]) -> list[int]:
    """The ids of all samples."""
    return [number for batch in batches for number in batch["id"].tolist()]


def stops_of(loader: Any, rows: int, stops: Sequence[int]) -> dict[int, Stopped]:
    """Go through an epoch, and save where it would be stopped."""
    wanted = {rows // BATCH * stop // 100: stop for stop in stops}
    ids: list[int] = []
    saved: dict[int, tuple[Any, float, int]] = {}
    for number, batch in enumerate(loader, 1):
        ids += batch["id"].tolist()
        if number in wanted:
            begin = perf_counter()
            state = loader.state_dict()
            seconds = perf_counter() - begin
            # A copy: loaders may change what they gave, or what they are given.
            saved[wanted[number]] = pickle.loads(pickle.dumps(state)), seconds, len(ids)
    return {stop: Stopped(state, seconds, ids[:at], ids[at:]) for stop, (state, seconds, at) in saved.items()}


@dataclass
class Job:
    """New objects, a state, and the first batch."""

    way: Way
    stopped: Stopped
    loader: Any = None
    batches: Iterator[Any] = field(default_factory=lambda: iter(()))

    def first(self) -> Any:
        """What is timed."""
        self.loader = self.way.open()
        self.loader.load_state_dict(pickle.loads(pickle.dumps(self.stopped.state)))
        self.batches = iter(self.loader)
        return next(self.batches)

    def close(self) -> None:
        """Let go of all, workers too."""
        self.loader = None
        self.batches = iter(())


def at(way: str, stop: int) -> str:
    """The name of a contender."""
    return f"{way}, {stop} %"


class Resumes:
    """What came of stopping and going on.

    Args:
        rows: How many samples there are.
        stops: Where an epoch is stopped, in percent.
    """

    def __init__(self, rows: int, stops: Sequence[int]) -> None:
        self._rows = rows
        self._stops = stops
        self._epochs: dict[str, dict[int, Stopped]] = {}
        self._facts: dict[str, Facts] = {}

    def make(self, way: Way, stop: int, _: int) -> Job:
        """What is to be done for a way and a stop."""
        if way.name not in self._epochs:
            self._epochs[way.name] = stops_of(way.open(), self._rows, self._stops)
        return Job(way, self._epochs[way.name][stop])

    def check(self, contender: Contender, job: Job, _: int) -> None:
        """Go on to the end of the epoch."""
        stopped, promises = job.stopped, job.way.promises
        assert stopped.rest != sorted(stopped.rest), contender.name
        assert not promises or sorted(stopped.before + stopped.rest) == list(range(self._rows)), contender.name
        rest = [*ids_of([job.first()]), *ids_of(job.batches)]
        seen = Counter(stopped.before + rest)
        twice = sum(times - 1 for times in seen.values())
        facts = self._facts[contender.name] = Facts(rest == stopped.rest, self._rows - len(seen), twice)
        assert not promises or facts == Facts(exact=True, lost=0, twice=0), (contender.name, facts)

    def columns(self) -> dict[str, Callable[[str], str]]:
        """What the table tells of it."""

        def stopped(name: str) -> Stopped:
            way, stop = name.removesuffix(" %").rsplit(", ", 1)
            return self._epochs[way][int(stop)]

        return {
            "exact": lambda name: "yes" if self._facts[name].exact else "NO",
            "lost": lambda name: str(self._facts[name].lost),
            "twice": lambda name: str(self._facts[name].twice),
            "state, bytes": lambda name: size_of_state(stopped(name).state),
            "state_dict, us": lambda name: f"{stopped(name).seconds * 1e6:,.0f}",
        }


def size_of_state(state: Any) -> str:
    """Its bytes as JSON, or pickled if it is no JSON."""
    try:
        return f"{len(state if isinstance(state, bytes) else json.dumps(state)):,}"
    except TypeError:
        return f"{len(pickle.dumps(state)):,} pickled"


def resume(workers: bool, options: Options, resources: ExitStack) -> Table:
    """From a state to the first batch.

    Args:
        workers: Those that have some, or those that have none.
        options: How many samples.
        resources: Removes the files.
    """
    data, resumes = data_of(options, resources), Resumes(options.rows, options.stops)
    others = [way for way in [*ours(data), *peers(data)] if way.name.endswith(WORKERS) == workers]
    ways = [*by_hand(data), *others]

    def claims(times: Times) -> list[Claim]:
        if not {10, 90}.issubset(options.stops):
            return []
        own = [way.name for way in others if way.name.startswith(OURS)]
        found = [at_most(f"{name}: 90 % {{:.2f}} x 10 %", times.ratio(at(name, 90), at(name, 10)), 1.5) for name in own]
        for name in own[:0] if workers else own[:3]:
            found.append(at_most(f"{name}: {{:.2f}} x {BY_HAND} at 90 %", times.ratio(at(name, 90), at(BY_HAND, 90)), 2))
            found.append(Claim(f"{times.ratio(at(name, 90), at(BY_COLUMNS, 90)):.2f} x {BY_COLUMNS}"))
        return found

    return Table(
        "workers" if workers else "resume",
        f"{options.rows:,} shuffled samples {{id, int32[128], label}}: new objects, a state loaded, the first batch of {BATCH}",
        1,
        at(BY_HAND, options.stops[len(options.stops) // 2]),
        [
            Contender(at(way.name, stop), partial(resumes.make, way, stop), needs=way.needs, note=way.note)
            for way in ways
            for stop in options.stops
        ],
        resumes.check,
        claims,
        work=Job.first,
        close=Job.close,
        unit=("ms", 1e3),
        more=resumes.columns(),
    )


# -- saving ---------------------------------------------------------------------------------------------------------------

CALLS = 20


@dataclass
class Going:
    """An epoch that goes on."""

    loader: Any
    batches: Iterator[Any]

    def save(self) -> list[Any]:
        """What is timed."""
        return [self.loader.state_dict() for _ in range(CALLS)]


def state(options: Options, resources: ExitStack) -> Table:
    """What a state costs."""
    data = data_of(options, resources)
    ways = [*by_hand(data), *ours(data), *peers(data)]

    def make(way: Way, _: int) -> Going:
        loader = way.open()
        batches = iter(loader)
        for _ in range(20):
            next(batches)
        return Going(loader, batches)

    def check(contender: Contender, going: Going, n: int) -> None:
        assert len({pickle.dumps(one) for one in going.save()}) == 1, contender.name

    def claims(times: Times) -> list[Claim]:
        targets = [(OURS, 50), (f"{OURS}{WORKERS}", 50), (STREAMED, 1000), (f"{STREAMED}{WORKERS}", 1000)]
        return [at_most(f"{name} {{:.1f}} us", times.median(name) * 1e6, target) for name, target in targets]

    return Table(
        "state",
        "state_dict() in the middle of an epoch",
        CALLS,
        BY_HAND,
        [Contender(way.name, partial(make, way), needs=way.needs, note=way.note) for way in ways],
        check,
        claims,
        work=Going.save,
        unit=("us/call", 1e6),
    )


# -- all of an epoch ------------------------------------------------------------------------------------------------------


def collated(samples: list[Any]) -> Any:
    """What `default_collate` makes; under another name no columns are used."""
    return default_collate(samples)


def check_batches(contender: Contender, batches: Iterable[Any], n: int) -> None:
    """Every sample once, whole, and hardly any at its old place."""
    ids: list[int] = []
    for batch in batches:
        numbers = batch["id"].tolist()
        ids += numbers
        for place, number in enumerate(numbers):
            assert SMALL.same({name: column[place] for name, column in batch.items()}, number), (contender.name, number)
    assert sorted(ids) == list(range(n)), contender.name
    assert sum(place == number for place, number in enumerate(ids)) < n / 50, contender.name


def order(options: Options, resources: ExitStack) -> Table:
    """Shuffled batches without workers."""
    data = data_of(options, resources)
    rows, plainly = f"{OURS}, rows and default_collate", "the same, no loader"

    def by_rows() -> Any:
        return IterableSource(ShardStore(data.own)).shuffle(BUFFER).batched(BATCH, collated)

    def claims(times: Times) -> list[Claim]:
        return [Claim(f"{OURS} {times.ratio(OURS, other):.2f} x {other}") for other in (BY_COLUMNS, BY_HAND, rows)]

    return Table(
        "order",
        f"{options.rows:,} shuffled samples {{id, int32[128], label}} in batches of {BATCH}, without workers",
        options.rows,
        BY_COLUMNS,
        [
            Contender(BY_COLUMNS, lambda n: BlockShuffle(data.shards, of_columns), note="verifies nothing"),
            Contender(BY_HAND, lambda n: BlockShuffle(data.shards, of_rows), note="verifies nothing"),
            Contender(OURS, lambda n: StreamLoader(plain(ShardStore(data.own)))),
            Contender(f"{OURS}, no loader", lambda n: plain(ShardStore(data.own))),
            Contender(rows, lambda n: StreamLoader(by_rows()), note="collation_fn is another function"),
            Contender(plainly, lambda n: by_rows()),
        ],
        check_batches,
        claims,
        unit=("us/sample", 1e6),
    )


# -- command line ---------------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[Options, ExitStack], Table]] = {
    "workers": partial(resume, True),
    "resume": partial(resume, False),
    "state": state,
    "order": order,
}


def main() -> None:
    """Take the options that only this one has, and leave the others to the rig."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rows", type=int, default=Options.rows)
    parser.add_argument("--folder", type=Path, default=Options.folder)
    parser.add_argument("--stops", type=int, nargs="+", default=STOPS, metavar="PERCENT")
    own, sys.argv[1:] = parser.parse_known_args()
    if not all(0 < stop < 100 for stop in own.stops):
        parser.error(f"--stops are percents between 0 and 100, got {own.stops}")
    if own.rows < 1 or own.rows % (2 * SHARD_ROWS):
        parser.error(f"--rows must be a multiple of {2 * SHARD_ROWS}, got {own.rows}")
    options = Options(own.rows, tuple(own.stops), own.folder)
    tables = {name: partial(make, options) for name, make in TABLES.items()}
    description = (
        "What it costs to stop in the middle of an epoch and to go on. Besides what is below: --rows N, how many samples there "
        f"are (default {Options.rows}); --stops PERCENT ..., where an epoch is stopped (default 10 50 90); --folder DIR, where "
        "samples are written."
    )
    command_line(description, tables, rounds=5)


if __name__ == "__main__":
    main()
