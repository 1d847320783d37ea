"""Items that travel with their ids through an `async_map`, and how far it has come with them."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from squirrel_torch.errors import StateError
from squirrel_torch.execution.numba import compiled
from squirrel_torch.iterstream.keyed import Keys
from squirrel_torch.iterstream.report import StageReport
from squirrel_torch.iterstream.stage import Id, Step
from squirrel_torch.portable import from_portable, to_portable

if TYPE_CHECKING:
    from squirrel_torch.iterstream.stages.async_map import AsyncMap

__all__ = ["Followed", "Progress", "Pulled", "check_progress"]

_MARK: Final = 64
"""After so many items the states of the stages before are noted."""

_PER_HELD: Final = 8
"""Or once for so many items that they hold: what it costs to note these stays small beside making items."""

_MOST_MARKS: Final = 32


class Pulled(NamedTuple):
    """An item on its way through a place of execution.

    Args:
        number: How many were pulled before it.
        own: Its id.
        item: The item.
    """

    number: int
    own: Id
    item: Any

    def __repr__(self) -> str:
        return repr(self.item)  # messages speak of the item


class Followed:
    """A callback for pulled items: what it gives keeps their numbers and ids."""

    def __init__(self, callback: Callable[..., Any], keys: Keys | None) -> None:
        self.callback = callback
        self.keys = keys
        inner = callback
        while isinstance(inner, functools.partial):
            inner = inner.func
        self.__wrapped__ = inner  # messages name it

    @staticmethod
    def of(stage: AsyncMap[Any, Any], keys: Keys | None) -> Followed:
        """That of a stage."""
        from squirrel_torch.execution.choice import is_coroutine

        if is_coroutine(stage.callback):
            return _Awaited(stage.callback, keys)
        # Machine code takes no pairs: the callback alone is compiled.
        fast = stage.executor == "numba" and keys is None
        return Followed(compiled(stage.callback) if fast else stage.callback, keys)

    def _arguments(self, own: Id) -> dict[str, Any]:
        return {} if self.keys is None else self.keys.arguments(own)

    def __call__(self, pulled: Pulled) -> Any:
        """The number, the id, and what the callback gives."""
        return pulled.number, pulled.own, self.callback(pulled.item, **self._arguments(pulled.own))

    def __getstate__(self) -> dict[str, Any]:
        return to_portable(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(from_portable(state))


class _Awaited(Followed):
    """The same for a coroutine function."""

    async def __call__(self, pulled: Pulled) -> Any:
        return pulled.number, pulled.own, await self.callback(pulled.item, **self._arguments(pulled.own))


class Progress:
    """Which items of an `async_map` have been given, where the stages before are ahead of it.

    The stages before run in another thread, and further than what was given. So their states are noted every now and then,
    and the memory says which one to begin with, and which of the items from there on were given already.

    Args:
        memory: That of the stage. Items are numbered from where this run has begun: "below", the states of the stages before,
            in front of item "since"; all before item "done" were given but those in "missing". Where failures are left out,
            "dealt", "skipped" and "kinds" are the counts of the report.
        below: Gives the states of the stages before as they are now.
        report: Its counts are kept; None where a failure ends the stream.
    """

    def __init__(self, memory: dict[str, Any], below: Callable[[], list[Any]], report: StageReport | None) -> None:
        self._memory = memory
        self._below = below
        self._report = report
        since = memory.get("since", 0)
        self._done: int = memory.get("done", 0) - since
        self._missing: list[int] = [number - since for number in memory.get("missing", ())]  # in their order
        self._before = self._done, frozenset(self._missing)
        # Added to by the thread that pulls, taken from by the one that reads.
        self._marks: deque[tuple[int, list[Any]]] = deque()
        memory.update({"below": below(), "since": 0, "done": self._done, "missing": self._missing})
        self._restore_report()

    def pulled(self, steps: Iterator[Step]) -> Iterator[Pulled]:
        """The items that were not given before."""
        done, missing = self._before
        due = _MARK
        for number, (own, item) in enumerate(steps):
            if number >= done or number in missing:
                yield Pulled(number, own, item)
                del item
            if number + 1 >= due:
                states = self._below()
                self._marks.append((number + 1, states))
                due = number + 1 + max(_MARK, _size(states) // _PER_HELD)

    def passed(self, pulled: Pulled) -> None:
        """This item was left out: it is dealt with."""
        self.passed_number(pulled.number)

    def passed_number(self, number: int) -> None:
        """The item of this number is dealt with."""
        memory, missing = self._memory, self._missing
        if number >= self._done:
            if number > self._done:
                missing.extend(range(self._done, number))
            self._done = memory["done"] = number + 1
        else:
            del missing[bisect_left(missing, number)]
        if self._marks:
            self._move_on()
        if self._report is not None:
            self._dealt += 1
            memory["dealt"], memory["skipped"] = self._dealt, self._report.skipped
            memory["kinds"] = dict(self._report.kinds)

    def _move_on(self) -> None:
        """Take the latest states of the stages before behind which nothing was given that is missing."""
        marks, low = self._marks, self._missing[0] if self._missing else self._done
        while marks and marks[0][0] <= low:
            self._memory["since"], self._memory["below"] = marks.popleft()
        if len(marks) > _MOST_MARKS:  # one item takes its time, and many have overtaken it
            for place in range(len(marks) - 2, 0, -2):
                del marks[place]

    def _restore_report(self) -> None:
        report, memory = self._report, self._memory
        if report is not None and "dealt" in memory:
            report.items, report.skipped = memory["dealt"], memory["skipped"]
            report.kinds.clear()
            report.kinds.update(memory["kinds"])
        self._dealt = 0 if report is None else report.items


def _size(states: list[dict[str, Any]]) -> int:
    """About how many ids some states hold."""
    return sum(len(value) for memory in states for value in memory.values() if isinstance(value, list))


def check_progress(memory: Mapping[str, Any]) -> None:
    """Raise StateError unless the memory of an `async_map` fits together."""
    since, done, missing = memory.get("since", 0), memory.get("done", 0), memory.get("missing", [])
    in_order = all(since <= number < done for number in missing) and missing == sorted(set(missing))
    if done < since or not in_order:
        raise StateError("what an async_map has given does not fit together: since, done and missing contradict each other")
    if "dealt" in memory and not {"skipped", "kinds"} <= memory.keys():
        raise StateError("what an async_map has left out is not told: skipped and kinds are missing")
