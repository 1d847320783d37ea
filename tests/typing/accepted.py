"""What type checkers must accept, with the types that they must find."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, assert_type

from torch.utils.data import DataLoader

from squirrel_torch import (
    Composable,
    IterableSamplerSource,
    IterableSource,
    MemoryStore,
    Multiplexer,
    MultiplexingStrategy,
    ShardStore,
    StageReport,
    Written,
)
from squirrel_torch.integrations.sinks.csv import CSVSink
from squirrel_torch.iterstream.torch_composables import SplitByRank, TorchIterable


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
