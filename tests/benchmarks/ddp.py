"""Two ranks that train together, each with two workers: how much of their time goes into getting batches.

Run as ``python tests/benchmarks/ddp.py [--rows N] [--folder DIR] [--rounds N] [--json FILE]``; see README.md.
Each measurement is a launch of torchrun. All files were written just before: they are in the memory of the system.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from ddp_files import PART, Files, Way
from ddp_peers import PEERS
from ddp_rank import WARM_UP, Order, Report
from ddp_ways import BY_COLUMNS, BY_HAND, LIMIT, MADE, WAYS
from resume_ways import BATCH, SHARD_ROWS
from rig import Claim, Contender, Table, Times, command_line
from stream import OURS, at_most

RANKS = 2
SAMPLES = RANKS * BATCH
"""Of one step."""

LEAST = 20_000
PATIENCE = 300.0
"""Seconds after which a launch has failed."""

_RANK = Path(__file__).with_name("ddp_rank.py")


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Args:
        rows: How many samples.
        folder: Where they are written; None for a temporary one.
    """

    rows: int = 120_000
    folder: Path | None = None


@dataclass(frozen=True)
class Launch:
    """A job for torchrun.

    Args:
        files: What it reads.
        way: How.
        steps: How many are measured; 0 is an epoch without training.
    """

    files: Files
    way: Way
    steps: int

    def run(self) -> list[Report]:
        """What each rank has seen.

        Raises:
            RuntimeError: If one of them fails; with what it printed.
        """
        with tempfile.TemporaryDirectory(prefix="ddp-") as made:
            reports, logs = Path(made) / "reports", Path(made) / "logs"
            reports.mkdir()
            order = Order(self.way.name, self.files.rows, str(self.files.path), str(reports), self.steps)
            options = ["--standalone", f"--nproc-per-node={RANKS}", f"--log-dir={logs}"]
            done = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", *options, _RANK, str(order)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{self.way.name} failed:\n{done.stdout}{done.stderr}")
            return [Report(**json.loads((reports / str(rank)).read_text())) for rank in range(RANKS)]


@dataclass
class Launches:
    """All launches, and what came of them.

    Args:
        files: What they read.
    """

    files: Files
    epochs: dict[str, str] = field(default_factory=dict)
    reports: dict[str, list[list[Report]]] = field(default_factory=lambda: defaultdict(list))

    def make(self, way: Way, n: int) -> Launch:
        """One that measures."""
        way.files(self.files)
        return Launch(self.files, way, round(n / SAMPLES))

    def check(self, contender: Contender, launch: Launch, n: int) -> None:
        """All samples of an epoch, whole, and not in the order in which they lie."""
        rows, way = self.files.rows, launch.way
        if way.name == LIMIT:
            return
        parts = [report.ids for report in Launch(self.files, way, 0).run()]
        ids = [number for part in parts for number in part]
        self.epochs[way.name] = f"{len(set(ids)):,}/{rows:,}, {len(ids) - len(set(ids)):,} twice"
        if way.exact:
            assert sorted(ids) == list(range(rows)), (way.name, self.epochs[way.name])
        assert sum(after == before + 1 for before, after in pairwise(ids)) < rows / 20, way.name

    def work(self, launch: Launch) -> list[Report]:
        """One measurement."""
        found = launch.run()
        self.reports[launch.way.name].append(found)
        return found

    def columns(self) -> dict[str, Callable[[str], str]]:
        """What the table shows besides."""
        return {
            "samples/s": lambda name: f"{median(SAMPLES * ranks[0].steps / took(ranks) for ranks in self.reports[name]):,.0f}",
            "CPU, us/sample": lambda name: f"{self.cpu(name) * 1e6:.1f}",
            "wait share": lambda name: f"{self.waited(name):.3f}",
            "first batch, ms": lambda name: f"{self._median(name, lambda one: one.first) * 1e3:,.0f}",
            "epoch": lambda name: self.epochs.get(name, ""),
        }

    def waited(self, name: str) -> float:
        """Which part of the time went into the loader."""
        return self._median(name, lambda one: one.waited / one.seconds)

    def cpu(self, name: str) -> float:
        """Seconds of processors for a sample. Others who use the machine change it less than they change the time."""
        return self._median(name, lambda one: one.cpu / one.steps / BATCH)

    def _median(self, name: str, of: Callable[[Report], float]) -> float:
        """The median over launches of the mean over ranks."""
        return median(mean(map(of, ranks)) for ranks in self.reports[name])


def took(ranks: list[Report]) -> float:
    """Seconds until the last of them was through."""
    return max(rank.seconds for rank in ranks)


def ddp(options: Options, resources: ExitStack) -> Table:
    """Ranks that train."""
    folder = resources.enter_context(tempfile.TemporaryDirectory(dir=options.folder, prefix="ddp-data-"))
    launches = Launches(Files(options.rows, Path(folder)))

    def claims(times: Times) -> list[Claim]:
        found = []
        for name in (OURS, MADE):
            best = min((peer.name for peer in PEERS if peer.name in times), key=times.median)
            found += [
                at_least(f"{name} {{:.2f}} x the samples/s of {best}", times.ratio(best, name), 3),
                at_least(f"{name} {{:.2f}} x those of the limit", times.ratio(LIMIT, name), 0.5),
                at_most(f"{name} waits {{:.3f}} of the time", launches.waited(name), 0.15),
                Claim(f"{name} {launches.cpu(best) / launches.cpu(name):.2f} x less CPU than {best}"),
                Claim(f"{name} {launches.cpu(name) / launches.cpu(LIMIT):.2f} x the CPU of the limit"),
                *(
                    Claim(f"{name} {times.ratio(other, name):.2f} x {other}")
                    for other in (BY_HAND, BY_COLUMNS, PEERS[0].name)
                    if other in times
                ),
            ]
        return found

    # Not all of the epoch: its end is not the same for all.
    steps = options.rows // SAMPLES - WARM_UP - 10
    return Table(
        "ddp",
        f"{RANKS} ranks x 2 workers, gloo, linear model: batches of {BATCH} of {options.rows:,} {{id, int32[128], label}}",
        steps * SAMPLES,
        LIMIT,
        [Contender(way.name, partial(launches.make, way), way.share, way.needs, note=way.note) for way in WAYS.values()],
        launches.check,
        claims,
        work=launches.work,
        took=took,
        unit=("us/sample", 1e6),
        more=launches.columns(),
    )


def at_least(text: str, figure: float, target: float) -> Claim:
    """The claim that `figure` reaches `target`; `text` has a place for the figure."""
    return Claim(f"{text.format(figure)} (target at least {target:g})", figure >= target)


def main() -> None:
    """Take the options that only this one has, and leave the others to the rig."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rows", type=int, default=Options.rows)
    parser.add_argument("--folder", type=Path, default=Options.folder)
    own, sys.argv[1:] = parser.parse_known_args()
    if own.rows < LEAST or own.rows % SHARD_ROWS or own.rows % (4 * PART):
        parser.error(f"--rows must be a multiple of {4 * PART} and at least {LEAST}, got {own.rows}")
    description = (
        "How long two ranks that train together wait for their batches. Besides what is below: --rows N, how many samples "
        f"there are (default {Options.rows}); --folder DIR, where they are written."
    )
    command_line(description, {"ddp": partial(ddp, Options(own.rows, own.folder))}, rounds=5)


if __name__ == "__main__":
    main()
