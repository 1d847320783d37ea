"""The running chain: what `iter(pipeline)` returns, and all that changes while items flow."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

from squirrel_torch.errors import PipelineError
from squirrel_torch.iterstream.blame import Opened
from squirrel_torch.iterstream.lifetime import END, Lifetime, Link, Observer, guarded
from squirrel_torch.iterstream.report import StageReport
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.seeding import Path
from squirrel_torch.sharding import WHOLE, Shard

__all__ = ["Run", "Upstream", "open_links"]

T = TypeVar("T")


class Run(chain[T]):
    """One pass over a pipeline: an iterator at the speed of the bare generators inside it.

    It ends by giving its last item, by `close()`, by leaving a ``with``, by an error, or when nobody holds it any more;
    each of these closes all that it opened. After an error it raises that error again, never a quiet end.

    Being an `itertools.chain` it has no Python code of its own on the way of an item: it chains the pipeline's generator
    and, behind that, whatever has to be said after its end.

    Args:
        links: The pipeline, from the source to the last stage.
        claim_epoch: Gives the number of the epoch. Called when the first item is asked for.
        path: What its random numbers depend on besides, for a run inside a run.
        observer: Looks at it while it goes on.
    """

    _lifetime: Lifetime
    _items: Generator[T, None, None]

    def __new__(
        cls, links: Sequence[Link], claim_epoch: Callable[[], int], path: Path = (), observer: Observer | None = None
    ) -> Run[T]:
        """Make the run; nothing is opened before its first item is asked for."""
        lifetime = Lifetime(observer)

        def start() -> Iterator[T]:
            return open_links(links, Context(claim_epoch(), path, lifetime.reports), lifetime)

        # The generator must not know the run: a cycle would keep an abandoned run alive until the garbage collector comes.
        items = guarded(lifetime, start)
        afterwards: Iterator[Any] = iter(lifetime.after, END)
        run = super().__new__(cls, items, afterwards)
        run._lifetime = lifetime
        run._items = items
        return run

    @property
    def reports(self) -> list[StageReport]:
        """What the stages saw that keep count, so far: those that were started, in the order of the chain."""
        return list(reversed(self._lifetime.reports.values()))

    def close(self) -> None:
        """End the run now. What it opened is closed; asking for more raises ClosedRunError.

        Raises:
            PipelineError: If another thread, or a callback of the run itself, is asking it for an item right now.
        """
        if inspect.getgeneratorstate(self._items) == inspect.GEN_RUNNING:
            raise PipelineError("a run can't be closed while it makes an item: one thread asks a run for items and closes it")
        self._items.close()
        self._lifetime.close("closed")

    def __enter__(self) -> Run[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> Any:
        """Refused: it is one pass that goes on."""
        raise TypeError("a run can't be pickled: it is one pass that goes on; pickle the pipeline and iterate it there")


def open_links(links: Sequence[Link], context: Context, lifetime: Lifetime, shard: Shard = WHOLE) -> Iterator[Any]:
    """The iterator of the last link over those of the links before it, reduced to `shard`.

    The random numbers of a link depend on how many links before it draw some: putting a stage without randomness into a
    pipeline changes no order.
    """
    *before, last = links
    own = context.below(sum(link._draws for link in before))
    entry = lifetime.opened(last, len(before))
    iterator = last._open(Upstream(before, context, lifetime), own, lifetime, shard)
    entry.iterator = iterator
    return iterator if last._follows else lifetime.seen(entry, iterator)


class Upstream(Iterable[T]):
    """The links before a stage. Each `iter()` opens them anew; a second pass shuffles differently from the first."""

    def __init__(self, links: Sequence[Link], context: Context, lifetime: Lifetime) -> None:
        self.links = links
        self.context = context
        self._lifetime = lifetime
        self._passes = 0
        self._chains = 0
        self._own = WHOLE
        self._pass: list[Opened] = []

    def __iter__(self) -> Iterator[T]:
        return self.part(WHOLE)

    def limited(self, shard: Shard) -> Upstream[T]:
        """The same, but for what is not of `shard`."""
        upstream: Upstream[T] = Upstream(self.links, self.context, self._lifetime)
        upstream._own = shard
        return upstream

    def release(self) -> None:
        """Close what the last pass opened: nobody will ask it for more."""
        self._lifetime.release(self._pass)
        self._pass = []

    def inner_context(self) -> Context:
        """The context of one more chain that is put onto it while it runs."""
        self._chains += 1
        return self.context.below("within", len(self.links), self._passes, self._chains)

    def __getattr__(self, name: str) -> Any:
        """The fluent methods, for composables that use them on `self.source` while they run."""
        from squirrel_torch.iterstream.iterable import IterableSource

        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(IterableSource(self), name)

    def part(self, shard: Shard) -> Iterator[T]:
        """Open the links, reduced to `shard`: a source that can seek makes no items of other shards.

        Raises:
            PipelineError: If there are none.
        """
        if not self.links:
            raise PipelineError("the chain has no source: put its first stage onto a stream with compose or source_")
        # The number tells the passes of a loop from those of a loop around it, whatever else stands in the chain.
        number = sum(link._draws or link._repeats for link in self.links)
        context = self.context.below("pass", number, self._passes) if self._passes else self.context
        self._passes += 1
        before = len(self._lifetime.remembered())
        iterator = open_links(self.links, context, self._lifetime, shard.within(self._own))
        self._pass = self._lifetime.remembered()[before:]
        return iterator
