"""What it costs to keep samples on a disk and to read them: in order, shuffled, at random, in batches, in memory.

Run as ``python tests/benchmarks/storage.py [--rows N] [--images N] [--large] [--folder DIR] [--rounds N] [--only NAME] [--json
FILE]``; see README.md. All files were written just before: they are in the memory of the system, and no disk is measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rig import Claim, Contender, Table, Times, command_line
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
    arrow_lists,
    arrow_rows,
    hf_dataset,
    open_batches,
)
from storage_samples import ARRAYS, BYTES, SMALL, TOKENS, Kind
from stream import OURS, at_most
from torch.utils.data import default_collate

from squirrel_torch import IterableSource
from squirrel_torch.storage import ShardStore

BATCH = 64
BUFFER = 1000


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Args:
        rows: How many small samples.
        images: How many samples of 100 kB.
        large: Whether memory is measured with 10 GB.
        folder: Where datasets are written; None for a temporary one.
    """

    rows: int = 50_000
    images: int = 4_000
    large: bool = False
    folder: Path | None = None


def at_least(text: str, figure: float, target: float) -> Claim:
    """The claim that `figure` is `target` or more; `text` has a place for the figure."""
    return Claim(f"{text.format(figure)} (target at least {target:g})", figure >= target)


# -- datasets -------------------------------------------------------------------------------------------------------------

OWN = Peer(
    OURS,
    "squirrel_torch",
    lambda samples, kind, folder: IterableSource(samples).sink(ShardStore(folder)),
    lambda kind, folder: IterableSource(ShardStore(folder)),
)


