"""Going through a chain that is not planned: as several streams, each with a place of its own.

The stream is dealt to a fixed number of streams, each a small run over its share of the source. A rank hosts some of them, a
worker some of these, and batches come from the streams in turns. So another number of ranks or workers changes who hosts a
stream, and nothing else. Each batch brings with it the state of its stream behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any, Final

from squirrel_torch.errors import PipelineError, StateError
from squirrel_torch.iterstream.layout import Layout, Mode
from squirrel_torch.iterstream.planned import planned_prefix
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.iterstream.stages import Batched
from squirrel_torch.iterstream.tracking import check_state
from squirrel_torch.loader.course import END, Course, Hands, World, is_automatic, require_end
from squirrel_torch.loader.filling import batch_size_of, mask_of
from squirrel_torch.loader.padding import with_mask
from squirrel_torch.loader.streams import Part, StreamedWork, next_stream, stream_links
from squirrel_torch.plan.state import whole
from squirrel_torch.sharding import Shard

__all__ = ["StreamedCourse"]

_COUNTS: Final = (12, 24, 60, 120, 360, 720, 1260, 2520, 5040)
"""Numbers of streams that many numbers of ranks divide."""

_EACH: Final = 4
_MOST: Final = 1 << 20


@dataclass(frozen=True)
class Place:
    """A place in a stream of streams.

    Args:
        epoch: Which epoch, from 0.
        count: How many streams there are.
        step: How many batches of the epoch this rank has got.
        parts: How far the streams have come: those of this rank, or all where a state was loaded.
    """

    epoch: int
    count: int
    step: int = 0
    parts: Mapping[int, Part] = field(default_factory=dict)


class StreamedCourse(Course[Place]):
    """The epochs of a chain that is not planned.

    Args:
        layout: The chain.
        streams: To how many streams it is dealt; None: as many as suit the number of ranks, or as a loaded state has.
        pads: Whether smaller batches are filled up, and all of them have masks.
    """

    def __init__(self, layout: Layout, streams: int | None, *, pads: bool = False) -> None:
        super().__init__(layout)
        self._streams = streams
        self._pads = pads
        self._size = batch_size_of(layout.links) if pads else 1
        self._data = self._fingerprint()

    def _fingerprint(self) -> dict[str, Any] | None:
        planned = planned_prefix(self.layout.links, Context())
        return None if planned is None else planned.rows.fingerprint()

    def count(self, world: World) -> int:
        """How many streams there are."""
        if self._streams is not None:
            return self._streams
        ranks = world.rank.count
        if self.layout.mode is Mode.REPLAYED:
            return ranks * world.workers  # each of them runs what has to be run again: there are no more than needed
        return next((count for count in _COUNTS if count >= _EACH * ranks), _EACH * ranks)

    def fresh(self, epoch: int, world: World) -> Place:
        count = self.count(world)
        return Place(epoch, count, parts={stream: Part() for stream in hosted(count, world)})

    def epoch(self, place: Place) -> int:
        return place.epoch

    def is_over(self, place: Place, world: World) -> bool:
        begun = any(part.given or part.ended for part in place.parts.values())
        return begun and len(place.parts) == place.count and all(part.ended for part in place.parts.values())

    def batches(self, place: Place, world: World) -> int | None:
        raise TypeError(
            f"the number of batches of a {self.layout.mode.value} chain is not known before its end: it has no length; "
            "pipeline.explain() says what to change"
        )

    def deliver(self, place: Place, world: World, hands: Hands, seeds: Sequence[int]) -> Iterator[tuple[Place, Any]]:
        own = hosted(place.count, world)
        parts = {stream: place.parts[stream] for stream in own}
        automatic = is_automatic(self.layout, world)
        hands.start(StreamedWork(place.epoch, place.count, tuple(parts.items()), self._pads, automatic), seeds)
        workers = dict(zip(own, cycle(range(world.workers)), strict=False))
        given = {stream: part.given for stream, part in parts.items() if not part.ended}
        step = place.step
        while given:
            stream = next_stream(given)
            received = hands.receive(workers[stream])
            if received is END or received[0][0] != stream:
                raise PipelineError(f"worker {workers[stream]} was to give of stream {stream}, and gave {received!r:.80}")
            (_, state, real), batch = received
            if state is None:
                parts = {**parts, stream: Part(given.pop(stream), ended=True)}
                continue
            given[stream] += 1
            parts = {**parts, stream: Part(given[stream], state=state)}
            step += 1
            if self._pads:
                batch = with_mask(batch, mask_of(real, self._size))
            yield Place(place.epoch, place.count, step, parts), batch
        require_end(hands, world)
        yield Place(place.epoch, place.count, step, parts), END

    def over(self, place: Place) -> Place:
        ended = {stream: Part(part.given, ended=True) for stream, part in place.parts.items()}
        return replace(place, parts=ended)

    # -- states -------------------------------------------------------------------------------------------------------

    @property
    def chain(self) -> list[str]:
        """What decides the order of the stream: all of it, but for the size of batches at its end."""
        return [*super().chain[:-1], *self._last()]

    def _last(self) -> list[str]:
        stage = self.layout.links[-1]._stage
        return ["Batched"] if isinstance(stage, Batched) else super().chain[-1:]

    def content(self, place: Place, world: World) -> dict[str, Any]:
        # Where a state was loaded there are those of the others too, who know better.
        parts = {str(stream): list(place.parts[stream]) for stream in hosted(place.count, world)}
        return {"epoch": place.epoch, "step": place.step, "streams": place.count, "parts": parts}

    def placed(self, contents: Sequence[Mapping[str, Any]]) -> Place:
        counts = {whole(content, "streams", 1) for content in contents}
        if len(counts) > 1 or max(counts) > _MOST:
            raise StateError(f"the states of one job have one number of streams up to {_MOST}, these have {sorted(counts)}")
        (count,) = counts
        parts: dict[int, Part] = {}
        for content in contents:
            for stream, part in _parts(content, count):
                if parts.setdefault(stream, part) != part:
                    raise StateError(f"two states tell of stream {stream}, and not the same: they are of different moments")
        if missing := sorted(set(range(count)) - parts.keys()):
            raise StateError(
                f"streams {_few(missing)} of {count} are in none of the {len(contents)} states that were given: this chain "
                "needs those of all ranks, load_state_dict([state of rank 0, state of rank 1, ...])"
            )
        for stream in sorted(parts):
            if parts[stream].state is not None:
                check_state(stream_links(self.layout, Shard(stream, count)), parts[stream].state)
        self._streams = count
        step = max(whole(content, "step") for content in contents)
        return Place(whole(contents[0], "epoch"), count, step, parts)

    def data(self) -> dict[str, Any] | None:
        return self._data

    def difference(self, data: dict[str, Any]) -> str:
        planned = planned_prefix(self.layout.links, Context())
        return "it has no numbers now" if planned is None else planned.rows.difference(data)


def hosted(count: int, world: World) -> list[int]:
    """The streams of this rank."""
    return list(range(world.rank.index, count, world.rank.count))


def _parts(content: Mapping[str, Any], count: int) -> Iterator[tuple[int, Part]]:
    told = content.get("parts")
    if not isinstance(told, dict):
        raise StateError(f"parts in the state must be a dict, got {type(told).__name__}")
    for name, part in told.items():
        if not (name.isascii() and name.isdigit() and len(name) < 8 and int(name) < count):
            raise StateError(f"the state tells of stream {name[:20]!r}, there are streams 0 to {count - 1}")
        if not (isinstance(part, list) and len(part) == 3):
            raise StateError(f"the part of stream {name} must be a list of 3, got {type(part).__name__}")
        given, ended, state = part
        sound = type(given) is int and given >= 0 and type(ended) is bool and (state is None or isinstance(state, list))
        if not sound or (state is not None and ended) or (state is None and not ended and given):
            raise StateError(f"the part of stream {name} is not sound: {given!r:.40} batches, ended: {ended!r:.20}")
        yield int(name), Part(given, ended, state)


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown}, ..." if len(numbers) > 8 else shown
