"""How others chain and shuffle what is in memory, each as its documentation says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.datapipes.iter import IterableWrapper
from torchdata.nodes import BaseNode, Batcher, Loader, Mapper
from torchdata.nodes import IterableWrapper as Numbers

__all__ = [
    "BATCH",
    "BUFFER",
    "Stream",
    "core_source",
    "even",
    "grain_chain",
    "grain_iterator",
    "grain_shuffle",
    "hf_chain",
    "hf_shuffle",
    "inc",
    "loader_chain",
    "loader_shuffle",
    "nodes_chain",
    "spdl_chain",
    "spdl_items",
    "torch_source",
    "webdataset_chain",
    "webdataset_shuffle",
]

BATCH = 64
BUFFER = 10_000


def inc(x: int) -> int:
    """The callback of every chain."""
    return x + 1


def even(x: int) -> bool:
    """The predicate of every chain."""
    return x % 2 == 0


# -- squirrel-core, torch's own pipes, webdataset -------------------------------------------------------------------------


def core_source(items: Iterable[Any]) -> Any:
    """A stream of squirrel-core."""
    from squirrel.iterstream import IterableSource as CoreSource

    return CoreSource(items)


def torch_source(items: Iterable[Any]) -> Any:
    """A stream of torch's own pipes, over the items themselves instead of a deep copy."""
    return IterableWrapper(items, deepcopy=False)


def webdataset_chain(n: int) -> Any:
    """With lists as batches."""
    import webdataset as wds

    stages = wds.map(inc), wds.select(even), wds.batched(BATCH, collation_fn=None, partial=False)
    return wds.DataPipeline(lambda: iter(range(n)), *stages)


def webdataset_shuffle(n: int) -> Any:
    """Through a buffer."""
    import webdataset as wds

    return wds.DataPipeline(lambda: iter(range(n)), wds.shuffle(BUFFER))


# -- torch DataLoader -----------------------------------------------------------------------------------------------------


class Stream(IterableDataset):  # type: ignore[type-arg]  # anything
    """A generator function as a dataset."""

    def __init__(self, items: Callable[[], Iterator[Any]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return self._items()


def loader_chain(n: int) -> Any:
    """A generator, and batches by the loader."""

    def items() -> Iterator[int]:
        for item in range(n):
            item = inc(item)
            if even(item):
                yield item

    return DataLoader(Stream(items), BATCH, collate_fn=list, drop_last=True)


def loader_shuffle(n: int) -> Any:
    """A permutation of a dataset whose length is known."""
    return DataLoader(range(n), batch_size=None, shuffle=True)  # type: ignore[arg-type]  # has a length, and is indexed


# -- torchdata.nodes ------------------------------------------------------------------------------------------------------


class Chosen(BaseNode[int]):
    """Filter, which torchdata 0.11 has not: as its users write nodes."""

    def __init__(self, source: BaseNode[int], predicate: Callable[[int], bool]) -> None:
        super().__init__()
        self.source = source
        self.predicate = predicate

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        """Begin."""
        super().reset(initial_state)
        self.source.reset(initial_state["source"] if initial_state else None)

    def next(self) -> int:
        """The next item that is wanted."""
        while not self.predicate(item := next(self.source)):
            pass
        return item

    def get_state(self) -> dict[str, Any]:
        """Where the source is."""
        return {"source": self.source.state_dict()}


def nodes_chain(n: int) -> Any:
    """One node after the other."""
    return Loader(Batcher(Chosen(Mapper(Numbers(range(n)), inc), even), BATCH, drop_last=True))


# -- grain ----------------------------------------------------------------------------------------------------------------


def grain_iterator(dataset: Any, threads: int = 0, buffer: int = 0) -> Any:
    """The items of a MapDataset, made by threads, or by whoever takes them."""
    import grain.python as grain

    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer))


def grain_chain(n: int) -> Any:
    """With lists as batches, and no threads."""
    import grain.python as grain

    numbers = grain_iterator(grain.MapDataset.range(n).map(inc).filter(even))
    return numbers.batch(BATCH, drop_remainder=True, batch_fn=list)


def grain_shuffle(n: int) -> Any:
    """A permutation of a dataset whose length is known."""
    import grain.python as grain

    return grain_iterator(grain.MapDataset.range(n).shuffle(seed=0))


# -- spdl -----------------------------------------------------------------------------------------------------------------


def spdl_items(builder: Any, threads: int) -> Iterator[Any]:
    """What comes out of a pipeline, which is ended behind it."""
    pipeline = builder.add_sink(100).build(num_threads=threads)
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


def spdl_chain(n: int) -> Any:
    """Each call is sent to a thread; what is None is left out."""
    from spdl.pipeline import PipelineBuilder

    def chosen(x: int) -> int | None:
        return x if even(x) else None

    builder = PipelineBuilder().add_source(range(n)).pipe(inc).pipe(chosen).aggregate(BATCH, drop_last=True)
    return spdl_items(builder, 1)


# -- HF datasets ----------------------------------------------------------------------------------------------------------


def _numbers(n: int) -> Iterator[dict[str, int]]:
    for x in range(n):
        yield {"x": x}


def _hf_numbers(n: int) -> Any:
    from datasets import IterableDataset as Samples

    return Samples.from_generator(_numbers, gen_kwargs={"n": n})


def hf_chain(n: int) -> Any:
    """Its samples are dicts."""
    samples = _hf_numbers(n).map(lambda sample: {"x": inc(sample["x"])}).filter(lambda sample: even(sample["x"]))
    return (batch["x"] for batch in samples.batch(BATCH, drop_last_batch=True))


def hf_shuffle(n: int) -> Any:
    """Through a buffer; its samples are dicts."""
    return (sample["x"] for sample in _hf_numbers(n).shuffle(seed=0, buffer_size=BUFFER))