class Datasets:
    """Datasets in one folder, each written when it is first asked for.

    Args:
        options: Where.
        resources: Removes them.
    """

    def __init__(self, options: Options, resources: ExitStack) -> None:
        self.folder = Path(resources.enter_context(tempfile.TemporaryDirectory(dir=options.folder, prefix="storage-")))

    def of(self, peer: Peer, kind: Kind, n: int) -> Path:
        """The folder of a dataset."""
        folder = self.folder / f"{peer.needs}-{kind.name}-{n}"
        if not folder.exists():
            folder.mkdir()
            peer.write(kind.samples(n), kind, folder)
        return folder

    def own(self, kind: Kind, n: int, **options: Any) -> ShardStore:
        """Our dataset, as a store that was not read yet."""
        return ShardStore(self.of(OWN, kind, n), **options)

    def shards(self, kind: Kind, n: int) -> list[Path]:
        """The files of our dataset, in order."""
        folder = self.of(OWN, kind, n)
        return [folder / "shards" / shard.name for shard in ShardStore(folder).manifest.shards]

    def empty(self) -> Path:
        """A folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def reader(self, peer: Peer, kind: Kind, share: float = 1.0) -> Contender:
        """A peer that reads in order."""
        return Contender(peer.name, lambda n: peer.read(kind, self.of(peer, kind, n)), share, peer.needs, note=peer.note)

    def shuffler(self, peer: Peer, kind: Kind, share: float = 1.0) -> Contender:
        """A peer that reads in random order."""
        assert peer.shuffle is not None
        return Contender(peer.name, lambda n: peer.shuffle(kind, self.of(peer, kind, n)), share, peer.needs, note=peer.note)


def check_in_order(kind: Kind) -> Callable[[Contender, Iterable[Any], int], None]:
    """Every sample, in order."""

    def check(contender: Contender, stream: Iterable[Any], n: int) -> None:
        kind.check(stream, range(n), contender.name)

    return check


def check_shuffled(kind: Kind) -> Callable[[Contender, Iterable[Any], int], None]:
    """Every sample once, and hardly any at its old place."""

    def check(contender: Contender, stream: Iterable[Any], n: int) -> None:
        samples = list(stream)
        numbers = [int(kind.number(sample)) for sample in samples]
        kind.check(samples, numbers, contender.name)
        assert sorted(numbers) == list(range(n)), contender.name
        assert sum(place == number for place, number in enumerate(numbers)) < n / 50, contender.name

    return check


# -- small samples --------------------------------------------------------------------------------------------------------

NEVER = f"{OURS}, verify='never'"
SMALL_TITLE = f"samples {{id, int32[{TOKENS}], label}}"


def small_read(options: Options, resources: ExitStack) -> Table:
    """In order."""
    data = Datasets(options, resources)
    limit, lists = "pyarrow by hand, the same files", "the same, a list for each block"

    def claims(times: Times) -> list[Claim]:
        return [
            at_least(f"{OURS} {{:.2f}} x the throughput of {limit}", times.ratio(limit, OURS), 0.85),
            Claim(f"with verify='never' {times.ratio(limit, NEVER):.2f} x"),
            Claim(f"{OURS} {times.ratio(lists, OURS):.2f} x {lists}, with verify='never' {times.ratio(lists, NEVER):.2f} x"),
        ]

    return Table(
        "small-read",
        f"{options.rows:,} {SMALL_TITLE}, in order",
        options.rows,
        limit,
        [
            Contender(limit, lambda n: arrow_rows(SMALL, open_batches(data.shards(SMALL, n))), note="verifies nothing"),
            Contender(lists, lambda n: arrow_lists(open_batches(data.shards(SMALL, n))), note="verifies nothing"),
            Contender(OURS, lambda n: IterableSource(data.own(SMALL, n)), note="checksums of all bytes are in the time"),
            Contender(NEVER, lambda n: IterableSource(data.own(SMALL, n, verify="never"))),
            data.reader(CORE, SMALL),
            data.reader(LITDATA, SMALL, 0.2),
            data.reader(GRAIN, SMALL, 0.2),
            data.reader(MDS, SMALL, 0.1),
            data.reader(HF, SMALL, 0.1),
            data.reader(WEBDATASET, SMALL, 0.1),
        ],
        check_in_order(SMALL),
        claims,
        unit=("us/sample", 1e6),
    )


def small_shuffled(options: Options, resources: ExitStack) -> Table:
    """In random order."""
    data = Datasets(options, resources)
    limit, select, fastest = "permuted blocks by hand", f"{OURS}, select(permutation)", f"{OURS}, shuffle({BUFFER})"

    def permuted(n: int) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        for batch in open_batches(data.shards(SMALL, n)):
            rows = list(arrow_rows(SMALL, [batch]))
            for place in rng.permutation(len(rows)).tolist():
                yield rows[place]

    def claims(times: Times) -> list[Claim]:
        if CORE.name not in times:
            return []
        return [
            at_least(f"{name} {{:.2f}} x the throughput of {CORE.name}", times.ratio(CORE.name, name), 3)
            for name in (fastest, select)
        ]

    return Table(
        "small-shuffled",
        f"{options.rows:,} {SMALL_TITLE}, in random order",
        options.rows,
        limit,
        [
            Contender(limit, permuted, note="each block of 1,900 by itself: a weaker shuffle"),
            Contender(fastest, lambda n: IterableSource(data.own(SMALL, n)).shuffle(BUFFER)),
            Contender(select, lambda n: IterableSource(data.own(SMALL, n).select(permutation(n))), note="any permutation"),
            data.shuffler(CORE, SMALL),
            data.shuffler(GRAIN, SMALL, 0.1),
            data.shuffler(LITDATA, SMALL, 0.1),
            data.shuffler(MDS, SMALL, 0.1),
            data.shuffler(HF, SMALL, 0.05),
            data.shuffler(WEBDATASET, SMALL, 0.1),
        ],
        check_shuffled(SMALL),
        claims,
        unit=("us/sample", 1e6),
    )


def permutation(n: int) -> np.ndarray[Any, Any]:
    """Numbers of rows, in random order."""
    return np.random.default_rng(1).permutation(n)


# -- samples of 100 kB ----------------------------------------------------------------------------------------------------


def raw_read(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The files, whole, by `read()`."""
    for path in paths:
        yield {"image": np.frombuffer(path.read_bytes(), np.uint8)}


