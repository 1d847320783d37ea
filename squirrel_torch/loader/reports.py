"""What the monitors of a chain see in several workers, put together in the process that trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import Any, Final

from squirrel_torch.errors import SquirrelTorchError
from squirrel_torch.iterstream.blame import NOTE_PREFIX
from squirrel_torch.iterstream.stages import Monitored
from squirrel_torch.metrics import Window
from squirrel_torch.reporting import gathering, home

__all__ = ["KIND", "Reports", "gathered"]

KIND: Final = "monitor"
"""Of the notes."""


def gathered(batches: Iterator[Any], monitors: Sequence[Monitored[Any]], workers: int) -> Iterator[Any]:
    """The batches of a pass. What its monitors see meanwhile, in this process, is told: here, or from a worker by notes.

    Args:
        batches: They may come from several runs of the chain.
        monitors: Those of the chain.
        workers: How many processes make batches.
    """
    way = home()

    def send(monitor: Monitored[Any], window: Window) -> None:
        if way is not None:
            way.send(KIND, {"monitor": monitor.token, "window": [window.count, window.size, window.seconds]})

    with ExitStack() as stack:
        for monitor in monitors:
            tell = monitor.tell if way is None else partial(send, monitor)
            stack.enter_context(gathering(monitor.token, monitor.tally(workers), tell))
        yield from batches
    if way is not None:
        way.send(KIND, {"ended": True})


class Reports:
    """Tells what the workers of a pass say of its monitors.

    Args:
        monitors: Those of the chain.
        workers: How many workers there are.
    """

    def __init__(self, monitors: Sequence[Monitored[Any]], workers: int) -> None:
        self._monitors = {monitor.token: _Gathered(monitor, workers) for monitor in monitors}

    def take(self, worker: int, payload: Any) -> None:
        """What a worker has sent; the handler of its notes."""
        if "ended" in payload:
            for one in self._monitors.values():
                one.ended.add(worker)
        else:
            count, size, seconds = payload["window"]
            self._monitors[payload["monitor"]].take(worker, Window(count, size, seconds))

    def end(self) -> None:
        """Tell what is left, at the end of the pass."""
        for one in self._monitors.values():
            one.end()


class _Gathered:
    """One monitor.

    The workers' windows begin and end at different times. So the rates of those that a report covers are added, each an
    average over its own time. It is due when each worker that goes on has told something since the last report, or one of
    them twice: the others are slow then, and their last rates are still the best that is known of them.
    """

    def __init__(self, monitor: Monitored[Any], workers: int) -> None:
        self.ended: set[int] = set()
        self._monitor = monitor
        self._workers = range(workers)
        self._new: dict[int, Window] = {}
        self._last: dict[int, tuple[Window, float]] = {}

    def take(self, worker: int, window: Window) -> None:
        """A window of a worker."""
        before = self._new.get(worker)
        self._new[worker] = window if before is None else before + window
        items = self._monitor.every_items
        if items is None:
            due = before is not None or all(one in self._new or one in self.ended for one in self._workers)
        else:
            due = sum(new.count for new in self._new.values()) >= items
        if due and worker not in self.ended:
            self._tell()

    def end(self) -> None:
        """The pass has ended."""
        if self._new:
            self._tell()

    def _tell(self) -> None:
        now = monotonic()
        windows = list(self._new.values())
        windows += [last for worker, (last, heard) in self._last.items() if self._goes_on(worker, now - heard)]
        self._last.update((worker, (window, now)) for worker, window in self._new.items())
        self._new = {}
        try:
            self._monitor.tell(*windows)
        except Exception as error:
            if not isinstance(error, SquirrelTorchError):
                error.add_note(
                    f"{NOTE_PREFIX}in {self._monitor.describe()}, which tells what the workers of a StreamLoader saw"
                )
            raise

    def _goes_on(self, worker: int, silent: float) -> bool:
        # The last windows of a pass end at about the same time: who has just ended is not missing from them.
        return worker not in self._new and (worker not in self.ended or silent < self._monitor.every)
