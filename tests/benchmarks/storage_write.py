"""Writing samples to a disk, and the memory that writing and reading take."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from rig import Claim, Contender, Table, Times
from storage_jobs import MEDIUM_TITLE, OWN, SMALL_TITLE, Datasets, Options, at_least
from storage_peers import (
    ARROW,
    CORE,
    GRAIN,
    HF,
    LITDATA,
    MDS,
    WEBDATASET,
    Peer,
    arrow_batch,
)
from storage_samples import SMALL, Kind
from stream import OURS, at_most

from squirrel_torch import IterableSource
from squirrel_torch.storage import ShardStore

# -- writing --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Samples to be written.

    Args:
        peer: How.
        samples: They are in memory.
        kind: What they are.
        folder: An empty one.
    """

    peer: Peer
    samples: list[dict[str, Any]]
    kind: Kind
    folder: Path

    def write(self) -> None:
        """What is timed."""
        self.peer.write(self.samples, self.kind, self.folder)

    def remove(self) -> None:
        """What is done afterwards."""
        shutil.rmtree(self.folder)


def sink(samples: list[Any], kind: Kind, folder: Path, **options: Any) -> None:
    """Ours, with a bar that nobody sees."""
    with redirect_stderr(StringIO()):
        IterableSource(samples).sink(ShardStore(folder), progress=True, **options)


def arrow_safe(samples: list[Any], kind: Kind, folder: Path) -> None:
    """Arrow by hand, with what our shards have besides: two checksums, and all bytes on the disk."""
    import os

    import xxhash

    whole, parts = xxhash.xxh3_128(), []
    out, rows = pa.BufferOutputStream(), 2000 if kind is SMALL else 10
    with (folder / "0.arrow").open("wb") as file:
        with pa.ipc.new_file(out, arrow_batch(samples[:1], kind).schema) as writer:
            for start in range(0, len(samples), rows):
                writer.write_batch(arrow_batch(samples[start : start + rows], kind))
        data = out.getvalue()
        whole.update(data)
        parts.append(xxhash.xxh3_64(data).digest())
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _hf_saved(samples: list[Any], kind: Kind, folder: Path) -> None:
    from datasets import Dataset

    with redirect_stderr(StringIO()):
        Dataset.from_list(samples).save_to_disk(folder)


def _hf_loaded(kind: Kind, folder: Path) -> Any:
    from datasets import load_from_disk

    return load_from_disk(folder).with_format("numpy")


def writing(kind: Kind, options: Options, resources: ExitStack) -> Table:
    """Samples into a new dataset; small ones, or large ones."""
    data, limit, safe, one = Datasets(options, resources), ARROW.name, "pyarrow by hand, checksums, fsync", f"{OURS}, 1 worker"
    own = Peer(OURS, OWN.needs, sink, OWN.read)
    items = options.rows if kind is SMALL else options.images
    samples = kind.samples(items)

    def writer(peer: Peer, name: str = "", share: float = 1.0, note: str = "") -> Contender:
        def make(n: int) -> Job:
            return Job(peer, samples[:n], kind, data.empty())

        return Contender(name or peer.name, make, share, peer.needs, note=note or peer.note)

    def check(contender: Contender, job: Job, n: int) -> None:
        job.write()
        kind.check(job.peer.read(kind, job.folder), range(n), contender.name)

    def claims(times: Times) -> list[Claim]:
        targets = [(MDS.name, 5), (GRAIN.name, 1)] if kind is SMALL else []
        found = [at_least(f"{{:.2f}} x {name}", times.ratio(name, OURS), target) for name, target in targets if name in times]
        return [*found, Claim(f"{times.ratio(safe, OURS):.2f} x {safe}")]

    return Table(
        "writing" if kind is SMALL else "medium-writing",
        f"{items:,} {SMALL_TITLE if kind is SMALL else MEDIUM_TITLE + ' of uint8'} into a new dataset",
        items,
        limit,
        [
            writer(ARROW, note="no fsync, as all peers"),
            writer(Peer(safe, ARROW.needs, arrow_safe, ARROW.read), note="one after the other"),
            writer(own, note="sink(progress=True): checksums, fsync"),
            writer(Peer(one, OWN.needs, partial(sink, max_workers=1), OWN.read)),
            writer(GRAIN, note="ArrayRecordWriter, msgpack"),
            writer(MDS, share=0.4),
            writer(Peer(HF.name, HF.needs, _hf_saved, _hf_loaded), share=0.2, note="from_list, save_to_disk"),
            writer(LITDATA, share=0.1, note="optimize(num_workers=1), its start is in the time"),
            writer(WEBDATASET, share=0.1),
            writer(CORE, share=0.1),
        ],
        check,
        claims,
        work=Job.write,
        close=Job.remove,
        unit=("us/sample", 1e6),
    )


# -- memory ---------------------------------------------------------------------------------------------------------------


def memory(options: Options, resources: ExitStack) -> Table:
    """Memory of its own that a process takes to read a dataset."""
    rows = 100_000 if options.large else 5_000
    data = Datasets(options, resources).folder
    limit, peaks = "raw read()", dict[str, float]()

    def run(job: str, compression: str, name: str) -> None:
        script = str(Path(__file__).with_name("storage_memory.py"))
        command = [sys.executable, script, job, str(data / f"memory-{compression}"), str(rows)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[name] = max(peaks.get(name, 0), json.loads(found.stdout.splitlines()[-1])["peak"])

    run("write", "none", "writing")
    run("write-zstd", "zstd", "writing, zstd")

    def reader(name: str, job: str, compression: str = "none", note: str = "") -> Contender:
        return Contender(name, lambda n: partial(run, job, compression, name), note=note)

    def claims(times: Times) -> list[Claim]:
        return [
            Claim(f"{name} {peak:.0f} MB (no target)")
            if name.startswith("writing")
            else at_most(f"{name} {{:.0f}} MB", peak, 300)
            for name, peak in peaks.items()
        ]

    return Table(
        "memory",
        f"a process reads {rows:,} samples of 100 kB; times with its start; the peaks of anonymous memory are below",
        rows,
        limit,
        [
            reader(limit, "raw"),
            reader("in order", "read"),
            reader("in order, zstd", "read", "zstd"),
            reader("select", "select", note="10,000 of them at most, at random"),
            reader("select, zstd", "select", "zstd", "10,000 of them at most, at random"),
            reader("row by row", "row", note="10,000 of them at most, at random"),
        ],
        lambda contender, job, n: job(),  # which checks the count and the sum of the numbers
        claims,
        work=lambda job: job(),
        unit=("us/sample", 1e6),
    )
