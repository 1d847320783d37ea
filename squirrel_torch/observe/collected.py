"""What is seen of the runs of one stream, added up while they go on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from operator import attrgetter
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

from squirrel_torch.execution import Flow, Tally
from squirrel_torch.iterstream.blame import Opened
from squirrel_torch.iterstream.lifetime import Lifetime, Observer
from squirrel_torch.observe.counting import Key, counted, in_order
from squirrel_torch.observe.figures import Figures, StageFigures
from squirrel_torch.observe.naming import kind_of, named
from squirrel_torch.observe.sums import CallSums, Sums, calls_of

__all__ = ["Collected", "Group", "Seen", "cores"]


Places: TypeAlias = "Sequence[int | None] | None"
"""See `Collected.numbered`; None: as they are."""


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Seen:
    """What one look, or one measurement, saw."""

    def __init__(self) -> None:
        self.busy: dict[Key, float | None] = {}
        """Who works, with the CPU time since the last look where that is known."""
        self.waiting: set[Key] = set()
        """Who waits for these."""


class Group(NamedTuple):
    """The places of a run that share a thread, at one moment.

    Args:
        busy: Which one works, if one does.
        waiting: Those that wait for it, or for calls that run elsewhere.
        thread: The system's number of the thread; None if it is not known.
        feeds: Whether it is the feeder of a place with calls elsewhere.
    """

    busy: Key | None
    waiting: list[Key]
    thread: int | None
    feeds: bool = False

    def waits(self) -> Group:
        """The same, if what seemed to work waits too."""
        return self if self.busy is None else Group(None, [self.busy, *self.waiting], self.thread, self.feeds)


class Collected:
    """What is seen of the runs of one stream in this process: several at a time, and one after the other.

    It is an `Observer` of these runs, and may be asked for figures by any thread.
    """

    def __init__(self) -> None:
        # The garbage collector may end a run while its thread is in here.
        self._lock = threading.RLock()
        self._began = perf_counter()
        self._looked, self._looked_for = self._began, 0.0
        self._over: float | None = None
        self._lifetimes: dict[int, tuple[Lifetime, Places]] = {}
        self._threads: dict[int, int] = {}
        self._links: dict[Key, Any] = {}
        self._sums: dict[Key, Sums] = {}
        self._ended: dict[Key, CallSums] = {}
        # Whoever makes batches counts them, and the samples in them.
        self.makes_batches = False
        self.batches = self.samples = 0

    # -- an observer --------------------------------------------------------------------------------------------------

    def begins(self, lifetime: Lifetime) -> None:
        """See `Observer`."""
        self.knows(lifetime, None)

    def knows(self, lifetime: Lifetime, places: Places) -> None:
        """A run begins, whose main chain has other numbers for its places."""
        with self._lock:
            self._lifetimes[id(lifetime)] = lifetime, places
            self._threads[id(lifetime)] = threading.get_native_id()

    def around(self, lifetime: Lifetime, entry: Opened, items: Iterator[Any]) -> Iterator[Any]:
        """The iterator itself: nothing is in the way of the items."""
        self._threads[id(lifetime)] = threading.get_native_id()  # who asks for the first item asks for all
        return items

    def ends(self, lifetime: Lifetime) -> None:
        """See `Observer`."""
        with self._lock:
            if id(lifetime) in self._lifetimes:
                self._know(lifetime)
                for key, tally, skipped in self._tallies(lifetime):
                    ended = self._ended.setdefault(key, CallSums())
                    ended.add(tally)
                    ended.skipped += skipped
                del self._lifetimes[id(lifetime)], self._threads[id(lifetime)]

    def numbered(self, places: Sequence[int | None]) -> Observer:
        """The same, for runs of a part of the chain, or of a chain that stands for it.

        Args:
            places: For each place of such a run, its number in the chain that is told of; None for one that is left out.
        """
        return _Numbered(self, tuple(places))

    def key_of(self, lifetime: Lifetime, entry: Opened) -> Key | None:
        """Which place it is; None if nothing is told of it."""
        places = self._lifetimes.get(id(lifetime), (lifetime, None))[1]
        place: int | None = entry.place
        if places is not None and not lifetime.branch:
            place = places[entry.place] if entry.place < len(places) else None
        return None if place is None else (lifetime.branch, place)

    def end(self) -> None:
        """Nothing more comes: time stands still from now on."""
        self._over = self._over or perf_counter()

    # -- whoever looks ------------------------------------------------------------------------------------------------

    def runs(self) -> list[Lifetime]:
        """Those that go on."""
        with self._lock:
            return [lifetime for lifetime, _ in list(self._lifetimes.values())]

    def look(self) -> list[Group]:
        """What the threads of the runs do at this moment."""
        groups = [group for lifetime in self.runs() for group in self._groups(lifetime)]
        # A thread may be in several runs, one inside the other: that of a branch, or of what stands nearest to the source.
        inner: dict[int | None, Key] = {}
        for group in groups:
            known = inner.get(group.thread)
            if group.busy is not None and (known is None or _depth(group.busy) < _depth(known)):
                inner[group.thread] = group.busy
        return [group if group.thread is None or group.busy == inner.get(group.thread) else group.waits() for group in groups]

    def _groups(self, lifetime: Lifetime) -> Iterator[Group]:
        """Those of a run that do something. The feeder of a place with calls elsewhere runs the places before it."""
        entries = sorted(lifetime.remembered(), key=attrgetter("place"), reverse=True)
        thread, running, feeds = self._threads.get(id(lifetime)), [], False
        for entry in entries:
            if getattr(entry.iterator, "gi_running", False):
                running.append(entry)
            flow = self._flow_of(lifetime, entry)
            if flow is not None:
                waits = bool(running) and running[-1] is entry and flow.is_taking
                if running:
                    yield self._group(lifetime, running, thread, waits=waits, feeds=feeds)
                thread, running, feeds = flow.feeder.native_id, [], True
        if running:
            yield self._group(lifetime, running, thread, waits=False, feeds=feeds)

    def _group(self, lifetime: Lifetime, running: list[Opened], thread: int | None, *, waits: bool, feeds: bool) -> Group:
        keys = [key for entry in reversed(running) if (key := self.key_of(lifetime, entry)) is not None]
        if waits or not keys:
            return Group(None, keys, thread, feeds)
        return Group(keys[0], [key for key in keys if key != keys[0]], thread, feeds)

    def _flow_of(self, lifetime: Lifetime, entry: Opened) -> Flow | None:
        report = lifetime.reports.get(id(getattr(entry.link, "_stage", None)))
        return None if report is None or report.calls is None else report.calls.flow

    def looked(self, seconds: float, seen: Seen, weight: float = 1.0) -> None:
        """So it has been for some seconds, which stand for `weight` times as many."""
        seconds *= weight
        self._looked = perf_counter()
        self._looked_for += seconds
        with self._lock:
            for lifetime in self.runs():
                self._know(lifetime)
                self._look_into(lifetime, seconds)
            for key in list(self._links):
                sums = self._sums.setdefault(key, Sums())
                sums.looked += seconds
                if key in seen.busy:
                    sums.busy += seconds
                    cpu = seen.busy[key]
                    if cpu is not None:
                        sums.known += seconds
                        sums.cpu += weight * cpu
                elif key in seen.waiting:
                    sums.upstream += seconds
                else:
                    sums.downstream += seconds

    def name_of(self, key: Key) -> str:
        """A place in words."""
        branch = "".join(f"branch {name}: " for name in key[0])
        return branch + (named(self._links[key]) if key in self._links else f"stage {key[1]}")

    def rested(self) -> None:
        """Nobody has looked since the last time, as nothing was asked for."""
        now = perf_counter()
        self._looked_for += now - self._looked
        with self._lock:
            for key in list(self._links):
                sums = self._sums.setdefault(key, Sums())
                sums.looked += now - self._looked
                sums.downstream += now - self._looked
        self._looked = now

    def _know(self, lifetime: Lifetime) -> None:
        for entry in lifetime.remembered():
            key = self.key_of(lifetime, entry)
            if key is not None:
                self._links.setdefault(key, entry.link)

    def _look_into(self, lifetime: Lifetime, seconds: float) -> None:
        for key, tally, _ in self._tallies(lifetime):
            flow = tally.flow
            if flow is not None:
                sums = self._sums.setdefault(key, Sums())
                sums.in_flight += seconds * flow.in_flight
                sums.hungry += seconds * flow.is_hungry

    def _tallies(self, lifetime: Lifetime) -> list[tuple[Key, Tally, int]]:
        """The calls of the stages of a run, and how many of these were left out."""
        found = []
        for entry in lifetime.remembered():
            report = lifetime.reports.get(id(getattr(entry.link, "_stage", None)))
            key = self.key_of(lifetime, entry)
            if report is not None and report.calls is not None and key is not None:
                found.append((key, report.calls, report.skipped))
        return found

    # -- figures ------------------------------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """What has been seen so far."""
        with self._lock:
            now = self._over or perf_counter()
            live: dict[Key, CallSums] = {}
            for lifetime in self.runs():
                self._know(lifetime)
                for key, tally, skipped in self._tallies(lifetime):
                    one = live.setdefault(key, CallSums())
                    one.add(tally)
                    one.skipped += skipped
            stages = [self._stage(key, live.get(key)) for key in sorted(self._links, key=in_order)]
            stage_of = {key: getattr(link, "_stage", None) for key, link in self._links.items()}
        made = (self.batches, self.samples) if self.makes_batches else None
        return Figures(seconds=now - self._began, stages=tuple(counted(stages, stage_of, made)), cores=cores())

    def _stage(self, key: Key, live: CallSums | None) -> StageFigures:
        link, sums, scale = self._links[key], self._sums.get(key, Sums()), self._scale()
        both = [one for one in (self._ended.get(key), live) if one is not None]
        return StageFigures(
            place=key[1],
            name=named(link),
            kind=kind_of(link),
            branch=key[0],
            site=link._site,
            thread=self._thread_of(key),
            busy=scale * sums.busy,
            cpu=scale * sums.busy * sums.cpu / sums.known if sums.known else None,
            upstream=scale * sums.upstream,
            downstream=scale * sums.downstream,
            retries=sum(one.retries for one in both),
            skipped=sum(one.skipped for one in both),
            calls=calls_of(both, sums) if both else None,
        )

    def _scale(self) -> float:
        """What was seen stands for the time since the last look, too."""
        return ((self._over or perf_counter()) - self._began) / self._looked_for if self._looked_for else 1.0

    def _thread_of(self, key: Key) -> str:
        """A place is asked by the feeder of the next place behind it that has calls elsewhere."""
        branch, place = key
        feeders = [other for side, other in self._links if side == branch and other > place and self._has_calls((side, other))]
        if feeders:
            return f"feeder {min(feeders)}" + (f" of branch {'.'.join(branch)}" if branch else "")
        return self._thread_of((branch[:-1], 0)) if branch else "main"  # a mix asks its branches itself

    def _has_calls(self, key: Key) -> bool:
        return key in self._ended or any(key == known for one in self.runs() for known, *_ in self._tallies(one))


class _Numbered:
    """See `Collected.numbered`."""

    def __init__(self, collected: Collected, places: Sequence[int | None]) -> None:
        self._collected = collected
        self._places = places

    def begins(self, lifetime: Lifetime) -> None:
        self._collected.knows(lifetime, self._places)

    def around(self, lifetime: Lifetime, entry: Opened, items: Iterator[Any]) -> Iterator[Any]:
        return self._collected.around(lifetime, entry, items)

    def ends(self, lifetime: Lifetime) -> None:
        self._collected.ends(lifetime)


def _depth(key: Key) -> tuple[int, int]:
    """The least for what is next to the source."""
    branch, place = key
    return -len(branch), place
