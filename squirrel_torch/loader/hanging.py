"""A batch that does not come: a thread that says where it hangs, by the frames of the threads that make it.

Nothing is kept up for that while batches flow: generators that run are on the stacks of their threads, and a run that goes on
knows its generators.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Coroutine, Iterator
from itertools import islice
from time import monotonic
from types import FrameType, GeneratorType
from typing import Any, Final, NamedTuple

from squirrel_torch.describe import describe_item
from squirrel_torch.execution import Call, Flow
from squirrel_torch.execution.places.coroutines import Coroutines
from squirrel_torch.execution.places.crew import Crew
from squirrel_torch.execution.process import OwnProcess
from squirrel_torch.iterstream.blame import Opened
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.loader.progress import Progress
from squirrel_torch.threads import end_thread, frames_from

__all__ = ["HangWatch", "hang_report"]

_SLOWEST: Final = 30.0
"""Seconds between two looks, at most."""

_FRAMES: Final = 12
_MOST: Final = 8
"""Threads, tasks or processes whose stacks are told."""

_OUTSIDE: Final = ("loader/passing.py", "execution/call.py", "execution/flow.py")
"""Files of frames that are the same on all stacks: what is further out says nothing."""

_log = logging.getLogger(__name__)


class HangWatch:
    """Looks after one pass, in a thread that ends with it.

    Args:
        owner: The pass; when it is gone the thread ends.
        progress: Of the pass.
        rank: Of this process.
        patience: Seconds that a batch may be waited for before a report; the next ones come after twice as long each.
    """

    def __init__(self, owner: object, progress: Progress, rank: int, patience: float) -> None:
        self._done = threading.Event()
        arguments = progress, rank, patience, self._done
        self._thread = threading.Thread(target=_look, args=arguments, name="squirrel_torch_hang", daemon=True)
        weakref.finalize(owner, end_thread, self._done, self._thread)  # it may be let go of without a word
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        end_thread(self._done, self._thread)


def _look(progress: Progress, rank: int, patience: float, done: threading.Event) -> None:
    told, step = patience, -1
    while not done.wait(min(patience / 4, _SLOWEST)):
        if progress.step != step or not progress.inside:
            told, step = patience, progress.step
        waited = monotonic() - progress.since
        if not progress.inside or waited < told:
            continue
        told *= 2
        try:
            _log.warning("%s", hang_report(progress, rank, waited))
        except Exception as error:  # noqa: BLE001  # it reads frames that run: a report that fails must not end the training
            _log.warning("rank %d has waited %.3g s for a batch; where it hangs can't be told: %r", rank, waited, error)


def hang_report(progress: Progress, rank: int, waited: float) -> str:
    """Where a batch hangs: the first line says what, below it are the stacks of the threads that make it.

    Args:
        progress: Of the pass that waits.
        rank: Of this process.
        waited: For how many seconds.
    """
    begin = f"no batch for {waited:.3g} s: rank {rank} waits for step {progress.step} of epoch {progress.epoch}, "
    worker = getattr(progress.hands, "waits_for", None)
    if worker is not None and not progress.agrees():
        stack = progress.hands.stack(worker) or "(no stack could be had)"
        return f"{begin}which worker {worker} (pid {progress.hands.pids[worker]}) makes\n{_indented(stack)}"
    threads = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    own = frames.get(progress.thread)
    if progress.agrees() or own is None:
        return f"{begin}and {progress.doing()}\n{_indented(_stack(own))}"
    chain = frames_from(own)
    told = [_Told(threads.get(progress.thread, "thread"), chain)]
    for flow in _flows(chain):
        told.append(_Told(flow.feeder.name, frames_from(frames.get(flow.feeder.ident or 0))))
    found = next((hang for one in reversed(told) if (hang := _found(one.frames, chain))), "it makes itself")
    parts = [f"{begin}{found}"]
    parts += [f"thread {one.name} (most recent call last):\n{_stack(one.frames[0])}" for one in told if one.frames]
    for flow in _flows(chain):
        parts += _calls(flow, frames, threads)
    return "\n".join([parts[0], *map(_indented, parts[1:])])


class _Told(NamedTuple):
    """A thread, and its frames, the innermost first."""

    name: str
    frames: list[FrameType]


def _flows(frames: list[FrameType]) -> list[Flow]:
    """Those that a thread reads, the innermost first."""
    found = (frame.f_locals.get("flow") for frame in frames if "flow" in frame.f_code.co_varnames)
    return [flow for flow in found if isinstance(flow, Flow)]


def _found(frames: list[FrameType], reader: list[FrameType]) -> str:
    """The innermost stage on a stack in words: what, where it was written, and its item; empty if there is none.

    Args:
        frames: The stack.
        reader: That of the thread that takes batches: the frames of its runs know what they have opened.
    """
    names = (frame.f_locals.get("lifetime") for frame in reader if "lifetime" in frame.f_code.co_varnames)
    opened = [entry for one in names if isinstance(one, Lifetime) for entry in one.remembered()]
    for frame in frames:
        for entry in opened:
            if _runs(entry, frame):
                last = max(one.place for one in opened)
                return f"which hangs {_where(entry, last)}{_item(entry, frame)}"
    return ""


def _runs(entry: Opened, frame: FrameType) -> bool:
    if isinstance(entry.iterator, GeneratorType) and entry.iterator.gi_frame is frame:
        return True
    return "self" in frame.f_code.co_varnames and entry.is_method(frame)


def _where(entry: Opened, last: int) -> str:
    where = f"in stage {entry.place} of {last}" if entry.place else "in the source"
    site = f", written at {entry.link._site}" if entry.link._site else ""
    return f"{where}, {entry.link._describe()}{site}"


def _item(entry: Opened, frame: FrameType) -> str:
    if isinstance(frame.f_locals.get("flow"), Flow):
        return ", which waits for its calls"  # which items these are at, is told with their stacks
    position = entry.position_in(frame)
    number = "" if position is None else f" {position}"
    if "item" not in frame.f_locals:
        return number and f", on item{number}"
    return f", on item{number}: {_described(frame.f_locals['item'])}"


def _described(item: Any) -> str:
    try:
        return describe_item(item)
    except Exception as error:  # noqa: BLE001  # a repr that fails must not cost the report
        return f"(its repr raises {type(error).__name__})"


def _calls(flow: Flow, frames: dict[int, FrameType], threads: dict[int | None, str]) -> Iterator[str]:
    """The calls of an `async_map` that are in flight: how many, the oldest, and where they are."""
    place, oldest = flow.place, flow.first_without_result
    first = "" if oldest is None else f", of which item {oldest} is the first without a result"
    yield f"async_map ({place.kind}) has about {flow.in_flight} items in flight{first}"
    if isinstance(place, Coroutines):
        yield from islice(_tasks(place), _MOST)
    elif isinstance(place, Crew):
        yield from islice(_workers(place, frames, threads), _MOST)


def _tasks(place: Coroutines) -> Iterator[str]:
    for coroutine in place.running():
        stack = "".join(traceback.format_list(_awaits(coroutine)))
        yield f"a task{_chunk_of(coroutine)} (most recent call last):\n{stack}"


def _workers(place: Crew, frames: dict[int, FrameType], threads: dict[int | None, str]) -> Iterator[str]:
    for runner in place.runners:
        if (work := runner.at_work()) is not None:
            yield f"process {work.process.pid}{_at(_items_of(runner, frames), work.offset)}:\n{_asked(work.process)}"
    for ident, frame in frames.items():
        name = threads.get(ident, "")
        if name.startswith(f"{place.name}_") and _calls_back(frame):
            yield f"thread {name}{_worked_on(frame)} (most recent call last):\n{_stack(frame)}"


def _worked_on(frame: FrameType) -> str:
    """Which item a thread works on, by the frame that calls the callback."""
    for one in frames_from(frame):
        if one.f_code is Call._work.__code__:
            return _at(one.f_locals.get("items"), one.f_locals["outcome"].count)  # results are put there one by one
    return ""


def _items_of(runner: Any, frames: dict[int, FrameType]) -> Any:
    """The chunk that a runner has sent to its process."""
    for frame in frames.values():
        for one in frames_from(frame):
            if "self" in one.f_code.co_varnames and one.f_locals.get("self") is runner:
                return one.f_locals.get("items")
    return None


def _at(items: Any, offset: int) -> str:
    return f", on the item {_described(items[offset])}" if isinstance(items, list) and 0 <= offset < len(items) else ""


def _chunk_of(coroutine: Any) -> str:
    frame = getattr(coroutine, "cr_frame", None)
    return "" if frame is None or "chunk" not in frame.f_locals else _at(frame.f_locals["chunk"].items, 0)


def _calls_back(frame: FrameType) -> bool:
    """Whether a thread runs a callback: one that waits for a chunk, or for its process, has nothing to tell."""
    return any(one.f_code.co_filename.endswith("execution/call.py") for one in frames_from(frame))


def _asked(process: OwnProcess[Any]) -> str:
    try:
        return process.stack("execution/call.py") or "(no stack could be had)"
    except (IndexError, ValueError, OSError):
        return "(it has just ended)"


def _awaits(coroutine: Any) -> list[traceback.FrameSummary]:
    entries: list[traceback.FrameSummary] = []
    while isinstance(coroutine, Coroutine):
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and not frame.f_code.co_filename.endswith("places/coroutines.py"):
            entries += traceback.extract_stack(frame, limit=1)
        coroutine = getattr(coroutine, "cr_await", None)
    return entries


def _stack(frame: FrameType | None) -> str:
    entries = [] if frame is None else list(traceback.extract_stack(frame))
    outside = [number for number, entry in enumerate(entries) if entry.filename.endswith(_OUTSIDE)]
    # Where it waits in ours there is nothing behind those: then all of it is told.
    inside = entries[outside[-1] + 1 :] if outside else entries
    return "".join(traceback.format_list((inside or entries)[-_FRAMES:]))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())
