"""Runs the scripts whose tables compare with peers, each in a process of its own, and collects what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from beside_jobs import SCRIPTS, Job

__all__ = ["Results", "Settings", "measure"]

FOLDER = Path(__file__).parent
PATIENCE = 3600.0
"""Seconds after which a script has failed."""


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Args:
        rounds: How often everyone is measured; None for what each script has.
        quick: Whether few rounds of few items are enough.
        folder: Where datasets are written; None for a temporary one.
    """

    rounds: int | None = None
    quick: bool = False
    folder: Path | None = None

    def rounds_of(self, script: str) -> int:
        """How often everyone is measured there."""
        return self.rounds or (1 if self.quick else SCRIPTS[script].rounds)

    def options(self, script: str, tables: Sequence[str]) -> list[str]:
        """What the script is told."""
        told = SCRIPTS[script]
        options = [*(told.quick if self.quick else told.options), "--rounds", str(self.rounds_of(script)), "--only", *tables]
        return [*options, "--folder", str(self.folder)] if told.folder and self.folder else options


@dataclass
class Results:
    """What was measured.

    Args:
        environment: Where, when, and with which versions.
        rounds: How often, by script.
        seconds: How long each script took.
        tables: What `write_json` has of each table.
        broken: The scripts that ended with an error, and their last lines.
        quick: Whether some of it are few rounds of few items.
    """

    environment: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    quick: bool = False

    @classmethod
    def read(cls, path: Path) -> Results:
        """Those of an earlier run."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Keep them."""
        path.write_text(json.dumps(vars(self), indent=1) + "\n")


def measure(jobs: Sequence[Job], settings: Settings, results: Results, keep: Path | None = None) -> None:
    """Add what the scripts say about some jobs; after each of them, all there is goes into the file `keep`."""
    results.quick |= settings.quick
    for script in SCRIPTS:
        tables = list(dict.fromkeys(job.table for job in jobs if job.script == script))
        if tables:
            _run(script, tables, settings, results)
            if keep is not None:
                results.write(keep)


def _run(script: str, tables: list[str], settings: Settings, results: Results) -> None:
    print(f"{script}: {', '.join(tables)}", file=sys.stderr, flush=True)
    begin = perf_counter()
    with tempfile.TemporaryDirectory(prefix="beside-") as made:
        path, log = Path(made) / "tables.json", Path(made) / "log"
        command = [sys.executable, str(FOLDER / script), *settings.options(script, tables), "--json", str(path)]
        with log.open("w") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)
        results.broken.pop(script, None)
        if done.returncode:
            results.broken[script] = "\n".join(log.read_text().splitlines()[-15:])
        if path.exists():
            found = json.loads(path.read_text())
            results.environment = found["environment"]
            results.tables |= found["tables"]
    results.rounds[script] = settings.rounds_of(script)
    results.seconds[script] = round(perf_counter() - begin, 1)
    print(f"    {results.seconds[script]:.0f} s", file=sys.stderr, flush=True)
