"""What ranks that train together read, and how one says in which way they do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from resume_ways import BATCH, BUFFER, FORKED, Data
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

__all__ = ["BUFFERED", "PART", "Files", "Place", "Way", "loader", "sampled"]

PART = 5000
"""Samples of a file, where the format has several."""

BUFFERED = f"a buffer of {BUFFER:,}"


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
    share: float = 0.6
    exact: bool = False
    note: str = ""


def loader(dataset: Any, batch_size: int | None = None, **options: Any) -> Any:
    """Torch's, with its workers."""
    return DataLoader(dataset, batch_size=batch_size, **FORKED, **options)


def sampled(dataset: Any, place: Place, *, whole: bool = False) -> Any:
    """The batches of one rank, by number; `whole`: each is made at once."""
    sampler: Any = DistributedSampler(dataset, place.ranks, place.rank)
    if whole:
        return loader(dataset, sampler=BatchSampler(sampler, BATCH, drop_last=False))
    return loader(dataset, BATCH, sampler=sampler)
