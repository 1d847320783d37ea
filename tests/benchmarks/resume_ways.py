"""Ways to go through shuffled batches that can be stopped: by hand, ours, and peers', each as its documentation says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from storage_peers import Peer, arrow_lists, open_batches
from storage_samples import SMALL, TOKENS
from stream import OURS
from torch.utils.data import default_collate

from squirrel_torch import IterableSource, StreamLoader
from squirrel_torch.storage import ShardStore

__all__ = [
    "BATCH",
    "BUFFER",
    "BY_COLUMNS",
    "BY_HAND",
    "SHARD_ROWS",
    "STREAMED",
    "WORKERS",
    "BlockShuffle",
    "Data",
    "Way",
    "by_hand",
    "of_columns",
    "of_rows",
    "ours",
    "plain",
    "stateful",
]

BATCH = 64
BUFFER = 1000
SHARD_ROWS = 4000
"""Two shards hold a whole number of batches: what is written by hand can be shorter."""

BY_HAND = "by hand, rows"
BY_COLUMNS = "by hand, columns"
STREAMED = f"{OURS}, streamed"
WORKERS = ", 2 workers"
FORKED: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}
"""Said to all: litdata's `optimize` makes "spawn" the default of the whole process."""


class Data:
    """The samples in all formats, each written when it is first asked for.

    Args:
        rows: How many there are.
        folder: Where.
    """

    def __init__(self, rows: int, folder: Path) -> None:
        self.rows = rows
        self.path = folder
        self._samples: list[dict[str, Any]] = []

    @property
    def samples(self) -> list[dict[str, Any]]:
        """In memory."""
        if not self._samples:
            self._samples = SMALL.samples(self.rows)
        return self._samples

    def folder(self, name: str, write: Callable[[Path], Any]) -> Path:
        """That of one format."""
        folder = self.path / name
        if not folder.exists():
            folder.mkdir()
            write(folder)
        return folder

    @property
    def own(self) -> Path:
        """Our shards, as many as a larger dataset has, and smaller."""

        def write(folder: Path) -> None:
            store = ShardStore(folder, shard_rows=SHARD_ROWS)
            IterableSource(self.samples).sink(store, max_workers=1)
            assert {shard.rows for shard in store.manifest.shards} == {SHARD_ROWS}

        return self.folder("own", write)

    @property
    def shards(self) -> list[Path]:
        """Their files, in order."""
        return [self.own / "shards" / shard.name for shard in ShardStore(self.own).manifest.shards]

    @property
    def columns(self) -> Path:
        """A file of numpy for each field."""

        def write(folder: Path) -> None:
            for name in self.samples[0]:
                np.save(folder / name, np.stack([sample[name] for sample in self.samples]))

        return self.folder("columns", write)

    def of(self, peer: Peer) -> Path:
        """A peer's."""
        return self.folder(peer.needs, lambda folder: peer.write(self.samples, SMALL, folder))


@dataclass(frozen=True)
class Way:
    """One way to go through an epoch.

    Args:
        name: In tables.
        open: Gives new objects: iterable, with `state_dict` and `load_state_dict`.
        needs: The module that has to be installed.
        promises: Whether it is an error if the rest of a stopped epoch is not what it would have been.
        note: How it is set up.
    """

    name: str
    open: Callable[[], Any]
    needs: str = "squirrel_torch"
    promises: bool = True
    note: str = ""


# -- by hand --------------------------------------------------------------------------------------------------------------


class BlockShuffle:
    """Shards in random order, and within two of them at a time all rows: it can begin at any batch.

    Args:
        paths: The shards, of `SHARD_ROWS` rows.
        gather: Gives the batches of some shards, from the rows in a given order.
    """

    def __init__(self, paths: list[Path], gather: Callable[[list[Path], Any], Iterator[Any]]) -> None:
        self._paths = paths
        self._gather = gather
        self._seed = self._position = 0

    def state_dict(self) -> dict[str, int]:
        """Where it is."""
        return {"seed": self._seed, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin there."""
        self._seed, self._position = state["seed"], state["position"]

    def __iter__(self) -> Iterator[Any]:
        paths = [self._paths[place] for place in np.random.default_rng(self._seed).permutation(len(self._paths))]
        size = 2 * SHARD_ROWS
        while self._position < len(paths) * SHARD_ROWS:
            block, begin = divmod(self._position, size)
            order = np.random.default_rng([self._seed, block]).permutation(size)[begin:]
            for batch in self._gather(paths[2 * block : 2 * block + 2], order):
                self._position += BATCH
                yield batch


def of_rows(paths: list[Path], order: Any) -> Iterator[Any]:
    """Batches of rows, which are all made."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    rows = list(arrow_lists(open_batches(paths)))
    for start in range(0, len(order), BATCH):
        yield default_collate([rows[place] for place in order[start : start + BATCH].tolist()])


def of_columns(paths: list[Path], order: Any) -> Iterator[Any]:
    """Batches of columns, by somebody who knows them."""
    parts = list(open_batches(paths))
    ids, labels = (np.concatenate([part[name].to_numpy() for part in parts]) for name in ("id", "label"))
    tokens = np.concatenate([part["tokens"].flatten().to_numpy().reshape(-1, TOKENS) for part in parts])
    columns = {"id": ids, "tokens": tokens, "label": labels}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        yield {name: torch.from_numpy(column.take(chosen, axis=0)) for name, column in columns.items()}


def by_hand(data: Data) -> list[Way]:
    """What is asked for, written for this one dataset."""
    note = "permutes shards, and the rows of two at a time; verifies nothing"
    return [
        Way(BY_HAND, lambda: BlockShuffle(data.shards, of_rows), note=note),
        Way(BY_COLUMNS, lambda: BlockShuffle(data.shards, of_columns), note=note),
    ]


# -- ours -----------------------------------------------------------------------------------------------------------------


def plain(source: Any) -> Any:
    """Shuffled batches of a source."""
    return IterableSource(source).shuffle(BUFFER).batched(BATCH, default_collate)


def streamed(source: Any) -> Any:
    """The same, behind a stage that may leave out some, so that the order is not arithmetic."""
    return IterableSource(source).filter(bool).shuffle(BUFFER).batched(BATCH, default_collate)


def stateful(dataset: Any, **options: Any) -> Any:
    """torchdata's loader."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(dataset, **options)


def ours(data: Data) -> list[Way]:
    """A StreamLoader over different chains."""

    def store(**options: Any) -> ShardStore:
        return ShardStore(data.own, **options)

    return [
        Way(OURS, lambda: StreamLoader(plain(store())), note="checksums of all bytes of the shards are in the time"),
        Way(f"{OURS}, verify='block'", lambda: StreamLoader(plain(store(verify="block")))),
        Way(f"{OURS}, verify='never'", lambda: StreamLoader(plain(store(verify="never"))), note="as by hand, and peers"),
        Way(f"{OURS}{WORKERS}", lambda: StreamLoader(plain(store()), **FORKED)),
        Way(f"{OURS}, a list", lambda: StreamLoader(plain(data.samples)), note="in memory"),
        Way(STREAMED, lambda: StreamLoader(streamed(store())), note="behind a filter"),
        Way(f"{STREAMED}{WORKERS}", lambda: StreamLoader(streamed(store()), **FORKED), note="behind a filter"),
        Way(
            f"{OURS} in StatefulDataLoader",
            lambda: stateful(plain(store()).to_torch_iterable(), batch_size=None),
            "torchdata",
            note="to_torch_iterable()",
        ),
    ]
