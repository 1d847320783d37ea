"""Items that travel with their ids through an `async_map`, and how far it has come with them."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from squirrel_torch.execution.numba import compiled
from squirrel_torch.iterstream.keyed import Keys
from squirrel_torch.iterstream.stage import Id, Step
from squirrel_torch.portable import from_portable, to_portable

if TYPE_CHECKING:
    from squirrel_torch.iterstream.stages.async_map import AsyncMap

__all__ = ["Followed", "Progress", "Pulled"]

_MARK: Final = 64
"""After so many items the states of the stages before are noted."""


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
        memory: That of the stage: "below", the states of the stages before; "done", how many items from there on were given;
            "given", the numbers of further ones, counted from there.
        below: Gives the states of the stages before as they are now.
    """

    def __init__(self, memory: dict[str, Any], below: Callable[[], list[Any]]) -> None:
        self._memory = memory
        self._below = below
        self._low: int = memory.get("done", 0)  # all with lower numbers were given
        self._given: set[int] = set(memory.get("given", ()))
        self._before = self._low, frozenset(self._given)
        # Added to by the thread that pulls, taken from by the one that reads.
        self._marks: deque[tuple[int, list[Any]]] = deque([(0, below())])
        self._note()

    def pulled(self, steps: Iterator[Step]) -> Iterator[Pulled]:
        """The items that were not given before."""
        done, given = self._before
        for number in count():
            if number and number % _MARK == 0:
                self._marks.append((number, self._below()))
            for own, item in steps:
                if number >= done and number not in given:
                    yield Pulled(number, own, item)
                break
            else:
                return

    def passed(self, pulled: Pulled) -> None:
        """This item was left out: it is dealt with."""
        self.passed_number(pulled.number)

    def passed_number(self, number: int) -> None:
        """The item of this number is dealt with."""
        if number == self._low:
            self._low += 1
            while self._low in self._given:
                self._given.remove(self._low)
                self._low += 1
        else:
            self._given.add(number)
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= self._low:
            marks.popleft()
        self._note()

    def _note(self) -> None:
        number, states = self._marks[0]
        self._memory["below"] = states
        self._memory["done"] = self._low - number
        self._memory["given"] = sorted(given - number for given in self._given) if self._given else []
