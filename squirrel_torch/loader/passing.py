"""One pass of a loader."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import finalize

from squirrel_torch import recording
from squirrel_torch.errors import ClosedRunError
from squirrel_torch.loader.course import END, World
from squirrel_torch.loader.device import on_device
from squirrel_torch.loader.hanging import HangWatch
from squirrel_torch.loader.progress import ENDED, LEFT, Progress, failed
from squirrel_torch.loader.work import Nothing

if TYPE_CHECKING:
    from squirrel_torch.loader.loader import StreamLoader

__all__ = ["Batches"]

T_co = TypeVar("T_co", covariant=True)


class Batches(Iterator[T_co]):
    """The batches of one pass, for whoever iterates over a loader.

    Args:
        loader: It is told of each batch that was delivered.
        place: Where the pass begins.
        world: Who takes part.
    """

    def __init__(self, loader: StreamLoader[T_co], place: Any, world: World) -> None:
        began = perf_counter()
        course = loader._course
        self._loader = loader
        self._hands = loader._hands()
        reports = loader._reports(self._hands)
        # It may be let go of without a word.
        self._rest = None if reports is None else finalize(self, reports.end)
        if self._rest is not None:
            self._rest.atexit = False
        self._keeps = loader.persistent_workers
        self.is_open: bool = True
        self._after: Exception | None = None  # None: it came to its end
        self._world = world
        self.go_on_from(place)
        self._progress = Progress(course.epoch(place), loader._lane)
        self._progress.hands = self._hands
        finalize(self, self._progress.dropped).atexit = False
        loader._waits = self._progress.waits
        loader._note_pass(self._progress.waits, self._hands)
        self._watch = loader._watched(self, self._progress, world)
        patience = loader.report_after
        self._hangs = HangWatch(self, self._progress, world.rank.index, patience) if patience else None
        if (recorder := recording.recorder) is not None:
            recorder.span(loader._lane, "begin", "begin pass", began, perf_counter(), {"epoch": course.epoch(place)})

    def go_on_from(self, place: Any) -> None:
        """Give what comes behind `place` from now on. What has been made ahead of it is dropped."""
        loader, course, world = self._loader, self._loader._course, self._world
        self._dropped = course.dropped(place, world)
        made = course.deliver(place, world, self._hands, loader._seeds(course.epoch(place), world))
        delivered = loader._evened(made, place, world)
        device = loader.device
        self._delivered = delivered if device is None else on_device(delivered, device, loader.pin_memory, loader._lane)

    def __next__(self) -> T_co:
        if not self.is_open:
            raise StopIteration if self._after is None else self._after
        self._progress.asked()
        try:
            place, batch = next(self._delivered)
        except Exception as error:
            self._drop_rest()
            self._end(error, failed(error))
            raise
        except BaseException:
            self._drop_rest()
            self.close()
            raise
        if batch is END:
            self._end(None, ENDED)
            self._loader._finished(place, self._dropped)
            self._tell_rest()
            raise StopIteration
        self._loader._delivered(place)
        self._progress.given()
        delivered: T_co = batch
        return delivered

    def close(self) -> None:
        """End the pass before its last batch."""
        self._end(
            ClosedRunError("this pass was ended before its last batch, perhaps because another one of its loader began"), LEFT
        )
        self._tell_rest()

    def _tell_rest(self) -> None:
        """Let monitors report what they have not yet."""
        if self._rest is not None:
            self._rest()

    def _drop_rest(self) -> None:
        """An error is not reported as an end."""
        if self._rest is not None:
            self._rest.detach()

    def _end(self, after: Exception | None, how: str) -> None:
        if self.is_open:
            self.is_open, self._after = False, after
            self._progress.end(how)
            self._loader._announce(False)
            if self._hangs is not None:
                self._hangs.close()
            if self._watch is not None:
                self._watch.close()
            if not self._keeps:
                self._hands.close()
            elif after is not None:
                self._hands.start(Nothing(), [0] * self._loader.num_workers)
