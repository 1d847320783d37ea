"""Where streams begin."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import compress, count
from operator import length_hint
from types import GeneratorType
from typing import Any, Protocol, TypeVar

from torch.utils.data import IterableDataset

from squirrel_torch.errors import ShardingError
from squirrel_torch.iterstream.base import ChainEnd, Composable, require_source
from squirrel_torch.iterstream.datapipe import is_datapipe, pipes_behind
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.iterstream.oneshot import OneShot
from squirrel_torch.iterstream.run import Upstream, open_links
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.seeding import DEFAULT_SEED
from squirrel_torch.sharding import WHOLE, Shard
from squirrel_torch.storage import Ids, NumberedBlocks, PartOfRows, Readable, Rows

__all__ = ["IterableSource", "MapStyle", "Source", "may_divide_itself"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# Their `__length_hint__` is exact: what was read can be told afterwards, and costs nothing while reading.
_EMPTY: tuple[Iterable[Any], ...] = ([], (), range(0), {}, {}.values(), {}.items(), set(), "", b"")
_COUNTABLE = tuple(type(iter(kind)) for kind in _EMPTY)


def may_divide_itself(source: object) -> bool:
    """Whether a source may give other items in each worker or rank, by itself: a dataset that is not ours."""
    return isinstance(source, IterableDataset) and not is_datapipe(source)


class MapStyle(Protocol[T_co]):
    """A map-style dataset: `dataset[i]` for i from 0 to `len(dataset)` - 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T_co: ...


