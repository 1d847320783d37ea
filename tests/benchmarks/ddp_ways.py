"""Ways to feed ranks that train together: what each rank opens to get its batches, 2 workers behind it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from ddp_files import BUFFERED, Files, Place, Way, loader, sampled
from ddp_peers import PEERS
from resume_peers import Columns
from resume_ways import BATCH, BUFFER, FORKED
from storage_samples import SMALL
from stream import OURS
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from squirrel_torch import IterableSource, StreamLoader
from squirrel_torch.storage import ShardStore

__all__ = ["BY_COLUMNS", "BY_HAND", "LIMIT", "MADE", "WAYS"]

LIMIT = "batches ready in memory"
MADE = f"{OURS}, rows made"
BY_HAND = "by hand, msgpack shards"
BY_COLUMNS = "by hand, batches of columns"

READY = 32
"""Batches that differ from each other; then they come again."""


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


# -- all of them ----------------------------------------------------------------------------------------------------------

WAYS = {
    way.name: way
    for way in [
        Way(LIMIT, lambda files: None, _ready, share=1, note="no workers"),
        Way(OURS, lambda files: files.own, _ours, share=1, exact=True, note="batches from columns"),
        Way(MADE, lambda files: files.own, partial(_ours, made=True), exact=True, note="behind a map"),
        Way(
            BY_COLUMNS,
            lambda files: files.columns,
            lambda files, place: sampled(Columns(files.columns), place, whole=True),
            note="BatchSampler; one take of each mapped column",
        ),
        Way(BY_HAND, lambda files: files.packed, lambda files, place: loader(Shards(files.packed, place)), note=BUFFERED),
        *PEERS,
    ]
}
"""All of them by name, in the order of the table."""
