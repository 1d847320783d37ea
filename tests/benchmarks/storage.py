"""What it costs to keep samples on a disk and to read them: in order, shuffled, at random, in batches, in memory.

Run as ``python tests/benchmarks/storage.py [--rows N] [--images N] [--large] [--folder DIR] [--rounds N] [--only NAME] [--json
FILE]``; see README.md. All files were written just before: they are in the memory of the system, and no disk is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rig import Table, command_line
from storage_jobs import Options
from storage_random import at_random, verify
from storage_read import batches, medium_read, shuffled, small_read
from storage_samples import ARRAYS, BYTES, SMALL
from storage_write import memory, writing

TABLES: dict[str, Callable[[Options, ExitStack], Table]] = {
    "small-read": small_read,
    "small-shuffled": partial(shuffled, SMALL),
    "medium-bytes": partial(medium_read, BYTES),
    "medium-arrays": partial(medium_read, ARRAYS),
    "medium-shuffled": partial(shuffled, ARRAYS),
    "batches": batches,
    "writing": partial(writing, SMALL),
    "medium-writing": partial(writing, ARRAYS),
    "memory": memory,
    "verify-small": partial(verify, SMALL),
    "verify-bytes": partial(verify, BYTES),
    "verify-arrays": partial(verify, ARRAYS),
    "random-small": partial(at_random, SMALL),
    "random-bytes": partial(at_random, BYTES),
    "random-arrays": partial(at_random, ARRAYS),
}


def main() -> None:
    """Take the options that only storage has, and leave the others to the rig."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rows", type=int, default=Options.rows)
    parser.add_argument("--images", type=int, default=Options.images)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--folder", type=Path, default=Options.folder)
    own, sys.argv[1:] = parser.parse_known_args()
    options = Options(own.rows, own.images, own.large, own.folder)
    tables = {name: partial(make, options) for name, make in TABLES.items()}
    description = (
        "What it costs to keep samples on a disk and to read them. Besides what is below: --rows N and --images N, how many "
        f"samples there are (default {Options.rows} small ones and {Options.images} of 100 kB); --large, to measure memory "
        "with 10 GB, which takes 15 GB of disk; --folder DIR, where datasets are written."
    )
    command_line(description, tables, rounds=5)


if __name__ == "__main__":
    main()
