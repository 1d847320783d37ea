"""Ways to feed ranks that train together: what each rank opens to get its batches, 2 workers behind it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property, partial
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resume_ways import BATCH, BUFFER, FORKED, Data, Records
from storage_peers import CORE, GRAIN, HF, LITDATA, MDS, WEBDATASET, hf_dataset, mosaic
from storage_samples import SMALL
from stream import OURS
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    default_collate,
    get_worker_info,
)

from squirrel_torch import IterableSource, StreamLoader
from squirrel_torch.storage import ShardStore

__all__ = ["BY_COLUMNS", "BY_HAND", "LIMIT", "MADE", "PART", "PEERS", "WAYS", "Files", "Place", "Way"]

LIMIT = "batches ready in memory"
MADE = f"{OURS}, rows made"
BY_HAND = "by hand, msgpack shards"
BY_COLUMNS = "by hand, batches of columns"

READY = 32
"""Batches that differ from each other; then they come again."""

PART = 5000
"""Samples of a file, where the format has several."""


class Files(Data):
    """The samples in all formats, each written when it is first asked for: before the ranks are launched."""

    @cached_property
    def packed(self) -> Path:
        """Shards of msgpack, not compressed."""
        import msgpack

        def write(folder: Path) -> None:
            for start in range(0, self.rows, PART):
                with (folder / f"{start:09d}").open("wb") as out:
                    for sample in self.samples[start : start + PART]:
                        out.write(msgpack.packb({**sample, "tokens": sample["tokens"].tobytes()}))

        return self.folder("packed", write)

    @cached_property
    def columns(self) -> Path:
        """A file of numpy for each field."""

        def write(folder: Path) -> None:
            for name in self.samples[0]:
                np.save(folder / name, np.stack([sample[name] for sample in self.samples]))

        return self.folder("columns", write)


@dataclass(frozen=True)
class Place:
    """Which rank it is, and of how many."""

    rank: int
    ranks: int


@dataclass(frozen=True)
class Way:
    """One way to feed the ranks.

    Args:
        name: In tables.
        files: Writes what it reads.
        open: Gives what a rank iterates over.
        needs: The module that has to be installed.
        share: The part of the table's steps that it makes.
        exact: Whether it is an error if a sample never comes, or comes twice.
        note: How it is set up.
    """

    name: str
    files: Callable[[Files], Any]
    open: Callable[[Files, Place], Iterable[Any]]
    needs: str = "squirrel_torch"
    share: float = 0.3
    exact: bool = False
    note: str = ""


def _loader(dataset: Any, batch_size: int | None = None, **options: Any) -> Any:
    return DataLoader(dataset, batch_size=batch_size, **FORKED, **options)


# -- the limit, ours ------------------------------------------------------------------------------------------------------


def _ready(files: Files, place: Place) -> Iterable[Any]:
    made = [default_collate([SMALL.make(n * BATCH + i) for i in range(BATCH)]) for n in range(READY)]
    return cycle(made)


def _same(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


def _ours(files: Files, place: Place, *, made: bool = False) -> Any:
    chain: Any = IterableSource(ShardStore(files.own)).shuffle(BUFFER)
    chain = chain.map(_same) if made else chain
    return StreamLoader(chain.batched(BATCH, default_collate, drop_last_if_not_full=False), tail="exact", **FORKED)


# -- by hand --------------------------------------------------------------------------------------------------------------


class Shards(IterableDataset):  # type: ignore[type-arg]  # dicts
    """Whole shards by rank and worker, samples through a buffer, batched in the worker.

    Args:
        folder: Of the shards.
        place: Whose.
    """

    def __init__(self, folder: Path, place: Place) -> None:
        self._folder = folder
        self._place = place

    def _samples(self) -> Iterator[dict[str, Any]]:
        import msgpack

        info: Any = get_worker_info()
        paths = sorted(self._folder.iterdir())
        random.Random(0).shuffle(paths)
        for path in paths[self._place.rank :: self._place.ranks][info.id :: info.num_workers]:
            with path.open("rb") as shard:
                for sample in msgpack.Unpacker(shard):
                    sample["tokens"] = torch.frombuffer(bytearray(sample["tokens"]), dtype=torch.int32)
                    yield sample

    def _shuffled(self) -> Iterator[dict[str, Any]]:
        rng, buffer = random.Random(0), []
        for sample in self._samples():
            if len(buffer) < BUFFER:
                buffer.append(sample)
                continue
            at = rng.randrange(BUFFER)
            buffer[at], sample = sample, buffer[at]
            yield sample
        rng.shuffle(buffer)
        yield from buffer

    def __iter__(self) -> Iterator[Any]:
        batch = []
        for sample in self._shuffled():
            batch.append(sample)
            if len(batch) == BATCH:
                yield default_collate(batch)
                batch = []
        if batch:
            yield default_collate(batch)


class Columns(Dataset):  # type: ignore[type-arg]  # dicts
    """Samples in files of numpy, mapped: one by its number, or a batch by a list of them.

    Args:
        folder: Of the files.
    """

    def __init__(self, folder: Path) -> None:
        # Plain arrays over the maps: numpy's class for maps is slow at each index.
        self._columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in SMALL.make(0)}

    def __len__(self) -> int:
        return len(self._columns["id"])

    def __getitem__(self, at: Any) -> dict[str, Any]:
        if isinstance(at, list):
            return {name: torch.from_numpy(column[at]) for name, column in self._columns.items()}
        tokens = torch.from_numpy(self._columns["tokens"][at].copy())
        return {"id": int(self._columns["id"][at]), "tokens": tokens, "label": int(self._columns["label"][at])}


def _sampled(dataset: Any, place: Place, *, whole: bool = False) -> Any:
    sampler: Any = DistributedSampler(dataset, place.ranks, place.rank)
    if whole:
        return _loader(dataset, sampler=BatchSampler(sampler, BATCH, drop_last=False))
    return _loader(dataset, BATCH, sampler=sampler)


# -- peers ----------------------------------------------------------------------------------------------------------------


def _core(files: Files, place: Place, *, keys: bool) -> Any:
    from squirrel.driver import MessagepackDriver
    from squirrel.iterstream.torch_composables import SplitByRank, SplitByWorker

    driver = MessagepackDriver(str(files.of(CORE)))
    names = sorted(driver.keys())
    if keys:
        stream = driver.get_iter(keys_iterable=names, key_hooks=[SplitByRank, SplitByWorker])
    else:
        # Shuffled only behind the split: before it every process would shuffle in its own way.
        stream = driver.get_iter(keys_iterable=names).split_by_rank_pytorch().split_by_worker_pytorch()
    batches = stream.shuffle(BUFFER).batched(BATCH, collation_fn=default_collate, drop_last_if_not_full=False)
    return _loader(batches.to_torch_iterable())


def _sample_of_tar(found: dict[str, Any]) -> dict[str, Any]:
    return {"id": int(found["__key__"]), "tokens": found["tokens.npy"], "label": found["cls"]}


def _webdataset(files: Files, place: Place) -> Any:
    import webdataset as wds

    paths = sorted(map(str, files.of(WEBDATASET).glob("*.tar")))
    samples = wds.WebDataset(paths, shardshuffle=len(paths), nodesplitter=wds.split_by_node, seed=0).shuffle(BUFFER)
    return _loader(samples.decode().map(_sample_of_tar).batched(BATCH, collation_fn=default_collate, partial=True))


def _lit_files(files: Files) -> Path:
    import litdata

    def write(folder: Path) -> None:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            numbers = list(range(files.rows))
            litdata.optimize(SMALL.make, numbers, str(folder), num_workers=1, chunk_size=PART, verbose=False)

    return files.folder(LITDATA.needs, write)


def _litdata(files: Files, place: Place) -> Any:
    import litdata

    dataset = litdata.StreamingDataset(str(_lit_files(files)), shuffle=True)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, **FORKED)


def _mosaic(files: Files, place: Place) -> Any:
    dataset = mosaic().StreamingDataset(local=str(files.of(MDS)), batch_size=BATCH, shuffle=True)
    return _loader(dataset, BATCH)


def _hf(files: Files, place: Place) -> Any:
    from datasets.distributed import split_dataset_by_node

    samples = hf_dataset(files.of(HF)).to_iterable_dataset(num_shards=files.rows // PART)
    return _loader(split_dataset_by_node(samples.shuffle(seed=0, buffer_size=BUFFER), place.rank, place.ranks), BATCH)


_BUFFERED = f"a buffer of {BUFFER:,}"

PEERS = [
    Way(
        "squirrel-core, keys split",
        lambda files: files.of(CORE),
        partial(_core, keys=True),
        "squirrel",
        note=f"key_hooks; {_BUFFERED}; gzip",
    ),
    Way("squirrel-core, samples split", lambda files: files.of(CORE), partial(_core, keys=False), "squirrel"),
    Way(
        "torch DistributedSampler, npy",
        lambda files: files.columns,
        lambda files, place: _sampled(Columns(files.columns), place),
        "torch",
        note="map-style; mapped files",
    ),
    Way(
        "torch DistributedSampler, array_record",
        lambda files: files.of(GRAIN),
        lambda files, place: _sampled(Records(files.of(GRAIN)), place),
        "grain",
        note="map-style, __getitems__",
    ),
    Way("webdataset", lambda files: files.of(WEBDATASET), _webdataset, "webdataset", note=f"split_by_node; {_BUFFERED}"),
    Way("mosaic StreamingDataset", lambda files: files.of(MDS), _mosaic, "streaming", note="py1e"),
    Way("litdata StreamingDataset", _lit_files, _litdata, "litdata", note=f"shuffle=True, chunks of {PART:,}"),
    Way("HF split_dataset_by_node", lambda files: files.of(HF), _hf, "datasets", note=f"Arrow; {_BUFFERED}; numpy format"),
]
"""What others do, as their documentation says."""

WAYS = {
    way.name: way
    for way in [
        Way(LIMIT, lambda files: None, _ready, share=1, note="no workers"),
        Way(OURS, lambda files: files.own, _ours, share=1, exact=True, note="batches from columns"),
        Way(MADE, lambda files: files.own, partial(_ours, made=True), share=0.6, exact=True, note="behind a map"),
        Way(
            BY_COLUMNS,
            lambda files: files.columns,
            lambda files, place: _sampled(Columns(files.columns), place, whole=True),
            note="BatchSampler; one take of each mapped column",
        ),
        Way(BY_HAND, lambda files: files.packed, lambda files, place: _loader(Shards(files.packed, place)), note=_BUFFERED),
        *PEERS,
    ]
}
"""All of them by name, in the order of the table."""