class Source(Composable[T_co]):
    """A composable that begins a stream. Subclasses implement `_items`."""

    _begins = True

    @abstractmethod
    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[T_co]:
        """The items of `shard`."""

    def _open(self, upstream: Upstream[Any], context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[T_co]:
        return super()._open(upstream, context, lifetime, shard) if self._custom else self._items(context, lifetime, shard)

    def _numbered(self, rows: Rows, numbers: Iterator[Ids], lifetime: Lifetime) -> Iterator[T_co]:
        """The items of these numbers, block by block."""
        if rows.get is not None:
            return self._gotten(rows.get, numbers)
        part = PartOfRows(NumberedBlocks(rows, numbers))
        lifetime.opened(self, 0, part.source)
        lifetime.reads(self, part.position)
        return part

    def _gotten(self, get: Callable[[int], T_co], numbers: Iterator[Ids]) -> Iterator[T_co]:
        for ids in numbers:
            # Read by messages: the number of the item is `position` without what `left` says.
            position, left = int(ids.max()), _Numbers(ids)  # noqa: F841
            yield from map(get, left.numbers)

    def _counted(self, items: Iterator[T], lifetime: Lifetime, shard: Shard = WHOLE) -> Iterator[T]:
        """`items` reduced to `shard`, so that messages can say how many were read."""
        if isinstance(items, _COUNTABLE):
            total = length_hint(items)
            lifetime.reads(self, lambda: total - length_hint(items))
            return shard.of(items)
        # A counter that runs in C. The run never closes this iterator, which may be the caller's own.
        counter = count(1)
        lifetime.reads(self, lambda: next(counter) - 1)
        counted = compress(items, counter)
        return shard.of(counted if isinstance(items, GeneratorType) else self._pulled(counted))

    def _pulled(self, items: Iterator[T]) -> Iterator[T]:
        # An iterator that is not Python's has no frame by which messages could tell whose error it was.
        for item in items:  # noqa: UP028  # `yield from` would close it
            yield item


class _Numbers:
    """A block of numbers that are gone through, and how far the number that is being dealt with is below the largest."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self.numbers = iter(ids.tolist())

    def __length_hint__(self) -> int:
        number = self._ids[max(0, len(self._ids) - length_hint(self.numbers) - 1)]
        return int(self._ids.max() - number)


class IterableSource(Source[T_co]):
    """A stream of the items of an iterable.

    Args:
        source: One of

            * an iterable: a list, a set of keys, a dict (its keys), an `IterableDataset`, an IterDataPipe of torch, another
              composable;
            * a callable without arguments that gives an iterable, such as a generator function. It is called anew in each
              pass;
            * a store: its samples;
            * a map-style dataset: `dataset[0]` to `dataset[len(dataset) - 1]`. A split right behind it reads only the
              items of its own share.

            An iterator (a generator, an open file) gives its items once; a second pass raises ExhaustedSourceError.

    Raises:
        TypeError: If `source` is none of these.

    Example:
        >>> IterableSource([1, 2, 3]).map(lambda x: x * 10).collect()
        [10, 20, 30]
        >>> def numbers():
        ...     yield from (1, 2)
        >>> IterableSource(numbers).collect()
        [1, 2]
    """

    def __init__(self, source: Iterable[T_co] | Callable[[], Iterable[T_co]] | MapStyle[T_co] = ()) -> None:
        require_source(source)
        if isinstance(source, Readable):
            source._prepare()
        super().__init__(source=source)  # type: ignore[arg-type]  # wider than what a composable takes

    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[T_co]:
        source = self.source
        lifetime.reads(self, lambda: 0)  # what an earlier pass has counted is past
        if isinstance(source, Readable):
            return self._read(source._part(shard), lifetime, shard)
        if hasattr(type(source), "__iter__"):
            self._prepare_foreign(source, context, lifetime)
            return self._counted(self._owned(source, lifetime), lifetime, shard)
        if callable(source):
            return self._made(source(), context, lifetime, shard)
        return self._fetched(source.__getitem__, iter(range(shard.index, len(source), shard.count)), shard)

    def _read(self, part: Iterator[T_co], lifetime: Lifetime, shard: Shard) -> Iterator[T_co]:
        """The items of `shard`, as a store or a file gives them."""
        if isinstance(part, PartOfRows):
            lifetime.opened(self, 0, part.source)
            lifetime.reads(self, part.position)
            return part
        lifetime.opened(self, 0, part)
        counter = count(1)
        lifetime.reads(self, lambda: max(0, shard.index + shard.count * (next(counter) - 2) + 1))
        return compress(part, counter)

    def _fetched(self, fetch: Callable[[Any], T_co], keys: Iterator[Any], shard: Shard) -> Iterator[T_co]:
        """The items of `shard`, each asked for by its key: those of other shards are never made."""
        position = shard.index - shard.count  # read by messages
        for key in keys:
            position += shard.count
            yield fetch(key)

    def _made(self, made: Any, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[T_co]:
        """The items of what the callable gave."""
        if isinstance(made, ChainEnd):
            made = made.source
        if not isinstance(made, Composable):
            self._prepare_foreign(made, context, lifetime)
            return self._counted(self._owned(made, lifetime), lifetime, shard)
        from squirrel_torch.iterstream.splits import splits_of

        if splits_of(made):
            raise ShardingError(
                f"{self._describe()} gives a chain that is split: split behind the source, where it can be checked"
            )
        lifetime.reads(self, None)
        return self._through(made, context.below("made"), lifetime.child("the chain that the source makes"), shard)

    def _through(self, made: Composable[T_co], context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[T_co]:
        with lifetime:
            yield from open_links(made._links(), context, lifetime, shard)

    def _owned(self, iterable: Iterable[T_co], lifetime: Lifetime) -> Iterator[T_co]:
        iterator = iter(iterable)
        # A generator that was made for this run ends with it; one that the caller made is the caller's.
        if isinstance(iterator, GeneratorType):
            lifetime.opened(self, 0, iterator, owned=not isinstance(iterable, OneShot))
        return iterator

    def _prepare_foreign(self, source: object, context: Context, lifetime: Lifetime) -> None:
        """Give the pipes behind a pipe of torch the epoch, and refuse what might be divided twice.

        Torch's own shuffles get the same seed on all ranks and workers, and a new one in each epoch.
        """
        if may_divide_itself(source) and lifetime.automatic:
            raise ShardingError(
                "the stream lacks a split, and can't be split automatically: its source is the dataset "
                f"{type(source).__qualname__}, which may divide its items among ranks and workers itself. If it doesn't, add "
                ".split_by_rank() and .split_by_worker() to the chain; if it does, use a DataLoader over "
                ".to_torch_iterable(False, False)"
            )
        if not is_datapipe(source):
            return
        for number, pipe in enumerate(pipes_behind(source)):
            if isinstance(pipe, Composable):
                pipe.set_epoch(context.epoch)
                continue
            for held in vars(pipe).values():
                if not is_datapipe(held):
                    self._prepare_foreign(held, context, lifetime)
            if hasattr(pipe, "set_seed"):
                (draw,) = next(context.below("foreign", number).uniforms(DEFAULT_SEED))[:1]
                pipe.set_seed(int(draw * 2**32))

    def _describe(self) -> str:
        source = self.source
        if isinstance(source, OneShot):
            return f"IterableSource({source.name})"
        if isinstance(source, Readable):
            return f"IterableSource({source!r})"  # to count it may mean to read it
        name = getattr(source, "__qualname__", type(source).__qualname__).rpartition("<locals>.")[2]
        try:
            size = f" of {len(source)}"
        except Exception:  # noqa: BLE001  # a length that can't be had is none, whatever the reason
            size = ""
        return f"IterableSource({name}{size})"
