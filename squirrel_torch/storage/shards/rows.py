"""Rows of shards by their numbers, for streams whose order is arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
import xxhash

from squirrel_torch.checksum import checksum_of
from squirrel_torch.errors import StoreError
from squirrel_torch.sharding import WHOLE
from squirrel_torch.storage.rows import Ids, Located, Rows
from squirrel_torch.storage.shards.column import NotCollatableError, Part, collate
from squirrel_torch.storage.shards.manifest import Manifest
from squirrel_torch.storage.shards.reader import ShardReader
from squirrel_torch.storage.shards.selection import Selection, spans_of

__all__ = ["SelectedRows", "ShardKeys", "ShardRows"]

_NAMED: Final = 12
"""How many shards a difference names."""

_KEYS: Final = 1024
_NUMPY_TOO: Final = frozenset(
    [
        *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    ]
)
"""The dtypes that numpy has too."""


class _OfDataset(Rows):
    """What has one item for each row of a dataset, in the order of its shards.

    Args:
        reader: Gives the reader of the process that it is called in.
        manifest: Of the dataset.
        earlier: Gives the manifest of another commit of the dataset.
        url: Where the dataset is.
    """

    def __init__(
        self, reader: Callable[[], ShardReader], manifest: Manifest, earlier: Callable[[int], Manifest], url: str
    ) -> None:
        import pyarrow  # noqa: F401  # before workers are forked: each would import it for itself

        self._reader = reader
        self._manifest = manifest
        self._earlier = earlier
        self._url = url
        self._rows = manifest.rows

    @property
    def groups(self) -> Ids:
        """How many rows each shard has."""
        return np.array([shard.rows for shard in self._manifest.shards], np.int64)

    def __len__(self) -> int:
        return self._rows

    def locate(self, ids: Ids) -> list[Located]:
        return _located(self._manifest, self._url, ids)

    def fingerprint(self) -> dict[str, Any]:
        manifest = self._manifest
        return {"rows": len(self), "shards": len(manifest.shards), "commit": manifest.number, "sum": _sum(manifest)}

    def difference(self, fingerprint: dict[str, Any]) -> str:
        counts = super().difference(fingerprint)
        number = fingerprint.get("commit")
        try:
            before = self._earlier(int(number))  # type: ignore[arg-type]  # a TypeError then
        except (StoreError, OSError, TypeError, ValueError):
            return f"{counts}; its commit {number} is not there any more"
        if _sum(before) != fingerprint.get("sum"):
            return f"{counts}; its commit {number} is another one than then"
        old, new = ({shard.name: shard.checksum for shard in one.shards} for one in (before, self._manifest))
        changed = {name for name in old.keys() & new.keys() if old[name] != new[name]}
        kinds = (("added", new.keys() - old.keys()), ("removed", old.keys() - new.keys()), ("changed", changed))
        told = "; ".join(f"{word}: {_listed(sorted(names))}" for word, names in kinds if names)
        return f"{counts}; {told or 'its shards are in another order'}"


class ShardRows(_OfDataset):
    """All rows of a dataset."""

    def fetch(self, ids: Ids) -> Iterator[Any]:
        return Selection(self._reader, ids)._part(WHOLE)

    def collated(self, batches: Sequence[Ids]) -> Iterator[Any]:
        reader = self._reader()
        if reader.by_ranges:
            return super().collated(batches)
        most = max(1, reader.window // max(map(len, batches)))
        windows = (batches[start : start + most] for start in range(0, len(batches), most))
        return chain.from_iterable(self._gathered(reader, window) for window in windows)

    def _gathered(self, reader: ShardReader, batches: Sequence[Ids]) -> Iterator[Any]:
        """Batches whose samples are read in the order in which they lie."""
        order, inside, blocks = spans_of(reader, np.concatenate(batches))
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        try:
            whole = collate(
                [(reader.block(shard, block).column, _rows(inside[begin:end])) for shard, block, begin, end in blocks]
            )
        except NotCollatableError:
            yield from super().collated(batches)
            return
        begin = 0
        for batch in batches:
            yield _picked(whole, places[begin : begin + len(batch)])
            begin += len(batch)


def _located(manifest: Manifest, url: str, rows: Ids) -> list[Located]:
    """Where rows of a dataset lie. No shard is opened: so no keys are told but those that are made of a name and a number."""
    shards = manifest.shards
    starts = np.concatenate([[0], np.cumsum([shard.rows for shard in shards], dtype=np.int64)])
    places = np.searchsorted(starts, rows, side="right") - 1
    found = []
    for row, place, inside in zip(rows.tolist(), places.tolist(), (rows - starts[places]).tolist(), strict=True):
        shard = shards[place]
        found.append(Located(url, row, shard.name, inside, None if shard.keyed else _key(shard.name, inside)))
    return found


def _key(shard: str, row: int) -> str:
    """The key of a row that was given none."""
    return f"{shard.removesuffix('.arrow')}:{row}"


def _rows(inside: Ids) -> Part:
    """Rows that ascend, as a slice if they are neighbours."""
    first, count = int(inside[0]), len(inside)
    if int(inside[-1]) - first == count - 1 and bool((inside[1:] > inside[:-1]).all()):
        return slice(first, first + count)
    return inside


def _picked(collated: Any, places: Ids) -> Any:
    """Some samples of a batch, as copies."""
    if isinstance(collated, torch.Tensor):
        if collated.dtype not in _NUMPY_TOO:
            return collated[torch.from_numpy(places)]
        # Torch would do it with several threads, which wait for each other longer than it takes.
        return torch.from_numpy(collated.numpy().take(places, axis=0))
    if isinstance(collated, dict):
        return {name: _picked(part, places) for name, part in collated.items()}
    if isinstance(collated[0], str | bytes):
        return type(collated)(collated[place] for place in places.tolist())
    return [_picked(part, places) for part in collated]


class ShardKeys(_OfDataset):
    """The keys of a dataset, made of the numbers of its rows: what they are wanted for is to read the rows."""

    def fetch(self, ids: Ids) -> Iterator[Any]:
        reader = self._reader()
        return chain.from_iterable(self._keys(reader, ids[start : start + _KEYS]) for start in range(0, len(ids), _KEYS))

    def _keys(self, reader: ShardReader, ids: Ids) -> Iterator[str]:
        shards = self._manifest.shards
        places = np.searchsorted(reader.starts, ids, side="right") - 1
        inside = (ids - reader.starts[places]).tolist()
        for row, place, number in zip(ids.tolist(), places.tolist(), inside, strict=True):
            if shards[place].keyed:
                index, block, within = reader.place(row)
                yield (reader.block(index, block).keys or ())[within]
            else:
                yield _key(shards[place].name, number)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _sum(manifest: Manifest) -> str:
    told = "".join(f"{shard.name} {shard.rows} {shard.checksum}\n" for shard in manifest.shards)
    return checksum_of(told)


class SelectedRows(Rows):
    """Rows of a selection, by their places in it.

    Args:
        reader: Gives the reader of the process that it is called in.
        numbers: The rows of the dataset.
    """

    def __init__(self, reader: Callable[[], ShardReader], numbers: Ids) -> None:
        self._reader = reader
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def fetch(self, ids: Ids) -> Iterator[Any]:
        return Selection(self._reader, self._numbers[ids])._part(WHOLE)

    def locate(self, ids: Ids) -> list[Located]:
        reader = self._reader()
        return _located(reader.manifest, reader.url, self._numbers[ids])

    def fingerprint(self) -> dict[str, Any]:
        chosen = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(self._numbers, "<i8").tobytes())
        return {"rows": len(self), "chosen": chosen, "sum": _sum(self._reader().manifest)}
