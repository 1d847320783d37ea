"""Mixes in a tracked run: which stream gives the next item is arithmetic, and each stream is a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

from squirrel_torch.errors import StateError
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.iterstream.mix import IterableSamplerSource, Mix, pick
from squirrel_torch.iterstream.multiplexer import Multiplexer
from squirrel_torch.iterstream.stage import Context, Id, Step
from squirrel_torch.iterstream.tracking.levels import Level, Memory, remade
from squirrel_torch.iterstream.tracking.memory import said

__all__ = ["MixedLevel"]

Opener = Callable[..., Level]


class _Branch:
    """A stream of a mix: how often it was exhausted, and the run that goes on."""

    def __init__(self, opener: Opener, branch: Any, index: int, context: Context, lifetime: Lifetime, memory: Memory) -> None:
        self._opener = opener
        self._branch = branch
        self._index = index
        self._context = context
        self._outer = lifetime
        self.passes: int = memory.get("passes", 0)
        self.alive: bool = memory.get("alive", True)
        self._open(memory.get("states"))

    def _open(self, states: list[Any] | None) -> None:
        self._lifetime = self._outer.child(f"branch {self._index}")
        self._level = self._opened(self.passes, self._lifetime, states)
        self.steps = self._level.steps() if self.alive else iter(())

    def _opened(self, number: int, lifetime: Lifetime, states: list[Any] | None) -> Level:
        return self._opener(self._branch._links(), self._context.below("branch", self._index, number), lifetime, states)

    def again(self) -> None:
        """It is exhausted, and starts anew."""
        self._lifetime.close("closed")
        self.passes += 1
        self._open(None)

    def end(self) -> None:
        """It is exhausted, and stays so."""
        self.alive = False

    def remake(self, ids: Sequence[Id]) -> list[Any]:
        # In another pass callbacks may have drawn other numbers.
        return remade(ids, lambda number: self._level if number == self.passes else self._aside(number))

    def _aside(self, number: int) -> Level:
        return self._opened(number, self._outer.child(f"branch {self._index}"), None)

    def memory(self) -> Memory:
        """Plain JSON types."""
        return {"passes": self.passes, "alive": self.alive, "states": self._level.snapshot() if self.alive else None}

    def leave(self, kind: Any, error: Any, traceback: object) -> None:
        self._lifetime.__exit__(kind, error, traceback)


class MixedLevel(Level):
    """A mix. Ids are (branch, pass, id there).

    Args:
        mix: An IterableSamplerSource or a Multiplexer.
        context: Its own.
        lifetime: Closes what is opened.
        memory: "drawn": how many draws were used; "turn": whose turn it is; "branches": what each stream remembers.
        opener: Opens the levels of a branch.
    """

    REMEMBERS: ClassVar[Mapping[str, str]] = {"drawn": "count", "turn": "count", "branches": "any"}

    def __init__(self, mix: Mix[Any], context: Context, lifetime: Lifetime, memory: Memory, opener: Opener) -> None:
        super().__init__(memory)
        self._mix = mix
        self._context = context
        saved = memory.pop("branches", None) or [{} for _ in mix.branches]
        self._branches = [
            _Branch(opener, branch, index, context, lifetime, told)
            for index, (branch, told) in enumerate(zip(mix.branches, saved, strict=True))
        ]
        lifetime.opened(mix, 0)

    @staticmethod
    def check(mix: Mix[Any], memory: Memory, wanted: Sequence[Id] | None, check_state: Callable[..., None]) -> None:
        """Raise StateError unless a memory can be one of `mix`, and `wanted` ids of its items, if they are known."""
        count = len(mix.branches)
        told = memory.get("branches", [{"passes": 0, "alive": True, "states": None} for _ in range(count)])
        if not isinstance(told, list) or len(told) != count or memory.get("turn", 0) > count:
            raise StateError(f"{mix._describe()} remembers {count} streams, and whose turn it is")
        inside: list[list[Id]] = [[] for _ in range(count)]
        for own in wanted or ():
            if not (isinstance(own, tuple) and len(own) == 3 and all(type(part) is int for part in own[:2])):
                raise StateError(f"{said(own)} is no id of an item of {mix._describe()}")
            if own[0] >= count or own[2] is None:
                raise StateError(f"{mix._describe()} has {count} streams, there is an item of stream {own[0]}")
            inside[own[0]].append(own[2])
        for branch, one, ids in zip(mix.branches, told, inside, strict=True):
            sound = isinstance(one, dict) and one.keys() == {"passes", "alive", "states"} and type(one["alive"]) is bool
            if not sound or type(one["passes"]) is not int or not 0 <= one["passes"] < 1 << 63:
                raise StateError(f"a stream of {mix._describe()} remembers passes, alive and states, got {said(one)}")
            check_state(branch._links(), one["states"], ids)

    def snapshot(self) -> list[Memory]:
        return [{**self.memory, "branches": [branch.memory() for branch in self._branches]}]

    def remake(self, ids: Sequence[Id]) -> list[Any]:
        wanted: dict[int, list[int]] = {}
        for index, own in enumerate(ids):
            wanted.setdefault(own[0], []).append(index)  # type: ignore[index]  # checked before anything is opened
        items: list[Any] = [None] * len(ids)
        for branch, indices in wanted.items():
            made = self._branches[branch].remake([ids[index][1:] for index in indices])  # type: ignore[index]  # as above
            for index, item in zip(indices, made, strict=True):
                items[index] = item
        return items

    def steps(self) -> Iterator[Step]:
        mix = self._mix
        kind: BaseException | None = None
        try:
            if isinstance(mix, IterableSamplerSource):
                yield from self._sampled(mix)
            elif isinstance(mix, Multiplexer) and mix._draws:
                yield from self._drawn(mix)
            else:
                yield from self._in_turn()
        except BaseException as error:
            kind = error
            raise
        finally:
            for branch in self._branches:
                branch.leave(type(kind) if kind is not None else None, kind, None)

    def _draws(self, seed: Any) -> Iterator[float]:
        blocks = self._context.uniforms(seed, self.memory.get("drawn", 0))
        return chain.from_iterable(block.tolist() for block in blocks)

    def _sampled(self, mix: IterableSamplerSource[Any]) -> Iterator[Step]:
        memory, draws = self.memory, self._draws(mix.seed)
        drawn = memory.get("drawn", 0)
        alive = [index for index, branch in enumerate(self._branches) if branch.alive]
        while alive:
            index = alive[pick([mix.probs[one] for one in alive], next(draws))]
            drawn += 1
            for own, item in self._branches[index].steps:
                memory["drawn"] = drawn
                yield (index, 0, own), item
                break
            else:
                self._branches[index].end()
                alive.remove(index)

    def _drawn(self, mix: Multiplexer[Any]) -> Iterator[Step]:
        memory, draws = self.memory, self._draws(mix.seed)
        drawn = memory.get("drawn", 0)
        while True:
            index = pick(mix.sampling_probas, next(draws))
            drawn += 1
            branch = self._branches[index]
            for own, item in branch.steps:
                memory["drawn"] = drawn
                yield (index, branch.passes, own), item
                break
            else:
                passes = [one.passes for one in self._branches]
                passes[index] += 1
                if min(passes) > 0 or max(passes) >= mix.max_reinits:
                    return
                branch.again()

    def _in_turn(self) -> Iterator[Step]:
        memory = self.memory
        while any(branch.alive for branch in self._branches):
            for index in range(memory.get("turn", 0), len(self._branches)):
                branch = self._branches[index]
                for own, item in branch.steps if branch.alive else ():
                    memory["turn"] = index + 1
                    yield (index, 0, own), item
                    break
                else:
                    if branch.alive:
                        branch.end()
            memory["turn"] = 0
