"""Where what a stream says of itself goes: to sinks, and from worker processes home to the process that trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from squirrel_torch.metrics import Tally, Window

__all__ = ["Gathering", "Home", "Sink", "gathered_by", "gathering", "home", "set_home"]


@runtime_checkable
class Sink(Protocol):
    """Takes metrics to where they are looked at. `monitor` takes one, and so can whoever has metrics to tell.

    Example:
        >>> class Printed:
        ...     one_process = True
        ...     def __call__(self, metrics, step=None):
        ...         print(step, dict(metrics))
        >>> isinstance(Printed(), Sink)
        True
        >>> isinstance(print, Sink)
        False
    """

    @property
    def one_process(self) -> bool:
        """Whether only the process that trains may call it: what stands behind it can't be shared with worker processes."""

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics.

        Args:
            metrics: Names of any text, and numbers. A sink makes the names such as its place allows them.
            step: What they are of, on the axis of the training; None: the sink counts by itself.
        """


# -- the way home ------------------------------------------------------------------------------------------------------


class Home(Protocol):
    """The process that trains, as its worker process sees it."""

    def send(self, kind: str, payload: Any) -> None:
        """Send something to whoever handles its kind there. Any thread may; it waits for nothing.

        It goes with the next batch, or with the end of the pass. What belongs to a pass that was left is dropped.

        Args:
            kind: Which handler is called with it.
            payload: Plain JSON types.

        Raises:
            TypeError: If it holds something else.
        """


_home: tuple[int, Home] | None = None


def home() -> Home | None:
    """The way home, in a worker process of a loader; None in any other process, also in one that such a worker starts."""
    return _home[1] if _home is not None and _home[0] == os.getpid() else None


def set_home(way: Home | None) -> None:
    """Say what `home` is in this process. Called by its main function."""
    global _home
    _home = None if way is None else (os.getpid(), way)


# -- what several runs of one stage tell together ----------------------------------------------------------------------


@dataclass(frozen=True)
class Gathering:
    """The runs of one stage that belong to a pass of a loader in this process: it may make several streams.

    Args:
        tally: Counts what passes in all of them.
        tell: Called with each window, in the thread that reads.
        process: Which one it is.
    """

    tally: Tally
    tell: Callable[[Window], object]
    process: int


_gatherings: Final[dict[str, list[Gathering]]] = {}


def gathered_by(token: str) -> Gathering | None:
    """What gathers the runs of the stage with this token, begun last; None if nothing does."""
    for gathering in reversed(_gatherings.get(token, ())):
        if gathering.process == os.getpid():  # not that of a process which has forked
            return gathering
    return None


@contextmanager
def gathering(token: str, tally: Tally, tell: Callable[[Window], object]) -> Iterator[None]:
    """Gather the runs of the stage with this token that begin meanwhile.

    What is left is told at the end, but for an end by an error.
    """
    own = Gathering(tally, tell, os.getpid())
    _gatherings.setdefault(token, []).append(own)
    try:
        yield
    except GeneratorExit:
        _tell_rest(own)
        raise
    else:
        _tell_rest(own)
    finally:
        _gatherings[token].remove(own)
        if not _gatherings[token]:
            del _gatherings[token]


def _tell_rest(own: Gathering) -> None:
    rest = own.tally.rest()
    if rest is not None:
        own.tell(rest)
