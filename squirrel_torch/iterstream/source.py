"""Where streams begin."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress, count
from math import inf, isclose
from operator import length_hint
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch.utils.data import IterableDataset

from squirrel_torch.checks import require_at_least
from squirrel_torch.errors import ShardingError
from squirrel_torch.iterstream.base import ChainEnd, Composable, chained, copied, require_source
from squirrel_torch.iterstream.datapipe import is_datapipe, pipes_behind
from squirrel_torch.iterstream.oneshot import OneShot
from squirrel_torch.iterstream.run import Lifetime, Upstream, open_links
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.iterstream.stages import Monitored
from squirrel_torch.seeding import DEFAULT_SEED, Seed, resolve_seed
from squirrel_torch.sharding import WHOLE, Shard
from squirrel_torch.storage import Ids, NumberedBlocks, PartOfRows, Readable, Rows

if TYPE_CHECKING:
    import random
    from types import ModuleType

__all__ = ["FilePathGenerator", "IterableSamplerSource", "IterableSource", "MapStyle", "Mix", "Source"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# Their `__length_hint__` is exact: what was read can be told afterwards, and costs nothing while reading.
_EMPTY: tuple[Iterable[Any], ...] = ([], (), range(0), {}, {}.values(), {}.items(), set(), "", b"")
_COUNTABLE = tuple(type(iter(kind)) for kind in _EMPTY)


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
        if isinstance(source, IterableDataset) and not is_datapipe(source) and lifetime.automatic:
            raise ShardingError(
                "the stream has no split, and can't be split automatically: its source is the dataset "
                f"{type(source).__qualname__}, which may divide its items among ranks and workers itself. If it doesn't, add "
                ".split_by_rank() and .split_by_worker() to the chain; if it does, end it with .to_torch_iterable(False, False)"
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


class Mix(Source[T_co]):
    """A source over several streams, its `branches`."""

    branches: list[Composable[Any]]

    @property
    def _branches(self) -> list[list[Composable[Any]]]:
        return [branch._links() for branch in self.branches]


class IterableSamplerSource(Mix[T_co]):
    """Items of several streams, mixed at random until all are exhausted.

    Each item comes from a stream drawn by its probability. When a stream is exhausted the probabilities of the others are
    normalized. Which stream comes next depends on (seed, epoch) alone: it is the same on all ranks, and new in each epoch.

    Args:
        iterables: The streams: composables or other iterables.
        probs: A probability for each, positive, adding up to 1. By default all are equal.
        rng: A seed is drawn from it, now. The generator is not used afterwards.
        seed: By default `squirrel_torch.seeding.DEFAULT_SEED`.

    Raises:
        ValueError: If there is no stream, if the probabilities are not as said, or if both `rng` and `seed` are given.

    Example:
        >>> sum(IterableSamplerSource([[1, 2, 3], [4, 5]], probs=[0.7, 0.3]).collect())
        15
    """

    def __init__(
        self,
        iterables: Sequence[Iterable[T_co]],
        probs: Sequence[float] | None = None,
        rng: random.Random | ModuleType | None = None,
        seed: Seed = None,
    ) -> None:
        super().__init__()
        self.branches = as_branches("iterables", iterables)
        self.probs = check_probabilities("probs", probs, len(self.branches))
        self.seed = resolve_seed(seed, rng)

    @property
    def _draws(self) -> bool:
        return True

    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[T_co]:
        return shard.of(self._mixed(context, lifetime))

    def _mixed(self, context: Context, lifetime: Lifetime) -> Iterator[T_co]:
        draws = chain.from_iterable(block.tolist() for block in context.uniforms(self.seed))
        weights = list(self.probs)
        with OpenBranches(self.branches, context, lifetime) as alive:
            streams = list(alive.streams)
            while streams:
                index = pick(weights, next(draws))
                # Not `yield next(...)` in a try: a StopIteration thrown in by the consumer is not the end of a stream.
                for item in streams[index]:
                    yield item
                    break
                else:
                    del streams[index], weights[index]

    def _describe(self) -> str:
        return f"IterableSamplerSource({len(self.branches)} streams)"


def as_branches(name: str, streams: Sequence[Iterable[Any]]) -> list[Composable[Any]]:
    """The streams of a mix as composables.

    Raises:
        TypeError: If it is one stream instead of a list of them.
        ValueError: If there is none.
    """
    if isinstance(streams, Composable | ChainEnd | str):
        raise TypeError(f"{name} must be a list of streams, got one stream: {streams!r}")
    branches = [stream if isinstance(stream, Composable) else IterableSource(stream) for stream in streams]
    if not branches:
        raise ValueError(f"{name} must hold at least one stream, got {streams!r}")
    return _told_apart(branches, [])


def _told_apart(branches: Sequence[Composable[Any]], others: list[Monitored[Any]]) -> list[Composable[Any]]:
    """The streams of a mix; monitors in several of them that would give the same names get numbers, as in one chain.

    Args:
        branches: The streams.
        others: The monitors before them; theirs are added.
    """
    apart: list[Composable[Any]] = []
    for branch in branches:
        links = branch._links()
        numbered = [_numbered(link, others) for link in links]
        changed = any(one is not link for one, link in zip(numbered, links, strict=True))
        apart.append(chained(numbered) if changed else branch)
    return apart


def _numbered(link: Composable[Any], others: list[Monitored[Any]]) -> Composable[Any]:
    """A place of such a stream: itself, or a copy with another prefix."""
    stage = link._stage
    if isinstance(link, Mix):
        branches = _told_apart(link.branches, others)
        if any(one is not branch for one, branch in zip(branches, link.branches, strict=True)):
            mix: Mix[Any] = copied(link)
            mix.branches = branches
            return mix
    elif isinstance(stage, Monitored):
        apart = stage.told_apart(others)
        others.append(apart)
        if apart is not stage:
            link = copied(link)
            link._stage = apart
    return link


def check_probabilities(name: str, probabilities: Sequence[float] | None, streams: int) -> list[float]:
    """A copy of `probabilities` that adds up to exactly what floats allow; equal ones if None.

    Raises:
        ValueError: If there is not one for each stream, if one is not positive, or if they don't add up to 1.
    """
    if probabilities is None:
        return [1 / streams] * streams
    if len(probabilities) != streams:
        raise ValueError(
            f"{name} must hold a number for each of the {streams} streams, got {len(probabilities)}: {probabilities!r}"
        )
    if not all(0 < probability < inf for probability in probabilities):
        raise ValueError(f"{name} must all be positive, got {list(probabilities)!r}")
    total = sum(probabilities)
    if not isclose(total, 1, abs_tol=1e-6):
        raise ValueError(f"{name} must add up to 1, got {list(probabilities)!r}, which add up to {total!r}")
    return [float(probability) / total for probability in probabilities]


def pick(weights: Sequence[float], draw: float) -> int:
    """The index that `draw`, in [0, 1), falls on where each index has a share of [0, 1) in proportion to its weight."""
    target = draw * sum(weights)
    for index, weight in enumerate(weights):
        target -= weight
        if target < 0:
            return index
    return len(weights) - 1  # rounding


class OpenBranches:
    """The streams of a mix in one run, each with a lifetime of its own.

    Args:
        branches: The streams as composables.
        context: That of the mix.
        lifetime: That of the mix.
    """

    def __init__(self, branches: Sequence[Composable[Any]], context: Context, lifetime: Lifetime) -> None:
        self._branches = branches
        self._context = context
        self._lifetime = lifetime
        self._lifetimes = [lifetime.child(f"branch {index}") for index in range(len(branches))]
        self.streams: list[Iterator[Any]] = []

    def _open(self, index: int, opening: int) -> Iterator[Any]:
        below = self._context.below("branch", index, opening)
        return open_links(self._branches[index]._links(), below, self._lifetimes[index])

    def open_again(self, index: int, opening: int) -> None:
        """Start a stream anew, for the (`opening` + 1)-th time in this run: it is shuffled differently."""
        self._lifetimes[index].close("closed")
        self._lifetimes[index] = self._lifetime.child(f"branch {index}")
        self.streams[index] = self._open(index, opening)

    def __enter__(self) -> OpenBranches:
        self.streams = [self._open(index, 0) for index in range(len(self._branches))]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        for lifetime in self._lifetimes:
            lifetime.__exit__(kind, error, traceback)


class FilePathGenerator(Source[str]):
    """The paths under a URL, sorted.

    Args:
        url: A folder on any filesystem that fsspec knows. Paths carry the protocol that `url` carries.
        nested: Give the files of all folders below too, each folder's in the place of the folder; links to folders are not
            followed. Otherwise the entries of the folder itself are given, folders among them.
        max_workers: Threads that list folders; None is Python's default. Only with `nested`.
        max_keys: No folders are listed ahead while more paths than this are held in memory.
        max_dirs: At most this many folders are listed ahead.
        **storage_options: Passed to the filesystem of fsspec.

    Raises:
        FileNotFoundError: When the stream starts, if there is nothing at `url`.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        nested: bool = False,
        max_workers: int | None = None,
        max_keys: int = 1_000_000,
        max_dirs: int = 10,
        **storage_options: Any,
    ) -> None:
        super().__init__()
        require_at_least("max_keys", max_keys, 1)
        require_at_least("max_dirs", max_dirs, 1)
        if max_workers is not None:
            require_at_least("max_workers", max_workers, 1)
        self.url = os.fspath(url)
        self.nested = nested
        self.max_workers = max_workers
        self.max_keys = max_keys
        self.max_dirs = max_dirs
        self.storage_options = storage_options

    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[str]:
        paths = self._paths()
        lifetime.opened(self, 0, paths)
        return self._counted(paths, lifetime, shard)

    def _paths(self) -> Iterator[str]:
        import fsspec

        from squirrel_torch.storage.folders import Folders

        # Made here, in the process that reads: filesystems with connections don't survive a fork.
        filesystem, root = fsspec.core.url_to_fs(self.url, **self.storage_options)
        with_protocol = "://" in self.url or "::" in self.url
        folders = Folders(filesystem, self.max_workers, self.max_keys, self.max_dirs)
        for path in folders.walk(root) if self.nested else (path for path, _ in folders.entries(root)):
            yield filesystem.unstrip_protocol(path) if with_protocol else path

    def _describe(self) -> str:
        return f"FilePathGenerator({self.url!r}, nested={self.nested})"
