"""Each item counted, and some of them timed on their whole way through a chain: for a profile, where it may cost something."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter, thread_time
from typing import Any, Final

from squirrel_torch.histogram import Histogram
from squirrel_torch.iterstream.blame import Opened
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.metrics import size_of
from squirrel_torch.observe.collected import Collected
from squirrel_torch.observe.counting import Key
from squirrel_torch.observe.figures import Figures, StageFigures

__all__ = ["Timed"]

_SHARE: Final = 0.05
"""Of the time, about, that timing may take."""

_SIZED: Final = 16
"""Of so many items that are timed the bytes of one are looked at."""

_TINY: Final = 5e-6
"""Seconds of an item that are too short to be timed."""

_CALIBRATED: Final = 2000
_ROUNDS: Final = 5

_jitter = random.Random()  # moments of timing; draws nothing from the generators that belong to the user


@dataclass(frozen=True)
class _Cost:
    """Seconds that a probe takes for an item.

    Args:
        off: If it only counts.
        inside: If it times, of those that it takes for the place's own.
        outside: The others: they are among those of the place that asks.
    """

    off: float = 0.0
    inside: float = 0.0
    outside: float = 0.0


class _Place:
    """What was seen at one place."""

    __slots__ = ("asked", "count", "cpu", "seconds", "size", "sized", "timed", "times")

    def __init__(self) -> None:
        self.count = self.timed = self.asked = self.size = self.sized = 0
        self.seconds = self.cpu = 0.0
        self.times = Histogram()


@dataclass
class _Frame:
    """An item that is being made, and what those before it take of that."""

    seconds: float = 0.0
    cpu: float = 0.0
    asked: int = 0


@dataclass
class _Now:
    """Whether items are timed at this moment."""

    on: bool = True
    probes: int = 0
    skip: float = 0.0
    stack: threading.local = field(default_factory=threading.local)


class Timed(Collected):
    """Also an observer of runs in this process, which counts all items, and times some of them exactly.

    Args:
        last: The last place of the chain: whoever asks it decides whether the items are timed that are made for that.
    """

    def __init__(self, last: int) -> None:
        super().__init__()
        self._last = (), last
        self._places: dict[Key, _Place] = {}
        self._now = _Now()
        self._cost = _calibrated()
        # Calibrating takes time that is none of the stream's.
        self._began = perf_counter()

    def around(self, lifetime: Lifetime, entry: Opened, items: Iterator[Any]) -> Iterator[Any]:
        """The items, which are counted on their way."""
        super().around(lifetime, entry, items)
        key = self.key_of(lifetime, entry)
        if key is None:
            return items
        probe = _probe(self._places.setdefault(key, _Place()), self._now, items)
        return self._deciding(probe) if key == self._last else probe

    def _deciding(self, items: Iterator[Any]) -> Iterator[Any]:
        """Time so many of them that it takes a small share of the time."""
        now = self._now
        while True:
            now.on, now.probes = now.skip <= 0, 0
            now.skip -= 1
            began = perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            if now.on:
                cost = now.probes * (self._cost.inside + self._cost.outside)
                seconds = max(perf_counter() - began - cost, 1e-7)
                now.skip = cost / seconds / _SHARE * _jitter.uniform(0.5, 1.5) - 1
            yield item
            del item

    def figures(self) -> Figures:
        """What has been seen so far."""
        seen = super().figures()
        off = sum(place.count * self._cost.off for key, place in self._places.items() if not key[0])
        stages = tuple(self._timed(stage) for stage in seen.stages)
        return replace(seen, seconds=max(seen.seconds - off, 1e-9), stages=stages, sampled=False)

    def _timed(self, stage: StageFigures) -> StageFigures:
        place = self._places.get((stage.branch, stage.place))
        if place is None or not place.timed:
            return stage
        clock = self._cost.inside + self._cost.outside * place.asked / place.timed
        each = max(place.seconds / place.timed - clock, 0.0)
        seen = replace(stage, items=place.count, exact=True, size=place.size / place.sized if place.sized else None)
        if each < max(_TINY, clock):
            # Timing takes longer than such an item. The sampler has seen it, and the probe that counts with it.
            busy = max(stage.busy - self._counting(stage), 0.0)
            return replace(seen, busy=busy, cpu=busy)
        # What it waits for calls that run elsewhere only the sampler can tell from its own work.
        waits = stage.upstream / (stage.busy + stage.upstream) if stage.calls and stage.busy + stage.upstream else 0.0
        busy = (1 - waits) * place.count * each
        cpu = min(place.count * max(place.cpu / place.timed - clock, 0.0), busy)
        return replace(seen, busy=busy, cpu=cpu, times=None if stage.calls else place.times)

    def _counting(self, stage: StageFigures) -> float:
        """Seconds of probes that counted while a stage was seen to work: those of what it asks; a source has no frame."""
        below = self._places.get((stage.branch, stage.place - (stage.place > 1)))
        return 0.0 if below is None or stage.place == 1 else below.count * self._cost.off


def _probe(place: _Place, now: _Now, items: Iterator[Any]) -> Iterator[Any]:
    try:
        while True:
            if not now.on:
                item = next(items)
                place.count += 1
                yield item
                del item
                continue
            stack = now.stack.__dict__.setdefault("frames", [])
            frame = _Frame()
            stack.append(frame)
            cpu, began = thread_time(), perf_counter()
            try:
                item = next(items)
            finally:
                seconds, cpu = perf_counter() - began, thread_time() - cpu
                stack.pop()
                if stack:
                    outer = stack[-1]
                    outer.seconds += seconds
                    outer.cpu += cpu
                    outer.asked += 1
            own = seconds - frame.seconds
            place.count += 1
            place.timed += 1
            place.asked += frame.asked
            place.seconds += own
            place.cpu += cpu - frame.cpu
            place.times.add(own)
            now.probes += 1
            if place.timed % _SIZED == 1:
                place.size += size_of(item)
                place.sized += 1
            yield item
            del item
    except StopIteration:
        return


def _calibrated() -> _Cost:
    """What probes take here: the best of several measurements."""
    off = inside = outside = float("inf")
    for _ in range(_ROUNDS):
        plain = _passed(iter(range(_CALIBRATED)))
        silent, now = _Place(), _Now(on=False)
        off = min(off, _passed(_probe(silent, now, iter(range(_CALIBRATED)))) - plain)
        first, second, now = _Place(), _Place(), _Now()
        both = _passed(_probe(second, now, _probe(first, now, iter(range(_CALIBRATED)))))
        inside = min(inside, first.seconds / _CALIBRATED - plain)
        outside = min(outside, (both - plain) / 2 - first.seconds / _CALIBRATED)
    return _Cost(*(max(seconds, 0.0) for seconds in (off, inside, outside)))


def _passed(items: Iterator[Any]) -> float:
    """Seconds of an item."""
    began = perf_counter()
    for _ in items:
        pass
    return (perf_counter() - began) / _CALIBRATED
