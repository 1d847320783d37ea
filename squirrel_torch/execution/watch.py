"""Calls that may hang, or take their process with them: they run in a vessel that is watched, and replaced when it is lost."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic_ns
from typing import Any, Protocol

from squirrel_torch.execution.call import Call, Gate, Mark, Outcome, Policy, belongs_to

__all__ = ["Lost", "ThreadVessel", "Vessel", "attend", "attended"]


class Lost(Exception):  # noqa: N818  # an event between a vessel and `attend`, no error of the user
    """A vessel was lost while it worked on an item.

    Args:
        offset: Which item of the chunk it was.
        error: What to say of it.
        outcome: That of the items before, where it is known.
        killed: Whether the item, as it seems, took its process with it.
    """

    def __init__(self, offset: int, error: BaseException, outcome: Outcome | None = None, *, killed: bool = False) -> None:
        super().__init__(offset, error)
        self.offset = offset
        self.error = error
        self.outcome = outcome
        self.killed = killed


class Vessel(Protocol):
    """A thread or process that works on chunks and can be lost."""

    def run(self, items: Sequence[Any], used: int, limit: float) -> Outcome:
        """Work on `items`, of the first of which `used` attempts have been made. Raises Lost."""


def attend(vessel: Vessel, items: Sequence[Any], policy: Policy, gate: Gate, limit: float) -> Outcome:
    """The outcome of `items` in a vessel that can be lost.

    An item that hangs has used up an attempt. One that was there when a process died gets one more process, alone: if that
    dies too, it was the item. Items before it whose results were lost with the process are worked on once more.
    """
    try:
        return vessel.run(items, 0, limit)
    except Lost as event:
        lost = event
    before, item = items[: lost.offset], items[lost.offset]
    outcome = Outcome() if not before else lost.outcome or attend(vessel, before, policy, gate, limit)
    if outcome.count < len(before) or outcome.fatal is not None or (outcome.failures and policy.stops):
        return outcome
    used, kills = 0, 0
    while not gate.closed:
        kills += lost.killed
        used += not lost.killed
        if kills == 2 or not (lost.killed or policy.tries_again(lost.error, used)):
            outcome.fail(lost.error)
            break
        if not lost.killed and not gate.pause(policy.pause(used)):
            break
        try:
            outcome.add(vessel.run([item], used, limit))
            break
        except Lost as event:
            lost = event
    return outcome


def attended(call: Call, items: Sequence[Any], gate: Gate, limit: float = inf) -> Outcome:
    """`call.run` of one chunk in this thread; with a time limit, in a thread that is left behind if it hangs."""
    if call.policy.timeout is None:
        return call.run(items, gate, limit)
    vessel = ThreadVessel(call, gate)
    try:
        return attend(vessel, items, call.policy, gate, limit)
    finally:
        vessel.close()


class _Watched:
    """A chunk in a thread: its gate and its progress."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.mark: Mark = [0, monotonic_ns(), 0]
        self._outcome = Outcome()

    @property
    def closed(self) -> bool:
        return bool(self.mark[2]) or self._gate.closed

    def begins(self, part: list[Any]) -> None:
        """Nothing: the mark says when to stop."""

    def leave(self) -> None:
        """Let the thread start no further item."""
        self.mark[2] = 1

    def pause(self, seconds: float) -> bool:
        return self._gate.pause(seconds)

    def begin(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def before(self, offset: int) -> Outcome:
        """The outcome of the items before `offset`."""
        failures = [failure for failure in self._outcome.failures if failure[0] < offset]
        return Outcome(self._outcome.values[: offset - len(failures)], failures)


class ThreadVessel:
    """A thread that is left behind when it hangs: Python can't end one."""

    def __init__(self, call: Call, gate: Gate) -> None:
        self._call = call
        self._gate = gate
        self._inbox: SimpleQueue[Any] | None = None
        self._replies: SimpleQueue[Outcome] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._watched: _Watched | None = None

    def run(self, items: Sequence[Any], used: int, limit: float) -> Outcome:
        """Work on `items`. Raises Lost when one takes longer than the time limit."""
        if self._inbox is None:
            self._inbox, self._replies = SimpleQueue(), SimpleQueue()
            name = threading.current_thread().name + "_timed"
            self._thread = threading.Thread(target=self._work, args=(self._inbox, self._replies), name=name, daemon=True)
            self._thread.start()
        watched = self._watched = _Watched(self._gate)
        self._inbox.put((items, limit, used, watched))
        timeout = self._call.policy.timeout
        left = inf if timeout is None else timeout
        while True:
            try:
                return self._replies.get(timeout=None if left == inf else left)
            except Empty:
                offset, since, _ = watched.mark
                left = left if timeout is None else timeout - (monotonic_ns() - since) / 1e9
                if left <= 0:
                    watched.leave()
                    raise Lost(offset, self._hung(items[offset]), watched.before(offset)) from None

    def _work(self, inbox: SimpleQueue[Any], replies: SimpleQueue[Outcome]) -> None:
        belongs_to(self._gate)
        while (task := inbox.get()) is not None:
            items, limit, used, watched = task
            replies.put(self._call.run(items, watched, limit, used, watched))
            del task, items, watched

    def _hung(self, item: Any) -> BaseException:
        if self._inbox is not None:
            self._inbox.put(None)  # for when it comes back
        thread, self._inbox, self._thread = self._thread, None, None
        frame = None if thread is None else sys._current_frames().get(thread.ident or 0)
        entries = [] if frame is None else traceback.extract_stack(frame)
        own = [place for place, entry in enumerate(entries) if entry.filename == Call.run.__code__.co_filename]
        stack = "".join(traceback.format_list(entries[own[-1] + 1 if own else 0 :]))
        return self._call.too_long(item, "its thread", stack)

    def stop(self) -> None:
        """Start no further item. Called from another thread."""
        watched = self._watched
        if watched is not None:
            watched.leave()

    def close(self) -> None:
        """Let the thread end; one that hangs has been left behind before."""
        if self._inbox is not None:
            self._inbox.put(None)
            self._inbox = None
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