def raw_read_into(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The files, through one buffer of 1 MB."""
    buffer = np.empty(1 << 20, np.uint8)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):  # type: ignore[arg-type]  # typeshed knows no arrays as buffers
                yield {"image": buffer[:size]}


def touch(stream: Iterable[dict[str, Any]]) -> None:
    """Take every sample, and look at one byte of each page of its array: a view that nobody reads has not been read."""
    for sample in stream:
        sample["image"][::4096].max()


def medium_read(kind: Kind, options: Options, resources: ExitStack) -> Table:
    """In order; bytes or arrays."""
    data = Datasets(options, resources)
    limit, whole, copies = "read() of the same files", "readinto() 1 MB of the same files", f"{OURS}, writable=True"
    by_hand = "pyarrow by hand, the same files"

    def check(contender: Contender, stream: Iterable[Any], n: int) -> None:
        if contender.name in (limit, whole):
            size = sum(path.stat().st_size for path in data.shards(kind, n))
            assert sum(part["image"].nbytes for part in stream) == size, contender.name
        else:
            kind.check(stream, range(n), contender.name)

    def claims(times: Times) -> list[Claim]:
        found = [at_least(f"{OURS} {{:.2f}} x the throughput of {limit}", times.ratio(limit, OURS), 0.6)]
        found.append(Claim(f"{times.ratio(whole, OURS):.2f} x {whole}"))
        found += [
            at_least(f"{{:.2f}} x {peer.name}", times.ratio(peer.name, OURS), 1) for peer in (LITDATA, HF) if peer.name in times
        ]
        return found

    ours = [Contender(OURS, lambda n: IterableSource(data.own(kind, n)), note="checksums of all bytes are in the time")]
    if kind is ARRAYS:
        ours[0] = Contender(OURS, ours[0].make, note="views on the file; checksums of all bytes are in the time")
        ours.append(Contender(copies, lambda n: IterableSource(data.own(kind, n, writable=True)), note="copies"))
    ours.append(Contender(NEVER, lambda n: IterableSource(data.own(kind, n, verify="never"))))
    return Table(
        f"medium-{kind.name}",
        f"{options.images:,} samples {{image, label, meta}}, 100 kB of {'uint8' if kind is ARRAYS else 'bytes'}, in order",
        options.images,
        limit,
        [
            Contender(limit, lambda n: raw_read(data.shards(kind, n)), note="file by file"),
            Contender(whole, lambda n: raw_read_into(data.shards(kind, n)), note="no new memory"),
            Contender(by_hand, lambda n: arrow_rows(kind, open_batches(data.shards(kind, n))), note="verifies nothing"),
            *ours,
            data.reader(LITDATA, kind),
            data.reader(HF, kind),
            data.reader(GRAIN, kind),
            data.reader(MDS, kind, 0.2),
            data.reader(WEBDATASET, kind, 0.2),
            data.reader(CORE, kind, 0.1),
        ],
        check,
        claims,
        work=touch if kind is ARRAYS else _take,
        unit=("us/sample", 1e6),
    )


def _take(stream: Iterable[Any]) -> None:
    for _ in stream:
        pass


# -- batches --------------------------------------------------------------------------------------------------------------


def identity(sample: Any) -> Any:
    """A callback that needs rows."""
    return sample


def batches(options: Options, resources: ExitStack) -> Table:
    """Batches out of columns, or out of rows."""
    data = Datasets(options, resources)
    limit, rows = "numpy by hand, the same files", f"{OURS}, rows and default_collate"

    def by_hand(n: int) -> Iterator[dict[str, torch.Tensor]]:
        for batch in open_batches(data.shards(SMALL, n)):
            ids, tokens, labels = batch.columns
            columns = ids.to_numpy(), tokens.flatten().to_numpy().reshape(-1, TOKENS), labels.to_numpy()
            for start in range(0, len(ids), BATCH):
                parts = [torch.from_numpy(column[start : start + BATCH].copy()) for column in columns]
                yield dict(zip(("id", "tokens", "label"), parts, strict=True))

    def check(contender: Contender, stream: Iterable[Any], n: int) -> None:
        found = list(stream)
        if contender.name != limit:
            assert [len(batch["id"]) for batch in found] == [BATCH] * (n // BATCH), contender.name
        joined = {name: torch.cat([batch[name] for batch in found]) for name in found[0]}
        count = n if contender.name == limit else n // BATCH * BATCH
        assert [(name, joined[name].dtype) for name in ("id", "tokens", "label")] == [
            ("id", torch.int64),
            ("tokens", torch.int32),
            ("label", torch.int64),
        ]
        given = ({name: column[i] for name, column in joined.items()} for i in range(count))
        SMALL.check(given, range(count), contender.name)

    def claims(times: Times) -> list[Claim]:
        return [
            at_least(f"{OURS} {{:.1f}} x the throughput of rows", times.ratio(rows, OURS), 5),
            Claim(f"{times.ratio(limit, OURS):.2f} x {limit}"),
        ]

    return Table(
        "batches",
        f"batches of {BATCH} of {options.rows:,} {SMALL_TITLE}; times are per sample",
        options.rows,
        limit,
        [
            Contender(limit, by_hand, note="no batch goes over the end of a block; verifies nothing"),
            Contender(OURS, lambda n: IterableSource(data.own(SMALL, n)).batched(BATCH, default_collate)),
            Contender(NEVER, lambda n: IterableSource(data.own(SMALL, n, verify="never")).batched(BATCH, default_collate)),
            Contender(
                rows,
                lambda n: IterableSource(data.own(SMALL, n)).map(identity).batched(BATCH, default_collate),
                note=".map(identity) between",
            ),
        ],
        check,
        claims,
        unit=("us/sample", 1e6),
    )


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
    out = pa.BufferOutputStream()
    with (folder / "0.arrow").open("wb") as file:
        with pa.ipc.new_file(out, arrow_batch(samples[:1], kind).schema) as writer:
            for start in range(0, len(samples), 2000):
                writer.write_batch(arrow_batch(samples[start : start + 2000], kind))
        data = out.getvalue()
        whole.update(data)
        parts.append(xxhash.xxh3_64(data).digest())
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def writing(options: Options, resources: ExitStack) -> Table:
    """Small samples into a new dataset."""
    data, limit, safe, one = Datasets(options, resources), ARROW.name, "pyarrow by hand, checksums, fsync", f"{OURS}, 1 worker"
    own = Peer(OURS, OWN.needs, sink, OWN.read)
    samples = SMALL.samples(options.rows)

    def writer(peer: Peer, name: str = "", share: float = 1.0, note: str = "") -> Contender:
        def make(n: int) -> Job:
            return Job(peer, samples[:n], SMALL, data.empty())

        return Contender(name or peer.name, make, share, peer.needs, note=note or peer.note)

    def check(contender: Contender, job: Job, n: int) -> None:
        job.write()
        SMALL.check(job.peer.read(SMALL, job.folder), range(n), contender.name)

    def claims(times: Times) -> list[Claim]:
        targets = [(MDS.name, 5), (GRAIN.name, 1)]
        found = [at_least(f"{{:.2f}} x {name}", times.ratio(name, OURS), target) for name, target in targets if name in times]
        return [*found, Claim(f"{times.ratio(safe, OURS):.2f} x {safe}")]

    return Table(
        "writing",
        f"{options.rows:,} {SMALL_TITLE} into a new dataset",
        options.rows,
        limit,
        [
            writer(ARROW, note="no fsync, as all peers"),
            writer(Peer(safe, ARROW.needs, arrow_safe, ARROW.read), note="one after the other"),
            writer(own, note="sink(progress=True): checksums, fsync"),
            writer(Peer(one, OWN.needs, partial(sink, max_workers=1), OWN.read)),
            writer(GRAIN, note="ArrayRecordWriter, msgpack"),
            writer(MDS, share=0.4),
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


# -- verification ---------------------------------------------------------------------------------------------------------


def verify(kind: Kind, options: Options, resources: ExitStack) -> Table:
    """What checksums cost."""
    data = Datasets(options, resources)
    items = options.rows if kind is SMALL else options.images

    def claims(times: Times) -> list[Claim]:
        return [Claim(f"{name!r} takes {times.ratio(name, 'never'):.2f} x 'never' (no target)") for name in ("block", "shard")]

    return Table(
        f"verify-{kind.name}",
        f"{items:,} samples ({kind.name}) in order, by what is verified",
        items,
        "never",
        [
            Contender(how, lambda n, how=how: IterableSource(data.own(kind, n, verify=how)), base="never" * (how != "never"))
            for how in ("never", "block", "shard")
        ],
        check_in_order(kind),
        claims,
        work=touch if kind is ARRAYS else _take,
        unit=("us/sample", 1e6),
    )


# -- random access --------------------------------------------------------------------------------------------------------


def lazily(make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """What `make` gives, made when its first item is asked for."""
    return chain.from_iterable(make() for _ in range(1))


def warm(store: ShardStore) -> ShardStore:
    """A store whose shards have been opened, and verified."""
    list(store.select(np.linspace(0, len(store) - 1, 50).astype(int)))
    return store


def taken(kind: Kind, paths: list[Path], chosen: Any) -> Iterator[Any]:
    """Rows by `take`, all at once."""
    table = pa.Table.from_batches(open_batches(paths))
    return lazily(lambda: arrow_rows(kind, table.take(chosen).combine_chunks().to_batches()))


def gathered(kind: Kind, paths: list[Path], chosen: Any) -> Iterator[Any]:
    """Rows of which each is a slice of its batch."""
    batches = list(open_batches(paths))
    starts = np.cumsum([0, *map(len, batches)])
    places = np.searchsorted(starts, chosen, side="right") - 1
    slices = (batches[place].slice(row, 1) for place, row in zip(places, (chosen - starts[places]).tolist(), strict=True))
    return arrow_rows(kind, slices)


def at_random(kind: Kind, options: Options, resources: ExitStack) -> Table:
    """Some rows by their numbers."""
    data = Datasets(options, resources)
    total, count = (options.rows, 2000) if kind is SMALL else (options.images, 1000)
    chosen = permutation(total)[:count]
    limit, row, select = "pyarrow take by hand", f"{OURS}, row(i)", f"{OURS}, select"

    def rows_of(store: ShardStore) -> Iterator[Any]:
        return map(store.row, chosen.tolist())

    def selected(store: ShardStore) -> Iterator[Any]:
        return lazily(lambda: store.select(chosen))

    def of_hf() -> Any:
        return hf_dataset(data.of(HF, kind, total))

    def claims(times: Times) -> list[Claim]:
        fast, slow = times.ratio(limit, select), times.ratio(limit, row)
        found = [Claim(f"{select} {fast:.2f} x the throughput of {limit}, row(i) {slow:.2f} x")]
        if HF.name not in times:
            return found
        return [*found, at_least(f"row(i) {{:.1f}} x {HF.name}", times.ratio(HF.name, row), 1)]

    return Table(
        f"random-{kind.name}",
        f"{count:,} of {total:,} samples ({kind.name}) by their numbers, at random",
        count,
        limit,
        [
            Contender(limit, lambda n: taken(kind, data.shards(kind, total), chosen), note="all at once, copies"),
            Contender("pyarrow slices by hand", lambda n: gathered(kind, data.shards(kind, total), chosen), note="one by one"),
            Contender(row, lambda n: rows_of(warm(data.own(kind, total))), note="open store"),
            Contender(select, lambda n: selected(warm(data.own(kind, total))), note="open store"),
            Contender(f"{row}, new store", lambda n: rows_of(data.own(kind, total)), note="verifies whole shards first"),
            Contender(f"{row}, new store, verify='block'", lambda n: rows_of(data.own(kind, total, verify="block"))),
            Contender(HF.name, lambda n: map(of_hf().__getitem__, chosen.tolist()), needs=HF.needs, note="dataset[i]"),
            Contender(f"{HF.name}, select", lambda n: iter(of_hf().select(chosen)), needs=HF.needs),
        ],
        lambda contender, stream, n: kind.check(stream, chosen.tolist(), contender.name),
        claims,
        work=touch if kind is ARRAYS else _take,
        unit=("us/sample", 1e6),
    )


# -- command line ---------------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[Options, ExitStack], Table]] = {
    "small-read": small_read,
    "small-shuffled": small_shuffled,
    "medium-bytes": partial(medium_read, BYTES),
    "medium-arrays": partial(medium_read, ARRAYS),
    "batches": batches,
    "writing": writing,
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
