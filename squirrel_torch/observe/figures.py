"""What was seen of a stream: plain numbers, which can be sent, saved and added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from squirrel_torch.errors import StateError
from squirrel_torch.histogram import Histogram

__all__ = ["Calls", "Figures", "Histogram", "Loading", "StageFigures"]

_VERSION: Final = 1


@dataclass(frozen=True)
class Calls:
    """The calls of a callback that runs in a place of its own: threads, processes, coroutines, dask.

    Args:
        place: "thread", "process", "coroutine", "executor", "dask", or "numba".
        workers: How many may run at a time.
        count: How many have come back.
        wall: Seconds that they took, added up over workers.
        cpu: Of these, seconds of CPU time; None where it can't be told apart.
        away: Seconds on the way there and back and waiting for a turn, added up over chunks.
        hungry: Share of the time in which the place had less to do than it could.
        in_flight: Items between being pulled and being consumed, on average.
        buffer: How many of these there may be.
        times: How long each took.
    """

    place: str
    workers: int
    count: int = 0
    wall: float = 0.0
    cpu: float | None = None
    away: float = 0.0
    hungry: float = 0.0
    in_flight: float = 0.0
    buffer: int = 0
    times: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True)
class StageFigures:
    """What was seen of one place of a chain.

    Args:
        place: Its number in its chain, the source's being 0.
        name: As one would write it, such as `map(decode)`.
        kind: The class of the stage, such as `Map`; of a source such as `IterableSource`.
        branch: Which branch of a mix it is in, from the outside in; empty for the main chain. The mix is the source.
        site: Where it is written, `file:line`; None if that is not known.
        thread: The stages of one name here share a thread: "main", or "feeder 3" before the `async_map` at place 3.
        items: How many it has given; None if nothing counts them.
        exact: Whether they were counted here, or follow from the count of another place.
        size: Bytes of an item, about; None if none was looked at.
        busy: Seconds of its own work, in the thread that asks it, calls of a place of its own not among them.
        cpu: Of these, seconds of CPU time; None where it can't be told apart.
        upstream: Seconds in which it waited for the stages before it, or for calls of its own place.
        downstream: Seconds in which nobody asked it for an item.
        retries: Calls that were made again.
        skipped: Items that failed and were left out.
        planned: It is arithmetic: the order of the source does its work.
        calls: Of its callback, if it runs in a place of its own.
        times: How long calls of its own thread took, where each was timed.
    """

    place: int
    name: str
    kind: str
    branch: tuple[str, ...] = ()
    site: str | None = None
    thread: str = "main"
    items: int | None = None
    exact: bool = True
    size: float | None = None
    busy: float = 0.0
    cpu: float | None = None
    upstream: float = 0.0
    downstream: float = 0.0
    retries: int = 0
    skipped: int = 0
    planned: bool = False
    calls: Calls | None = None
    times: Histogram | None = None


@dataclass(frozen=True)
class Loading:
    """What a loader has seen of those that make its batches, and of the one that takes them.

    Args:
        workers: How many processes make batches; 0: the consumer's own.
        batches: How many were taken.
        samples: How many samples were in them; None if that can't be told.
        waited: Seconds in which the consumer waited for a batch.
        outside: Seconds between two batches, in which it did its own work.
        packing: Seconds in which workers wrote batches into shared memory, added up.
        blocked: Seconds in which workers had made all that they may make ahead, added up.
        unpacking: Seconds in which batches were copied out of shared memory.
        ready: Batches that waited to be taken, on average.
        most_ready: How many of these there may be.
        size: Bytes of a batch, about; None where nothing travels.
        outside_cpu: Seconds of CPU time of the consumer's thread in `outside`; None if that was not looked at.
    """

    workers: int
    batches: int = 0
    samples: int | None = None
    waited: float = 0.0
    outside: float = 0.0
    packing: float = 0.0
    blocked: float = 0.0
    unpacking: float = 0.0
    ready: float = 0.0
    most_ready: int = 0
    size: float | None = None
    outside_cpu: float | None = None

    @property
    def wait_share(self) -> float:
        """Share of the time of the consumer in which it waited for data; 0 before the first batch."""
        total = self.waited + self.outside
        return self.waited / total if total else 0.0


@dataclass(frozen=True)
class Figures:
    """What was seen of a stream.

    Args:
        seconds: How long it was looked at.
        stages: The places of the chain, the source's first; those of branches behind the mix that they belong to. With
            workers, seconds and items are added up over all of them.
        loading: What the loader saw; None without one.
        makers: How many processes have made the items, and are added up in `stages`.
        ranks: How many ranks are added up.
        cores: CPUs that the process may use.
        sampled: Whether seconds were sampled by a clock; if not, every call was timed.
        warnings: What limits these figures, in words.
    """

    seconds: float
    stages: tuple[StageFigures, ...]
    loading: Loading | None = None
    makers: int = 1
    ranks: int = 1
    cores: int = 1
    sampled: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def items(self) -> int | None:
        """What the last place of the chain has given."""
        main = [stage for stage in self.stages if not stage.branch]
        return main[-1].items if main else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"version": _VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Figures:
        """What `to_dict` gave, also after a way through JSON.

        Raises:
            StateError: If it is none.
        """
        try:
            if content["version"] != _VERSION:
                raise StateError(f"figures of version {content['version']!r} are not known, this is {_VERSION}")
            values = {one.name: content[one.name] for one in fields(cls)}
            values["stages"] = tuple(map(_stage_of, values["stages"]))
            values["loading"] = None if values["loading"] is None else Loading(**values["loading"])
            values["warnings"] = tuple(values["warnings"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"these are no figures of a stream: {error!r}") from error


def _stage_of(content: Mapping[str, Any]) -> StageFigures:
    values = dict(content)
    values["branch"] = tuple(values["branch"])
    values["times"] = _histogram_of(values["times"])
    if values["calls"] is not None:
        calls = dict(values["calls"])
        calls["times"] = _histogram_of(calls["times"]) or Histogram()
        values["calls"] = Calls(**calls)
    return StageFigures(**values)


def _histogram_of(content: Mapping[str, Any] | None) -> Histogram | None:
    return None if content is None else Histogram({int(step): int(count) for step, count in content["counts"].items()})
