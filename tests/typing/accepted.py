"""What type checkers must accept, with the types that they must find."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, assert_type

from torch.utils.data import DataLoader

from squirrel_torch import (
    Composable,
    FilePathGenerator,
    FilesystemStore,
    IterableSamplerSource,
    IterableSource,
    MemoryStore,
    Multiplexer,
    MultiplexingStrategy,
    Origin,
    Run,
    ShardStore,
    Stage,
    StageReport,
    StreamDataModule,
    StreamLoader,
    Written,
)
from squirrel_torch.integrations.sinks.csv import CSVSink
from squirrel_torch.iterstream.torch_composables import SplitByRank, TorchIterable
from squirrel_torch.observe import Report, Verdict
from squirrel_torch.storage.formats import open_files


def half(x: int) -> float:
    return x / 2


def scaled(x: int, factor: float = 1.0) -> float:
    return x * factor


def words(text: str) -> list[str]:
    return text.split()


def numbered(items: Iterator[int], start: int) -> Iterator[tuple[int, int]]:
    return enumerate(items, start)


def total(batch: list[int]) -> int:
    return sum(batch)


async def fetch(x: int) -> bytes:
    return bytes(x)


def told(error: Exception, item: int) -> None:
    pass


class Squares:
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int, /) -> int:
        return index**2


@dataclass(frozen=True)
class Halved(Stage[int, float]):
    def apply(self, items: Iterator[int]) -> Iterator[float]:
        for item in items:
            yield item / 2


class Doubled(Composable[int]):
    def __iter__(self) -> Iterator[int]:
        for item in self.source:
            yield 2 * item


source = IterableSource([1, 2, 3])
assert_type(source, IterableSource[int])
assert_type(source.map(half), Composable[float])
assert_type(source.map(lambda x: str(x)), Composable[str])
assert_type(source.map(scaled, factor=2.0), Composable[float])
assert_type(source.monitor("wandb", every_items=1000, ranks="each"), Composable[int])
assert_type(source.monitor(CSVSink("figures.csv"), "raw "), Composable[int])
assert_type(source.monitor(print, step=3), Composable[int])
assert_type(source.async_map(half, buffer=10, max_workers=2), Composable[float])
assert_type(source.async_map(lambda x: x * 2), Composable[int])
assert_type(source.async_map(fetch, buffer="auto", timeout=1.0, on_error="skip"), Composable[bytes])
assert_type(
    source.async_map(half, executor="process", ordered=False, max_failures=Fraction(1, 100), on_error=told), Composable[float]
)
assert_type(source.async_map(half, executor="tcp://localhost:8786", retry_on=(OSError, ValueError)), Composable[float])
assert_type(source.async_map(half, executor=ThreadPoolExecutor(1), chunksize=4), Composable[float])
assert_type(source.async_map(scaled, executor="thread", factor=2.0), Composable[float])
assert_type(source.run().reports, list[StageReport])
assert_type(source.filter(lambda x: x > 1), Composable[int])
assert_type(source.map(str).batched(3), Composable[list[str]])
assert_type(source.batched(3, total), Composable[int])
assert_type(source.batched(3, drop_last_if_not_full=False).flatten(), Composable[int])
assert_type(IterableSource(["a b"]).flat_map(words), Composable[str])
assert_type(source.to(numbered, 1), Composable[tuple[int, int]])
assert_type(source.zip_index(), Composable[tuple[int, int]])
assert_type(source.zip_index(4), Composable[tuple[str, int]])
assert_type(source.sliding(2, deepcopy=False), Composable[list[int | None]])
assert_type(source.shuffle(10).take(2).skip(1).loop(3), Composable[int])
assert_type(source.compose(Doubled), Doubled)
assert_type(source.compose(SplitByRank), SplitByRank)
assert_type(source.split_by_rank().split_by_worker().to_torch_iterable(), TorchIterable[int])
assert_type(source.collect(), list[int])
assert_type(IterableSource(lambda: iter([1.0])).collect(), list[float])
assert_type(IterableSamplerSource([[1], [2]], probs=[0.5, 0.5]).collect(), list[int])
assert_type(Multiplexer([source, source], MultiplexingStrategy.ROUND_ROBIN).collect(), list[int])

store = MemoryStore()
assert_type(IterableSource(store.keys()).prefetch(store), Composable[Any])
source.sink(store)
DataLoader(source.to_torch_iterable(), batch_size=None)
with source.run() as run:
    assert_type(next(run), int)

from_shards = IterableSource(ShardStore("folder"))
assert_type(from_shards, IterableSource[Any])
assert_type(IterableSource(ShardStore("folder").select([1, 2])), IterableSource[Any])
assert_type(from_shards.sink(ShardStore("another"), executor="process", progress=True), Written)

# The other methods of a chain.
assert_type(source.join(), None)
assert_type(source.tqdm(desc="items"), Composable[int])
assert_type(source.numba_map(half), Composable[float])
assert_type(source.dask_map(scaled, factor=2.0).materialize_dask(buffer=4), Composable[Any])
assert_type(source.split_by_rank_pytorch().split_by_worker_pytorch(), Composable[int])
assert_type(source.then(Halved()), Composable[float])
assert_type(source.map(half).source_([1.0]), Composable[float])
assert_type(source.set_epoch(3), None)
assert_type(source.run(epoch=3), Run[int])
assert_type(source.explain().mode, str)
assert_type(source.profile(100, seconds=1.0).verdict, Verdict)

# Where streams begin.
assert_type(IterableSource({"a": 1}), IterableSource[str])
assert_type(IterableSource(Squares()), IterableSource[int])
assert_type(IterableSource(open_files("texts.jsonl")), IterableSource[Any])
assert_type(FilePathGenerator("images", nested=True).map(len), Composable[int])
assert_type(IterableSamplerSource([source, [4]]), IterableSamplerSource[int])

# Loaders.
assert_type(StreamLoader(source.batched(2)), StreamLoader[list[int]])
assert_type(StreamLoader(source.batched(2).to_torch_iterable(), num_workers=2, tail="pad"), StreamLoader[list[int]])
assert_type(next(iter(StreamLoader(source.batched(2), device="cpu"))), list[int])
assert_type(StreamLoader(source, 2, collate_fn=total, drop_last=True), StreamLoader[int])
assert_type(StreamLoader(source, batch_size=2), StreamLoader[Any])  # what torch's default_collate makes
loader = StreamLoader(source.batched(2, total))
for batch in loader:
    assert_type(batch, int)
assert_type(len(loader), int)
assert_type(loader.samples(3), list[Origin])
assert_type(loader.replay(3, epoch=1, rank=0), int)
assert_type(loader.skip(3, 4), None)
assert_type(loader.state_of_epoch(2), dict[str, Any])
loader.load_state_dict(loader.state_dict())
loader.load_state_dict([loader.state_dict(), loader.state_dict(held=1)])
assert_type(loader.waited.share, float)
assert_type(loader.report(ranks=True), Report)
assert_type(loader.batches_of_epoch(1), int | None)
with loader.watch(every=2.0), loader.trace("trace.json") as tracing:
    assert_type(tracing.path, Path)

# Stores.
for any_store in (store, FilesystemStore("folder", "json"), ShardStore("folder", "append", compression="zstd")):
    assert_type(any_store.set({"x": 1}), str)
    assert_type(any_store.set_many([1, 2], keys=["a", "b"]), list[str])
    assert_type(any_store.get_many(any_store.keys()), list[Any])
    assert_type(any_store.contains_many(["a"]), list[bool])
    assert_type(list(any_store.keys()), list[str])
    assert_type(any_store.flush(), None)
assert_type(ShardStore("folder").metadata, dict[str, Any])
assert_type(ShardStore("folder").remove_unlisted(), list[str])

# Lightning.
data = StreamDataModule(source.batched(2), val=[source.batched(2)], num_workers=2, val_options={"tail": "exact"})
assert_type(data, StreamDataModule)
assert_type(data.loader(source, "val"), StreamLoader[Any])
assert_type(data.state_dict(), dict[str, Any])
