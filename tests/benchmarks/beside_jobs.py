"""What is measured beside peers: the jobs, the scripts whose tables they are, and which contender is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["COLUMNS", "GROUPS", "JOBS", "OURS", "SCRIPTS", "Job", "Script", "chosen"]

OURS = "squirrel_torch"

COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        OURS: (OURS,),
        "squirrel-core": ("squirrel-core",),
        "torch DataLoader": ("torch DataLoader", "torch DistributedSampler", "torch StatefulDataLoader"),
        "torch IterDataPipes": ("torch IterDataPipes",),
        "torchdata.nodes": ("torchdata.nodes",),
        "webdataset": ("webdataset",),
        "mosaic streaming": ("mosaic",),
        "litdata": ("litdata",),
        "grain": ("grain",),
        "spdl": ("spdl",),
        "HF datasets": ("HF",),
    }
)
"""Everyone, and how the names of their contenders begin. Of several that do a job, the fastest is shown."""

GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "stream": "In memory",
        "async": "Callbacks elsewhere",
        "hand-over": "Into the training process",
        "shards": "Samples on a disk",
        "training": "Training: resume, two ranks, monitor",
    }
)
"""The parts of the page, and their titles."""


@dataclass(frozen=True)
class Script:
    """A script of tables.

    Args:
        rounds: How often everyone is measured.
        options: Besides, so that all scripts together take half an hour.
        quick: Instead, so that they take three minutes.
        folder: Whether it writes datasets.
    """

    rounds: int
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    folder: bool = False


SCRIPTS: Mapping[str, Script] = MappingProxyType(
    {
        "stream.py": Script(7, quick=("--part", "0.1")),
        "execution.py": Script(5, quick=("--part", "0.1")),
        "loader.py": Script(5, quick=("--part", "0.1")),
        "storage.py": Script(5, ("--images", "2000"), ("--rows", "5000", "--images", "200"), folder=True),
        "resume.py": Script(5, ("--stops", "90", "--rows", "80000"), ("--stops", "90", "--rows", "16000"), folder=True),
        "ddp.py": Script(3, ("--rows", "60000"), ("--rows", "20000"), folder=True),
    }
)


@dataclass(frozen=True)
class Job:
    """A row.

    Args:
        group: Where it is shown.
        name: What it is called.
        script: Where its table is.
        table: The table.
        limit: Contender that all are compared with.
        ours: The contender that is ours.
        ending: Of the names of contenders that count.
        quick: Whether it is measured with --quick.
    """

    group: str
    name: str
    script: str
    table: str
    limit: str
    ours: str = OURS
    ending: str = ""
    quick: bool = True


_HAND = "by hand: counters"
_WATCHED = f"{OURS}.monitor(noop)"
_LARGE = f"{OURS}, buffer=10_000"
_DEFAULT = f"{OURS}, buffer=100 (default)"
_POOL = "Pool.imap(chunksize=1000)"
_THREADS = "ThreadPool.imap(chunksize=1000)"
_FILES = "read() of the same files"
_BLOCKS = "permuted blocks by hand"
_ARROW = "pyarrow by hand"

JOBS: Sequence[Job] = (
    Job("stream", "map, filter, batch of 64", "stream.py", "chain", "plain generators"),
    Job("stream", "shuffle, buffer of 10,000", "stream.py", "shuffle", "numpy permutation of blocks"),
    Job("stream", "iter(DataLoader), a million dicts", "stream.py", "start-0", "plain IterableDataset"),
    Job("stream", "the same, 2 workers", "stream.py", "start-2", "plain IterableDataset"),
    Job("async", "I/O: sleeps, 32 threads", "execution.py", "sleeps", "ideal: all sleeps / 32"),
    Job("async", "cheap, 4 threads, buffer of 10,000", "execution.py", "cheap-threads", _THREADS, _LARGE),
    Job("async", "cheap, 4 threads, default buffer", "execution.py", "cheap-threads", _THREADS, _DEFAULT),
    Job("async", "cheap, 2 processes, buffer of 10,000", "execution.py", "cheap-processes-long", _POOL, _LARGE),
    Job("async", "CPU: 8 ms of numpy, 2 processes", "execution.py", "numpy", "two processes, nothing handed over"),
    Job("async", "hand-over of 602 kB, 2 processes", "execution.py", "arrays", "array.copy() in one process"),
    Job("hand-over", "batches that workers have ready", "loader.py", "hand-over", "torch DataLoader"),
    Job("hand-over", "batches that workers make", "loader.py", "hand-over-made", "torch DataLoader"),
    Job("shards", "write small samples", "storage.py", "writing", _ARROW),
    Job("shards", "read small samples", "storage.py", "small-read", f"{_ARROW}, the same files"),
    Job("shards", "read them shuffled", "storage.py", "small-shuffled", _BLOCKS, f"{OURS}, shuffle(1000)"),
    Job("shards", "write arrays of 100 kB", "storage.py", "medium-writing", _ARROW, quick=False),
    Job("shards", "read arrays of 100 kB", "storage.py", "medium-arrays", _FILES),
    Job("shards", "read bytes of 100 kB", "storage.py", "medium-bytes", _FILES, quick=False),
    Job(
        "shards",
        "read arrays of 100 kB shuffled",
        "storage.py",
        "medium-shuffled",
        _BLOCKS,
        f"{OURS}, shuffle(1000)",
        quick=False,
    ),
    Job("training", "go on at 90 % of an epoch", "resume.py", "resume", "by hand, rows, 90 %", ending=", 90 %"),
    Job("training", "DDP, 2 ranks x 2 workers", "ddp.py", "ddp", "batches ready in memory", quick=False),
    Job("training", "monitor dicts of 1 kB", "stream.py", "monitor-dicts", _HAND, _WATCHED),
    Job("training", "monitor arrays of 1 kB", "stream.py", "monitor-arrays", _HAND, _WATCHED),
)
"""In the order of the table."""


def chosen(only: Sequence[str], *, quick: bool) -> list[Job]:
    """The jobs whose tables or groups begin so; without any, all of them, or those that are quick."""
    if only:
        return [job for job in JOBS if any(_is_meant(job, begin) for begin in only)]
    return [job for job in JOBS if job.quick or not quick]


def _is_meant(job: Job, begin: str) -> bool:
    """As the scripts take it: a name that is a table means that table alone."""
    if begin in {job.table for job in JOBS}:
        return job.table == begin
    return job.table.startswith(begin) or job.group.startswith(begin)
