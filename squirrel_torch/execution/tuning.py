"""Finding out how many workers and how much buffer a stage needs, while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Literal

__all__ = ["MOST_BUFFER", "MOST_WORKERS", "Knob", "Tuner"]

MOST_WORKERS: Final = 64
"""`max_workers="auto"` never starts more threads than this; nor more processes than there are CPUs."""

MOST_BUFFER: Final = 1024
"""`buffer="auto"` never goes beyond this many items."""

_WINDOW = 0.25
_GAIN = 1.08
_REST = 40


_WORTH_IT = 0.05


@dataclass
class Knob:
    """A number that can be changed while a stage works.

    Args:
        name: The argument of `async_map`.
        value: Where it stands.
        most: Its bound.
        turn: Changes it.
    """

    name: Literal["max_workers", "buffer"]
    value: int
    most: int
    turn: Callable[[int], None]


class Tuner:
    """Hill climbing: double one number, keep it if items come at least 8 % faster, else take it back and try the other.

    More workers need more to choose from: where both numbers are to be found, the buffer grows with the workers, to four
    items for each. Items that are so cheap that they travel together need no more workers.

    A step is judged over a quarter of a second, or over as many items as there are workers if that takes longer. While the
    consumer hardly ever waits (less than 5 % of its time) nothing is changed: more would not be seen. When no step helps
    any more, it rests for 40 windows and then looks again.

    Args:
        workers: Whether the number of workers is to be found.
        buffer: Whether the buffer is to be found.
        chosen: Told the numbers, by the name of the argument.
    """

    def __init__(self, *, workers: bool, buffer: bool, chosen: dict[str, int]) -> None:
        self._cheap: Callable[[], bool] = bool
        self._wants_workers = workers
        self._wants_buffer = buffer
        self._chosen = chosen
        self._knobs: list[Knob] = []
        self._turn = 0
        self._tried: Knob | None = None
        self._before_step: list[tuple[Knob, int]] = []
        self._before = 0.0
        self._useless = 0
        self._resting = 0
        self._items = 0
        self._waited = 0.0
        self._since = 0.0

    @staticmethod
    def of(max_workers: int | Literal["auto"] | None, buffer: int | Literal["auto"], chosen: dict[str, int]) -> Tuner | None:
        """A tuner for what is "auto"; None if nothing is."""
        if max_workers != "auto" and buffer != "auto":
            return None
        return Tuner(workers=max_workers == "auto", buffer=buffer == "auto", chosen=chosen)

    def connect(self, *knobs: Knob, cheap: Callable[[], bool]) -> None:
        """Say what can be changed, and whether items are so cheap now that they travel together."""
        self._cheap = cheap
        wanted = {"max_workers": self._wants_workers, "buffer": self._wants_buffer}
        self._workers = knobs[0]
        self._knobs = [knob for knob in knobs if wanted[knob.name]]
        self._chosen.update((knob.name, knob.value) for knob in self._knobs)
        self._since = perf_counter()

    def took(self, items: int, waited: float) -> None:
        """The consumer took `items` items, for which it waited so many seconds."""
        self._items += items
        self._waited += waited
        passed = perf_counter() - self._since
        if passed >= _WINDOW and self._items >= 2 * self._workers.value:
            self._judge(self._items / passed, self._waited / passed)
            self._items, self._waited, self._since = 0, 0.0, perf_counter()

    def _judge(self, rate: float, waited: float) -> None:
        if self._tried is not None:
            self._tried = None
            if rate >= self._before * _GAIN:
                self._useless = 0
            else:
                self._take_back()
        elif self._resting:
            self._resting -= 1
        elif self._useless >= len(self._knobs):
            self._useless, self._resting = 0, _REST
        elif waited >= _WORTH_IT:
            self._step(rate)

    def _step(self, rate: float) -> None:
        knob = self._knobs[self._turn % len(self._knobs)]
        if knob.value >= knob.most or (knob is self._workers and self._cheap()):
            self._turn += 1
            self._useless += 1
            return
        self._tried, self._before = knob, rate
        self._before_step = [(one, one.value) for one in self._knobs]
        self._set(knob, min(2 * knob.value, knob.most))
        for other in self._knobs[1:]:
            self._set(other, min(max(other.value, 4 * self._workers.value), other.most))

    def _take_back(self) -> None:
        for knob, was in self._before_step:
            self._set(knob, was)
        self._turn += 1
        self._useless += 1

    def _set(self, knob: Knob, value: int) -> None:
        knob.value = value
        knob.turn(value)
        self._chosen[knob.name] = value
