"""Which stages work, looked at two hundred times a second for a tenth of the time: what that costs does not depend on items.

Stages are generators, each of which runs while it is asked for an item: of those of a thread, the one that is next to the
source works, or what it calls does; the others wait for it, and those that do not run are not asked for anything. Frames of
threads are not looked at: whoever holds one keeps alive what is in it.

Looking at where a program is, from time to time, is how statistical profilers work since S. L. Graham, P. B. Kessler,
M. K. McKusick, "gprof: a Call Graph Execution Profiler", 1982. Whoever looks needs the GIL, and a thread that computes gives it
up after `sys.getswitchinterval`, 5 ms, or where it begins to wait: short work between two waits would never be seen. So threads
have to give it up sooner while somebody looks.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Final

from squirrel_torch import recording
from squirrel_torch.observe.collected import Collected, Group, Seen
from squirrel_torch.recording import Recorder

__all__ = ["Sampler"]

_INTERVAL: Final = 5e-3
"""Seconds between two looks, on average. They come at uneven times: what happens in a rhythm is seen at each of its moments."""

_FIRST: Final = 0.3
"""Seconds in which it is looked at first, so that something is known soon."""

_WINDOW: Final = 0.1
"""Seconds in which it is looked at later, after each pause."""

_PAUSE: Final = 0.9

_IDLE: Final = 1.5
"""Seconds after which it is looked at no more, if no stage has worked or waited."""

_SWITCH: Final = 1e-4
"""Seconds after which a thread gives up the GIL while somebody looks."""

_log = logging.getLogger(__name__)
_jitter = random.Random()  # moments of looking; draws nothing from the generators that belong to the user


class Sampler:
    """Looks at the runs of one stream, from any thread of this process, while it is held open.

    Streams that nobody asks for items are not looked at for long: `wake` says that one is asked again. While somebody
    records, it looks all the time, and what each thread was seen at is part of that, as spans of kind "stage".

    Args:
        collected: Gets what is seen.
        always: Whether it looks all the time, and not for a tenth of it.
    """

    def __init__(self, collected: Collected, *, always: bool = False) -> None:
        self._collected = collected
        self._always = always
        self.clock: _Clock = _clock
        """Who looks. If it has no `thread`, nobody does."""

    def __enter__(self) -> Sampler:
        self.clock.add(self._collected, always=self._always)
        return self

    def wake(self) -> None:
        """Look again."""
        self._collected.rested()
        self.clock.add(self._collected, always=self._always)

    def __exit__(self, *error: object) -> None:
        if self.clock is _clock:  # else it is that of the process that this one was forked from
            self.clock.remove(self._collected)


class _Rows:
    """Which row of a recording a thread has, as long as it works for a stream: another one may have it later."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[str, int]] = {}

    def keep(self, seen: Container[int]) -> None:
        """The others have ended, or do something else."""
        self._taken = {thread: row for thread, row in self._taken.items() if thread in seen}

    def of(self, thread: int, kind: str) -> str:
        """The row of a thread."""
        if self._taken.get(thread, ("", 0))[0] != kind:
            used = {number for name, number in self._taken.values() if name == kind}
            self._taken[thread] = kind, next(number for number in count(1) if number not in used)
        number = self._taken[thread][1]
        return kind if number == 1 else f"{kind} ({number})"


