"""A process of its own that reads a dataset, or writes one, and says how much memory of its own that took.

Run by storage.py: ``python storage_memory.py JOB FOLDER ROWS``; the last line of its output is JSON. Pages of mapped files are
not counted: the system takes them back whenever it likes.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from storage_samples import ARRAYS, BYTES

from squirrel_torch import IterableSource
from squirrel_torch.storage import ShardStore

EVERY = 0.005
CHOSEN = 10_000


def anonymous_megabytes() -> float:
    """Memory of this process that is no page of a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("this system does not say")


class Peak:
    """The most memory that there was, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.before = self.most = anonymous_megabytes()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._end.wait(EVERY):
            self.most = max(self.most, anonymous_megabytes())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def soft(i: int) -> dict[str, Any]:
    """A sample that can be compressed."""
    sample = ARRAYS.make(i)
    return {**sample, "image": sample["image"] & 15}


def written(make: Callable[[int], dict[str, Any]], folder: str, rows: int, compression: str | None) -> int:
    """Write a dataset, unless it is there."""
    store = ShardStore(folder, compression=compression)
    if len(store) != rows:
        return IterableSource(map(make, range(rows))).sink(store).rows
    return rows


def raw(folder: str) -> Iterator[int]:
    """The bytes of the files, read as plainly as Python can."""
    for path in Path(folder, "shards").iterdir():
        with path.open("rb", buffering=0) as file:
            while size := len(file.read(1 << 20)):
                yield size


def touched(samples: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """How many there are, and the sum of their numbers; a byte of each page is looked at."""
    count = numbers = 0
    for sample in samples:
        np.frombuffer(sample["image"], np.uint8)[::4096].max()
        count += 1
        numbers += sample["meta"]["id"]
    return count, numbers


def read(folder: str, rows: int) -> None:
    """All rows, in order."""
    assert touched(IterableSource(ShardStore(folder))) == (rows, rows * (rows - 1) // 2)


def select(folder: str, rows: int) -> None:
    """Some of the rows, at random."""
    chosen = np.random.default_rng(0).permutation(rows)[:CHOSEN]
    assert touched(IterableSource(ShardStore(folder).select(chosen))) == (len(chosen), chosen.sum())


def at_random(folder: str, rows: int) -> None:
    """The same, one by one."""
    store, chosen = ShardStore(folder), np.random.default_rng(0).permutation(rows)[:CHOSEN]
    assert touched(store.row(int(row)) for row in chosen) == (len(chosen), chosen.sum())


JOBS: dict[str, Callable[[str, int], object]] = {
    "write": lambda folder, rows: written(BYTES.make, folder, rows, None),
    "write-zstd": lambda folder, rows: written(soft, folder, rows, "zstd"),
    "raw": lambda folder, rows: sum(raw(folder)),
    "read": read,
    "select": select,
    "row": at_random,
}


if __name__ == "__main__":
    job, folder, rows = JOBS[sys.argv[1]], sys.argv[2], int(sys.argv[3])
    start = perf_counter()
    with Peak() as peak:
        job(folder, rows)
    print(json.dumps({"peak": peak.most - peak.before, "seconds": perf_counter() - start}))
