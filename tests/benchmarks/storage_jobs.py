"""The datasets that storage is measured with, and what its tables have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rig import Claim, Contender
from storage_peers import (
    Peer,
)
from storage_samples import TOKENS, Kind
from stream import OURS

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


NEVER = f"{OURS}, verify='never'"
MEDIUM_TITLE = "samples {image, label, meta}, 100 kB"
SMALL_TITLE = f"samples {{id, int32[{TOKENS}], label}}"


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
        assert sum(place == number for place, number in enumerate(numbers)) < max(n / 50, 10), contender.name

    return check


def touch(stream: Iterable[dict[str, Any]]) -> None:
    """Take every sample, and look at one byte of each page of its array: a view that nobody reads has not been read."""
    for sample in stream:
        sample["image"][::4096].max()


def permutation(n: int) -> np.ndarray[Any, Any]:
    """Numbers of rows, in random order."""
    return np.random.default_rng(1).permutation(n)