class _Clock:
    """The thread that looks, there as long as anybody wants it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may end a stream while this looks
        self._streams: dict[int, tuple[Collected, bool]] = {}
        self._done = threading.Event()
        self.thread: threading.Thread | None = None
        self._cpu: dict[int, float | None] = {}
        self._rows = _Rows()
        self._until = self._worked = 0.0

    def add(self, collected: Collected, *, always: bool) -> None:
        """Look at a stream from now on."""
        with self._lock:
            self._streams[id(collected)] = collected, always
            self._until = perf_counter() + _FIRST
            if self.thread is None:
                self._done = threading.Event()
                name = "squirrel_torch_sampler"
                self.thread = threading.Thread(target=self._look, args=(self._done,), name=name, daemon=True)
                self.thread.start()

    def remove(self, collected: Collected) -> None:
        """Look at it no more. The thread ends with the last one."""
        with self._lock:
            self._streams.pop(id(collected), None)
            thread = None if self._streams else self.thread
            if thread is not None:
                self._done.set()
                self.thread = None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _look(self, done: threading.Event) -> None:
        last = self._worked = perf_counter()
        try:
            while not done.is_set():
                with _switching_soon():
                    last = self._look_for_a_while(done, last)
                if self._goes_to_rest(done):
                    break
                self._pause(done)
        except Exception:  # noqa: BLE001  # what is looked at goes on
            _log.exception("figures of streams are not collected any more")

    def _pause(self, done: threading.Event) -> None:
        end = perf_counter() + _PAUSE * _jitter.uniform(0.8, 1.2)
        while perf_counter() < end and recording.recorder is None and not done.wait(_WINDOW):
            pass

    def _goes_to_rest(self, done: threading.Event) -> bool:
        """Whether nothing has been done for a while. Then this thread ends, until somebody asks for items."""
        with self._lock:
            if perf_counter() - self._worked < _IDLE or self._done is not done:
                return False
            self.thread = None
            return True

    def _look_for_a_while(self, done: threading.Event, last: float) -> float:
        """Look until the window is over; what is seen in its first part stands for the pause before it, too."""
        self._cpu = {}
        began = perf_counter()
        self._until = max(self._until, began + _WINDOW)
        weight = 1 + (began - last) / (self._until - began)
        last = began
        while last < self._until or self._goes_on():
            if done.wait(_INTERVAL * _jitter.uniform(0.5, 1.5)):
                break
            now = perf_counter()
            self._sample(last, now, weight if last < self._until else 1.0)
            last = now
        return last

    def _goes_on(self) -> bool:
        """Whether somebody wants it to look all the time, and there is something to be seen."""
        if any(always for _, always in list(self._streams.values())):
            return True
        return recording.recorder is not None and perf_counter() - self._worked < _IDLE

    def _sample(self, last: float, now: float, weight: float) -> None:
        seconds, recorder = now - last, recording.recorder
        if recorder is None:
            self._rows.keep(())  # the next recording has rows of its own
        with self._lock:
            streams = [collected for collected, _ in self._streams.values()]
        looks = [(collected, collected.look()) for collected in streams]  # all at once: threads go on when they get the GIL
        cpu: dict[int, float | None] = {}
        for collected, look in looks:
            seen = Seen()
            if look:
                self._worked = perf_counter()
            for group in look:
                since = self._since(group.thread, cpu, seconds)
                if group.busy is not None:
                    seen.busy[group.busy] = since
                seen.waiting.update(group.waiting)
            if recorder is not None:
                self._record(recorder, collected, look, last, now)
            collected.looked(seconds, seen, weight)
        self._cpu = cpu

    def _record(self, recorder: Recorder, collected: Collected, look: list[Group], last: float, now: float) -> None:
        """What the threads were seen at."""
        threads = {group.thread: group for group in look if group.thread is not None and (group.busy or group.waiting)}
        self._rows.keep(threads)
        for thread, group in threads.items():
            row = self._rows.of(thread, "stages before async_map" if group.feeds else "stages")
            key = group.waiting[0] if group.busy is None else group.busy
            recorder.sampled(row, collected.name_of(key) + (", waiting for its calls" if group.busy is None else ""), last, now)

    def _since(self, thread: int | None, cpu: dict[int, float | None], seconds: float) -> float | None:
        """Seconds of CPU time that a thread got since the last look; None if that is not known."""
        if thread is None:
            return None
        if thread not in cpu:
            cpu[thread] = _cpu_time(thread)
        now, before = cpu[thread], self._cpu.get(thread)
        return None if now is None or before is None else min(max(now - before, 0.0), seconds)


_clock = _Clock()
_usual: float | None = None


@contextmanager
def _switching_soon() -> Iterator[None]:
    """Threads give up the GIL soon."""
    global _usual
    before = _usual = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH))
    ours = sys.getswitchinterval()
    try:
        yield
    finally:
        if sys.getswitchinterval() == ours:  # else somebody else has chosen meanwhile
            sys.setswitchinterval(before)
        _usual = None


def _start_afresh() -> None:
    """A process that was forked has no thread that looks, and perhaps a lock that nobody will open."""
    global _clock, _usual
    _clock = _Clock()
    if _usual is not None:
        sys.setswitchinterval(_usual)
        _usual = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)


def _cpu_time(native: int) -> float | None:
    """Seconds of CPU time that a thread of this process has got; None where the system does not tell."""
    try:
        return int(Path(f"/proc/self/task/{native}/schedstat").read_bytes().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
