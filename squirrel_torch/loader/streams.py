"""The streams into which a chain is dealt, and what a worker makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.layout import Layout, Mode
from squirrel_torch.iterstream.stages import AutoSplit, Batched, Shuffled
from squirrel_torch.iterstream.torch_composables import place_of_split
from squirrel_torch.iterstream.tracking import track
from squirrel_torch.loader.course import END
from squirrel_torch.loader.filling import filled, real_samples
from squirrel_torch.loader.work import with_stage
from squirrel_torch.observe.collected import Collected
from squirrel_torch.sharding import Shard

__all__ = ["Part", "StreamedWork", "Ticket", "next_stream", "places_of", "split_place", "stream_links"]


class Part(NamedTuple):
    """How far a stream has come.

    Args:
        given: How many batches were delivered of it.
        ended: Whether that was all.
        state: That of its run, None at its beginning and at its end.
    """

    given: int = 0
    ended: bool = False
    state: list[Any] | None = None


class Ticket(NamedTuple):
    """What comes with a batch.

    Args:
        stream: Of which stream it is.
        state: That of its run behind the batch; None says that the stream has ended, and there is no batch.
        real: How many samples of the batch are of the epoch, and don't only fill it up.
    """

    stream: int
    state: list[Any] | None
    real: int = 0


@dataclass(frozen=True)
class StreamedWork:
    """A pass over the streams of a rank.

    Args:
        epoch: Which epoch.
        count: How many streams there are on all ranks.
        parts: Those of the rank, and how far each has come.
        fills: Whether batches at the ends of the streams are filled up.
        automatic: Whether the chain is divided among several processes without saying so.
    """

    epoch: int
    count: int
    parts: tuple[tuple[int, Part], ...]
    fills: bool = False
    automatic: bool = False

    def batches(
        self, layout: Layout, worker: int, count: int, collected: Collected | None = None
    ) -> Iterator[tuple[Ticket, Any]]:
        """The batches of every `count`-th stream of the rank, in turns."""
        own = dict(self.parts[worker::count])
        given = {stream: part.given for stream, part in own.items() if not part.ended}
        runs: dict[int, Any] = {}
        observer = None if collected is None else collected.numbered(places_of(layout, self.count))
        try:
            while given:
                stream = next_stream(given)
                if stream not in runs:
                    links = stream_links(layout, Shard(stream, self.count), written=not self.automatic)
                    links = filled(links) if self.fills else links
                    runs[stream] = track(links, self.epoch, own[stream].state, observer, automatic=self.automatic)
                item = next(runs[stream], END)
                if item is END:
                    del given[stream]
                    runs.pop(stream).close()
                    yield Ticket(stream, None), None
                else:
                    given[stream] += 1
                    real = real_samples(item[0])
                    if collected is not None:
                        collected.batches += 1
                        collected.samples += real
                    yield Ticket(stream, runs[stream].snapshot(), real), item[1]
        finally:
            for run in runs.values():
                run.close()


def next_stream(given: Mapping[int, int]) -> int:
    """The stream whose turn it is: the first one of those that have given the fewest batches."""
    return min(given, key=lambda stream: (given[stream], stream))


def stream_links(layout: Layout, share: Shard, *, written: bool = True) -> list[Composable[Any]]:
    """The places of a chain, reduced to the share of one stream."""
    links = [_of_stream(link, share.count) for link in layout.links]
    if share.count > 1:
        links.insert(split_place(layout), Composable(stage=AutoSplit(share, written)))
    return links


def places_of(layout: Layout, count: int) -> list[int | None]:
    """For each place of such a chain its number in the layout; None for the split."""
    places: list[int | None] = [*range(len(layout.links))]
    if count > 1:
        places.insert(split_place(layout), None)
    return places


def split_place(layout: Layout) -> int:
    """The index in the links of a chain before which it is dealt to streams.

    Raises:
        ShardingError: If it can't be known where that is right.
    """
    if layout.mode is Mode.REPLAYED and layout.split_at is not None:
        return layout.split_at
    return place_of_split(layout.links)


def _of_stream(link: Composable[Any], count: int) -> Composable[Any]:
    stage = link._stage
    if isinstance(stage, Shuffled):
        # All buffers together hold as many items as one would.
        stage = replace(stage, size=max(2, -(-stage.size // count)))
    elif isinstance(stage, Batched) and stage.drop_last:
        stage = replace(stage, drop_last=False)
    else:
        return link
    return with_stage(link, stage)
