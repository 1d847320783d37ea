"""What a run has opened, from its first item to its end, and who looks at it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from operator import attrgetter
from types import GeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from squirrel_torch.errors import ClosedRunError
from squirrel_torch.iterstream.blame import NamedLink, Opened, add_note
from squirrel_torch.iterstream.report import StageReport
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.sharding import Shard

if TYPE_CHECKING:
    from squirrel_torch.iterstream.run import Upstream

__all__ = ["END", "Lifetime", "Link", "Observer", "guarded"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

END: Final = object()
"""Comes after the last item of a run."""


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
        """What comes after the last item: `END`, or an error, again and again."""
        if self._end == "exhausted":
            return END
        if isinstance(self._error, Exception):
            # Its traceback as it was the first time: raising adds the frames of whoever asks now.
            raise self._error.with_traceback(self._traceback)
        how = f"was ended by {type(self._error).__name__}" if self._error is not None else "was closed"
        raise ClosedRunError(f"this run {how} before its last item; start a new one with iter(pipeline)")


def guarded(lifetime: Lifetime, start: Callable[[], Iterator[T]]) -> Generator[T, None, None]:
    """The items of what `start` opens, called with the first of them; the lifetime ends with them, however they end."""
    try:
        yield from start()
        lifetime.close("exhausted")
    except GeneratorExit:
        lifetime.close("closed")
        raise
    except BaseException as error:
        lifetime.fail(error)
        raise


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
