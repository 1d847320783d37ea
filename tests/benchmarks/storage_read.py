"""Reading samples from a disk: in order, shuffled, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rig import Claim, Contender, Table, Times, exhaust
from storage_jobs import (
    BATCH,
    BUFFER,
    MEDIUM_TITLE,
    NEVER,
    SMALL_TITLE,
    Datasets,
    Options,
    at_least,
    check_in_order,
    check_shuffled,
    permutation,
    touch,
)
from storage_peers import (
    CORE,
    GRAIN,
    HF,
    LITDATA,
    MDS,
    WEBDATASET,
    arrow_lists,
    arrow_rows,
    open_batches,
)
from storage_samples import ARRAYS, SMALL, TOKENS, Kind
from stream import OURS
from torch.utils.data import default_collate

from squirrel_torch import IterableSource

# -- small samples --------------------------------------------------------------------------------------------------------


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


def shuffled(kind: Kind, options: Options, resources: ExitStack) -> Table:
    """In random order; small samples, or large ones."""
    data = Datasets(options, resources)
    limit, select, fastest = "permuted blocks by hand", f"{OURS}, select(permutation)", f"{OURS}, shuffle({BUFFER})"
    items = options.rows if kind is SMALL else options.images
    slow = 0.1 if kind is SMALL else 0.2

    def permuted(n: int) -> Iterator[dict[str, Any]]:
        rng, blocks = np.random.default_rng(0), list(open_batches(data.shards(kind, n)))
        for block in rng.permutation(len(blocks)).tolist():
            rows = list(arrow_rows(kind, [blocks[block]]))
            for place in rng.permutation(len(rows)).tolist():
                yield rows[place]

    def claims(times: Times) -> list[Claim]:
        if CORE.name not in times or kind is not SMALL:
            return []
        return [
            at_least(f"{name} {{:.2f}} x the throughput of {CORE.name}", times.ratio(CORE.name, name), 3)
            for name in (fastest, select)
        ]

    return Table(
        "small-shuffled" if kind is SMALL else "medium-shuffled",
        f"{items:,} {SMALL_TITLE if kind is SMALL else MEDIUM_TITLE + ' of uint8'}, in random order",
        items,
        limit,
        [
            Contender(limit, permuted, note="and the rows of each by themselves: a weaker shuffle"),
            Contender(fastest, lambda n: IterableSource(data.own(kind, n)).shuffle(BUFFER)),
            Contender(select, lambda n: IterableSource(data.own(kind, n).select(permutation(n))), note="any permutation"),
            data.shuffler(CORE, kind, 1.0 if kind is SMALL else 0.1),
            data.shuffler(GRAIN, kind, slow),
            data.shuffler(LITDATA, kind, slow),
            data.shuffler(MDS, kind, slow),
            data.shuffler(HF, kind, slow / 2),
            data.shuffler(WEBDATASET, kind, slow),
        ],
        check_shuffled(kind),
        claims,
        work=exhaust if kind is SMALL else touch,
        unit=("us/sample", 1e6),
    )


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
        f"{options.images:,} {MEDIUM_TITLE} of {'uint8' if kind is ARRAYS else 'bytes'}, in order",
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
        work=touch if kind is ARRAYS else exhaust,
        unit=("us/sample", 1e6),
    )


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
