"""How others go through shuffled batches that can be stopped, each as its documentation says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resume_ways import BATCH, BUFFER, FORKED, WORKERS, Data, Way, stateful
from storage_peers import GRAIN, HF, LITDATA, MDS, hf_dataset, mosaic, unpacked
from storage_samples import SMALL
from torch.utils.data import Dataset, DistributedSampler, default_collate

__all__ = ["Columns", "Records", "peers"]


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


class Records(Dataset):  # type: ignore[type-arg]  # dicts
    """The samples in an array_record, by their numbers."""

    def __init__(self, folder: Path) -> None:
        import grain.python as grain

        self._records = grain.ArrayRecordDataSource(str(folder / "0.array_record"))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        samples = [unpacked(SMALL, record) for record in self._records.__getitems__(numbers)]
        for sample in samples:
            sample["tokens"] = sample["tokens"].copy()  # torch warns of arrays that can't be written
        return samples


class GrainLoader:
    """Grain's iterators keep the state, not what makes them."""

    def __init__(self, folder: Path) -> None:
        import grain.python as grain

        source = grain.MapDataset.source(Records(folder)).shuffle(seed=0).batch(BATCH)
        self._batches: Any = iter(source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def __iter__(self) -> Iterator[Any]:
        return self._batches  # type: ignore[no-any-return]  # an iterator

    def state_dict(self) -> Any:
        """As plain types."""
        return self._batches.get_state()

    def load_state_dict(self, state: Any) -> None:
        """Begin there."""
        self._batches.set_state(state)


def nodes(dataset: Any) -> Any:
    """torchdata's nodes: numbers, samples, batches."""
    from torchdata.nodes import Batcher, Loader, Mapper, SamplerWrapper

    numbers = SamplerWrapper(DistributedSampler(dataset, 1, 0))
    return Loader(Mapper(Batcher(Mapper(numbers, dataset.__getitem__), BATCH, drop_last=False), default_collate))


def peers(data: Data) -> list[Way]:
    """Others' loaders."""

    def hf_streams() -> Any:
        return hf_dataset(data.of(HF)).to_iterable_dataset(num_shards=16).shuffle(seed=0, buffer_size=BUFFER)

    def lit(workers: int) -> Any:
        import litdata

        dataset = litdata.StreamingDataset(str(data.of(LITDATA)), shuffle=True)
        return litdata.StreamingDataLoader(dataset, batch_size=BATCH, **(FORKED if workers else {}))

    def mds() -> Any:
        streaming = mosaic()
        dataset = streaming.StreamingDataset(local=str(data.of(MDS)), batch_size=BATCH, shuffle=True)
        return streaming.StreamingDataLoader(dataset, batch_size=BATCH)

    shuffled = {"batch_size": BATCH, "shuffle": True}
    hf, buffered = "HF Dataset in StatefulDataLoader", f"HF IterableDataset.shuffle({BUFFER}) in StatefulDataLoader"
    records, columns = "torch StatefulDataLoader, array_record", "torch StatefulDataLoader, npy"
    left_out = "what is in the buffer is not in the state"
    return [
        Way(columns, lambda: stateful(Columns(data.columns), **shuffled), "torchdata", False, "map-style, shuffle=True"),
        Way("torchdata.nodes", lambda: nodes(Columns(data.columns)), "torchdata", False, "map-style, DistributedSampler"),
        Way(hf, lambda: stateful(hf_dataset(data.of(HF)), **shuffled), HF.needs, False, "map-style, shuffle=True"),
        Way(records, lambda: stateful(Records(data.of(GRAIN)), **shuffled), GRAIN.needs, False, "map-style, shuffle=True"),
        Way(buffered, lambda: stateful(hf_streams(), batch_size=BATCH), HF.needs, False, left_out),
        Way("grain, MapDataset.shuffle", lambda: GrainLoader(data.of(GRAIN)), "grain", False, "array_record, no threads"),
        Way("litdata StreamingDataLoader", lambda: lit(0), "litdata", False),
        Way(f"litdata StreamingDataLoader{WORKERS}", lambda: lit(2), "litdata", False),
        Way("mosaic StreamingDataLoader", mds, "streaming", False, "py1e"),
    ]
