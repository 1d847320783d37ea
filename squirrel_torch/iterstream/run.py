"""The running chain: what `iter(pipeline)` returns, and all that changes while items flow."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from types import GeneratorType, TracebackType
from typing import Any, Final, Protocol, TypeVar

from squirrel_torch.errors import ClosedRunError, PipelineError
from squirrel_torch.iterstream.blame import NamedLink, Opened, add_note
from squirrel_torch.iterstream.report import StageReport
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.seeding import Path
from squirrel_torch.sharding import WHOLE, Shard

__all__ = ["Link", "Observer", "Run", "Upstream", "open_links"]

T = TypeVar("T")

_log = logging.getLogger(__name__)
_END: Final = object()


class Link(NamedLink, Protocol):
    """One place of a chain, as the run sees it: a composable."""

    @property
    def _draws(self) -> bool:
        """Whether it uses random numbers."""

    @property
    def _repeats(self) -> bool:
        """Whether it may read what stands before it several times in one pass."""

    @property
    def _follows(self) -> bool:
        """Whether it makes items with their ids: all places up to it are opened once more for that, and are seen there."""

    def _open(self, upstream: Upstream[Any], context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[Any]:
        """Its iterator over the links before it, reduced to `shard`."""


class Observer(Protocol):
    """Who looks at runs while they go on."""

    def begins(self, lifetime: Lifetime) -> None:
        """A run, or a branch of one, begins."""

    def around(self, lifetime: Lifetime, entry: Opened, items: Iterator[Any]) -> Iterator[Any]:
        """What whoever reads this place gets instead of its iterator: best that itself."""

    def ends(self, lifetime: Lifetime) -> None:
        """It is over; what it has opened is still known."""


class Lifetime:
    """All that a run opened, and how it ended.

    Args:
        observer: Looks at it, if anybody does.
        branch: Which branch of the run it is, from the outside in.
    """

    def __init__(self, observer: Observer | None = None, branch: tuple[str, ...] = ()) -> None:
        self.observer = observer
        self.branch = branch
        self._opened: list[Opened] = []
        self._reads: dict[int, Callable[[], int]] = {}
        self._children: list[tuple[str, Lifetime]] = []
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._end: str | None = None
        self.reports: dict[int, StageReport] = {}
        self.automatic = False
        """Whether the stream is split, among several processes, by a split that nobody wrote."""
        if observer is not None:
            observer.begins(self)

    def __enter__(self) -> Lifetime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None or kind is GeneratorExit:  # after an error it is asked whose that was
            self.close("closed")

    def opened(self, link: Link, place: int, iterator: Iterator[Any] | None = None, *, owned: bool = True) -> Opened:
        """Remember an iterator of the run, so that the end of the run closes it if it is the run's own.

        A link is remembered before its iterator exists: opening it may fail too.
        """
        entry = Opened(link, place, iterator, owned)
        self._opened.append(entry)
        return entry

    def child(self, label: str) -> Lifetime:
        """A lifetime for a branch. It ends with this one, or before, when it is closed."""
        self._children = [(name, child) for name, child in self._children if child._end is None]
        child = Lifetime(self.observer, (*self.branch, label.removeprefix("branch ")))
        child.automatic = self.automatic
        child.reports = self.reports
        self._children.append((label, child))
        return child

    def seen(self, entry: Opened, items: Iterator[Any]) -> Iterator[Any]:
        """The items of a place, as whoever reads it gets them."""
        return items if self.observer is None else self.observer.around(self, entry, items)

    @property
    def read(self) -> dict[int, Callable[[], int]]:
        """By the ids of sources, how to ask how many items of them were read."""
        return dict(self._reads)

    def remembered(self) -> list[Opened]:
        """The iterators that were opened and not released, in the order of their opening."""
        return list(self._opened)

    def release(self, entries: Sequence[Opened]) -> None:
        """Close iterators that are not needed any more, and forget them."""
        self._opened = [entry for entry in self._opened if entry not in entries]
        if errors := _close_generators(entries):
            raise errors[0]

    def reads(self, source: Link, count: Callable[[], int] | None) -> None:
        """Remember how to ask, once, how many items of a source were read; None forgets it."""
        if count is None:
            self._reads.pop(id(source), None)
        else:
            self._reads[id(source)] = count

    def fail(self, error: BaseException) -> None:
        """An item could not be made: say where, end all, and remember it for whoever asks for more."""
        self._error, self._traceback, self._end = error, error.__traceback__, "failed"
        try:
            if isinstance(error, Exception):
                self._blame(error, "")
            self.close("failed")
        except Exception as another:  # noqa: BLE001  # the user's error must come out, whatever goes wrong while it does
            _log.warning("after %r: %r", error, another)

    def _blame(self, error: Exception, label: str) -> None:
        for name, child in self._children:
            child._blame(error, f"{label}{name}, ")
        add_note(error, self._opened, self._reads, label)

    def close(self, end: str) -> None:
        """Close every iterator of the run, the last stage's first. The first call says how the run ended.

        Raises:
            Exception: The first that an iterator raised while it was closed; all others have been closed too.
        """
        if self._end is None:
            self._end = end
        if self.observer is not None:
            self.observer.ends(self)
            self.observer = None
        errors = _close_generators(self._opened)
        for _, child in self._children:
            try:
                child.close(end)
            except Exception as error:  # noqa: BLE001  # raised below
                errors.append(error)
        if errors:
            raise errors[0]
        self._opened, self._children, self._reads = [], [], {}

    def after(self) -> object:
        """What comes after the last item: `_END`, or an error, again and again."""
        if self._end == "exhausted":
            return _END
        if isinstance(self._error, Exception):
            # Its traceback as it was the first time: raising adds the frames of whoever asks now.
            raise self._error.with_traceback(self._traceback)
        how = f"was ended by {type(self._error).__name__}" if self._error is not None else "was closed"
        raise ClosedRunError(f"this run {how} before its last item; start a new one with iter(pipeline)")


def _close_generators(entries: Sequence[Opened]) -> list[Exception]:
    """Close those that belong to the run, the last stage's first; what they raised while they were closed."""
    errors = []
    for entry in sorted(entries, key=attrgetter("place"), reverse=True):
        # One that runs does so in a thread that a stage has left behind, which was told to end: it closes with that.
        if entry.owned and isinstance(entry.iterator, GeneratorType) and not entry.iterator.gi_running:
            try:
                entry.iterator.close()
            except Exception as error:  # noqa: BLE001  # the others have to be closed too
                errors.append(error)
    return errors


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
        # The generator must not know the run: a cycle would keep an abandoned run alive until the garbage collector comes.
        items: Generator[T, None, None] = _guarded(lifetime, links, claim_epoch, path)
        afterwards: Iterator[Any] = iter(lifetime.after, _END)
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


def _guarded(
    lifetime: Lifetime, links: Sequence[Link], claim_epoch: Callable[[], int], path: Path
) -> Generator[Any, None, None]:
    try:
        yield from open_links(links, Context(claim_epoch(), path, lifetime.reports), lifetime)
        lifetime.close("exhausted")
    except GeneratorExit:
        lifetime.close("closed")
        raise
    except BaseException as error:
        lifetime.fail(error)
        raise


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
