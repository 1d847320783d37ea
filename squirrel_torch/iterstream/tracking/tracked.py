"""Runs that know how far they have come: each item has an id, and the run can be gone on with from between any two items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from squirrel_torch.errors import PipelineError, StateError
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.iterable import Source
from squirrel_torch.iterstream.lifetime import Lifetime, Observer, guarded
from squirrel_torch.iterstream.mix import Mix
from squirrel_torch.iterstream.multiplexer import Multiplexer
from squirrel_torch.iterstream.planned import Numbered, is_opaque, planned_prefix, seed_before
from squirrel_torch.iterstream.stage import Context, Id, Stage, Step
from squirrel_torch.iterstream.stages import AutoSplit
from squirrel_torch.iterstream.tracking.levels import Level, Memory, NumberedLevel, PlannedLevel, ReplayedLevel, StageLevel
from squirrel_torch.iterstream.tracking.memory import check_memory, restored, said
from squirrel_torch.iterstream.tracking.mixed import MixedLevel
from squirrel_torch.sharding import Shard

__all__ = ["Given", "Tracked", "check_state", "followed", "track"]


_FURTHEST: Final = 1 << 20
"""So far a stage that pulls ahead may have been ahead of the state of what is run again before it."""


class Tracked(Iterator[Step]):
    """A run that gives (id, item), and can be asked between two items for what is needed to go on behind the last one.

    Nothing is opened before its first item is asked for. It ends like a `Run`.

    Args:
        links: The places of the chain, from its source on.
        epoch: The number of the epoch.
        state: What `snapshot` gave; None to begin at the beginning.
        observer: Looks at it while it goes on.
        automatic: Whether it is a share of what several processes run, of a chain that does not say so.

    Raises:
        StateError: If the state can't be one of this chain.
    """

    def __init__(
        self,
        links: Sequence[Composable[Any]],
        epoch: int,
        state: list[Any] | None = None,
        observer: Observer | None = None,
        *,
        automatic: bool = False,
    ) -> None:
        check_state(links, state)
        self._state = state
        self._lifetime = lifetime = Lifetime(observer)
        lifetime.automatic = automatic
        self._opened: list[Level] = []
        opened = self._opened

        def start() -> Iterator[Step]:
            opened.append(open_levels(links, Context(epoch, (), lifetime.reports), lifetime, state))
            return opened[0].steps()

        # It must not know this object: a cycle would keep an abandoned run alive until the garbage collector comes.
        self._steps = guarded(lifetime, start)

    def __next__(self) -> Step:
        for step in self._steps:
            return step
        self._lifetime.after()  # raises if it did not end by its last item
        raise StopIteration

    def snapshot(self) -> list[Any] | None:
        """What is needed to go on behind the item that was given last: JSON types, a fresh copy. None is the beginning."""
        return self._opened[0].snapshot() if self._opened else self._state

    def close(self) -> None:
        """End the run now."""
        self._steps.close()
        self._lifetime.close("closed")


def track(
    links: Sequence[Composable[Any]],
    epoch: int,
    state: list[Any] | None = None,
    observer: Observer | None = None,
    *,
    automatic: bool = False,
) -> Tracked:
    """See `Tracked`."""
    return Tracked(links, epoch, state, observer, automatic=automatic)


def followed(links: Sequence[Composable[Any]], context: Context, lifetime: Lifetime) -> Iterator[Any]:
    """The items of a part of a run, whose stages are told the ids: some ask for generators."""
    for _, item in open_levels(links, context, lifetime, None).steps():
        yield item


def _begin(links: Sequence[Composable[Any]], context: Context) -> tuple[str, int, Any]:
    """What a chain begins with, how many of its places that covers, and the plan if it is one."""
    first = links[0]
    kind, count, planned = "replayed", 1, None
    if isinstance(first, Numbered | Given):
        kind = "given"
    elif (planned := planned_prefix(links, context)) is not None:
        kind, count = "planned", planned.count
    elif isinstance(first, Mix) and not first._custom and not _starts_again(first):
        kind = "mixed"
    again = 1 if kind == "replayed" else 0
    for place, link in enumerate(links[1:], start=1):
        # In each pass of a loop what is run again may give other items under the same numbers.
        if is_opaque(link) or (again and link._repeats):
            again = place + 1
    return ("replayed", again, None) if again else (kind, count, planned)


def _starts_again(mix: Mix[Any]) -> bool:
    """Whether a stream of a mix may be started again and can only be run from its beginning."""
    starts = isinstance(mix, Multiplexer) and mix._draws
    return starts and any(_is_replayed(branch._links()) for branch in mix.branches)


def _is_replayed(links: Sequence[Composable[Any]]) -> bool:
    kind = _begin(links, Context())[0]
    return kind == "replayed" or (kind == "mixed" and any(_is_replayed(one._links()) for one in links[0].branches))  # type: ignore[attr-defined]  # a mix


def open_levels(
    links: Sequence[Composable[Any]],
    context: Context,
    lifetime: Lifetime,
    state: Sequence[Memory] | None,
    needed: Sequence[Id] | None = None,
) -> Level:
    """The last place of a chain, over those before it, each with what it remembers.

    Args:
        links: The places of the chain.
        context: The epoch, and the path of the chain.
        lifetime: Closes what is opened.
        state: What they remember; None at the beginning.
        needed: The ids of items of the first place that will be made again, where they have been worked out.
    """
    # Before the source is opened, which may refuse to be split so.
    lifetime.automatic |= any(isinstance(link._stage, AutoSplit) and not link._stage.written for link in links)
    kind, count, planned = _begin(links, context)
    memories = [restored(memory) for memory in state] if state is not None else [{} for _ in range(len(links) - count + 1)]
    if needed is None:
        needed = _needed([link._stage for link in links[count:] if link._stage is not None], memories[1:], ())
    if len(links) > count:
        return _stage_level(links, context, lifetime, memories, needed)
    (memory,) = memories
    if kind == "planned":
        return PlannedLevel(links, planned, context, lifetime, memory)
    if isinstance(links[0], Numbered):
        return NumberedLevel(links[0], context, lifetime)
    if isinstance(links[0], Given):
        return GivenLevel(links[0], lifetime)
    if kind == "mixed":
        return MixedLevel(links[0], context.below(0), lifetime, memory, open_levels)  # type: ignore[arg-type]  # seen to be one
    return ReplayedLevel(links, context, lifetime, memory, frozenset(needed or ()))


def _stage_level(
    links: Sequence[Composable[Any]],
    context: Context,
    lifetime: Lifetime,
    memories: Sequence[Memory],
    needed: Sequence[Id] | None,
) -> StageLevel:
    *before, last = links
    saved = memories[-1].get("pass", 0)
    draws = sum(link._draws or link._repeats for link in before)

    def below(number: int) -> Level:
        # As `run.Upstream` opens the passes of a loop.
        own = context.below("pass", draws, number) if number else context
        return open_levels(before, own, lifetime, *((memories[:-1], needed) if number == saved else (None,)))

    first = before[0]
    earlier = [*first.before, *before] if isinstance(first, Given) else before
    keyed = sum(link._stage is not None and link._stage.wanted is not None for link in earlier)
    repeating = next((link for link in before if link._repeats), None)
    if last._stage is not None and last._stage.wanted is not None and repeating is not None:
        raise PipelineError(
            f"{last._describe()} asks for a generator and stands behind {repeating._describe()}, which may read what is before "
            "it several times, and each time the same numbers would be drawn: put it in front of that, or loop by epochs"
        )
    own = context.below(sum(link._draws for link in before))
    return StageLevel(last, len(before), below, own, lifetime, memories[-1], seed_before(before), keyed)


class Given(Source[Any]):
    """What a part of a chain gives, as the source of the rest.

    Args:
        before: The places of that part.
        steps: What it gives.
    """

    def __init__(self, before: Sequence[Composable[Any]], steps: Iterator[Step]) -> None:
        super().__init__()
        self.before = before
        self.steps = steps
        self.seed = seed_before(before)

    @property
    def _draws(self) -> Any:
        """How many places it stands for draw random numbers."""
        return sum(link._draws for link in self.before)

    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[Any]:
        return (item for _, item in self.steps)

    def _describe(self) -> str:
        return self.before[-1]._describe()


class GivenLevel(Level):
    """The same in a tracked run. What is gone on with is that part, not this one."""

    def __init__(self, given: Given, lifetime: Lifetime) -> None:
        super().__init__({})
        self._given = given
        lifetime.opened(given, 0)

    def steps(self) -> Iterator[Step]:
        return self._given.steps

    def remake(self, ids: Sequence[Id]) -> list[Any]:
        raise AssertionError("nothing behind such a source is gone on with")


def check_state(links: Sequence[Composable[Any]], state: Any, wanted: Sequence[Id] = ()) -> None:
    """Raise StateError unless `state` can be what a run of this chain remembers. Nothing is opened.

    Args:
        links: The places of the chain, from its source on.
        state: A list of memories, plain JSON types; None is the beginning.
        wanted: The ids of items of the chain that will have to be made again.
    """
    kind, count, planned = _begin(links, Context())
    first: dict[str, str] = {
        "planned": {"at": "count"},
        "replayed": {"given": "count", "digest": "count"},
        "given": {},
        "mixed": dict(MixedLevel.REMEMBERS),
    }[kind]
    above = [link._stage for link in links[count:] if link._stage is not None]
    if state is None:
        state = [{} for _ in range(len(above) + 1)]
    check_memory(state, [first, *(dict(stage.remembers) for stage in above)], links)
    begun, *memories = map(restored, state)
    needed = _needed(above, memories, wanted)
    if kind == "mixed":
        MixedLevel.check(links[0], begun, needed, check_state)  # type: ignore[arg-type]  # seen to be one
    elif needed is not None:
        _check_first(links, planned, begun, needed)


def _needed(stages: Sequence[Stage[Any, Any]], memories: Sequence[Memory], wanted: Sequence[Id]) -> Sequence[Id] | None:
    """The ids of the items below some stages that will have to be made again; None if that can't be known."""
    needed: Sequence[Id] | None = wanted
    for stage, memory in zip(reversed(stages), reversed(memories), strict=True):
        stage.check(memory)
        below = None if needed is None else stage.parents(needed)
        held = [*memory.get("held", ()), *([memory["open"]] if memory.get("open") is not None else [])]
        needed = None if below is None else [*below, *held]
    return needed


def _check_first(links: Sequence[Composable[Any]], planned: Any, memory: Memory, needed: Sequence[Id]) -> None:
    rows = None if planned is None else len(planned.rows)
    length = None if planned is None else planned.order.length
    if length is not None and memory.get("at", 0) > length:
        raise StateError(f"{links[0]._describe()} has {length} items, the state says that it has given {memory['at']}")
    most = memory.get("given", 0) + _FURTHEST if rows is None else rows
    for own in needed:
        if type(own) is not int or own >= most:
            raise StateError(f"{said(own)} is no number of an item of {links[0]._describe()}")
