"""A report as what is shown of it: the places of a chain and of its branches, with rates and shares of their time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from squirrel_torch.observe.figures import Figures, Histogram, StageFigures
from squirrel_torch.observe.report import Report
from squirrel_torch.observe.spelling import amount_of, clean, cut, percent, time_of

__all__ = ["Chain", "Place", "chain_of", "facts_of", "headline", "makers_of", "sentence", "split_of_consumer"]

_CAUSES: Final = {
    "consumer": "data is there in time, it has its own work to do",
    "gil": "its threads wait for each other (the GIL)",
    "cpu": "it computes on one core",
    "cores": "it computes, and all cores are busy",
    "latency": "it waits for answers, with too few calls at a time",
    "serial": "one thread makes all of its items",
    "hand-over": "handing over between processes takes the time",
    "overhead": "Python's own work on many small items",
}


@dataclass(frozen=True)
class Place:
    """One place of a chain, as it is shown.

    Args:
        stage: What was seen of it.
        name: Its name in one line.
        rate: Items that it gives in a second; None if that is not known.
        busy: Share of the time in which it works: of that of its workers, where its calls have a place of their own.
        upstream: Share in which it waits for what is before it.
        downstream: Share in which it waits for what is behind it.
        cpu: Share of the busy time that is CPU time; None where that is not known.
        limits: Whether it is the one that limits the stream.
    """

    stage: StageFigures
    name: str
    rate: float | None
    busy: float
    upstream: float
    downstream: float
    cpu: float | None
    limits: bool

    @property
    def times(self) -> Histogram | None:
        """How long its calls took; None if none was timed."""
        times = self.stage.calls.times if self.stage.calls is not None else self.stage.times
        return times if times is not None and times.counts else None

    @property
    def items(self) -> str:
        """How many it has given."""
        return "" if self.stage.items is None else f"{self._about}{self.stage.items:,}"

    @property
    def rate_text(self) -> str:
        """Items in a second."""
        return "" if self.rate is None else f"{self._about}{amount_of(self.rate)}"

    @property
    def fill(self) -> tuple[float, int] | None:
        """Items in flight, and how many these may be; None without a place of its own."""
        calls = self.stage.calls
        return None if calls is None or not calls.buffer else (calls.in_flight, calls.buffer)

    @property
    def _about(self) -> str:
        return "" if self.stage.exact else "~"


@dataclass(frozen=True)
class Chain:
    """Places that follow each other.

    Args:
        name: Of the branch; empty for the main chain.
        places: The source's first.
        branches: Those that the source draws from, if it is a mix.
    """

    name: str
    places: tuple[Place, ...]
    branches: tuple[Chain, ...] = field(default=())

    def rows(self, depth: int = 0) -> Iterator[tuple[int, str, Place]]:
        """All places with how deep they lie, and the name of the branch at the first of each: branches follow their mix."""
        for number, place in enumerate(self.places):
            yield depth, "" if number else self.name, place
            if not number:
                yield from self._below(depth + 1)
        if not self.places:
            yield from self._below(depth + 1)

    def _below(self, depth: int) -> Iterator[tuple[int, str, Place]]:
        for branch in self.branches:
            yield from branch.rows(depth)


def chain_of(report: Report) -> Chain:
    """The places of a report."""
    return _chain(report, ())


def _chain(report: Report, branch: tuple[str, ...]) -> Chain:
    depth, stages = len(branch), report.figures.stages
    own = sorted((stage for stage in stages if stage.branch == branch), key=lambda stage: stage.place)
    below = dict.fromkeys(
        stage.branch[: depth + 1] for stage in stages if stage.branch[:depth] == branch and stage.branch != branch
    )
    return Chain(
        name=clean(branch[-1]) if branch else "",
        places=tuple(_place(report, stage) for stage in own),
        branches=tuple(_chain(report, other) for other in below),
    )


def _place(report: Report, stage: StageFigures) -> Place:
    figures, verdict = report.figures, report.verdict
    busy, upstream, downstream, cpu = _shares(figures, stage)
    return Place(
        stage=stage,
        name=clean(stage.name) or clean(stage.kind),
        rate=None if stage.items is None or not figures.seconds else stage.items / figures.seconds,
        busy=busy,
        upstream=upstream,
        downstream=downstream,
        cpu=cpu,
        limits=(stage.place, stage.branch) == (verdict.place, verdict.branch),
    )


def _shares(figures: Figures, stage: StageFigures) -> tuple[float, float, float, float | None]:
    total, calls = figures.seconds * max(1, figures.makers), stage.calls
    if calls is None:
        shares = [_share(seconds, total) for seconds in (stage.busy, stage.upstream, stage.downstream)]
        return shares[0], shares[1], shares[2], _part(stage.cpu, stage.busy)
    # Its own thread only hands over: what counts is whether its workers have something to do.
    busy = _share(calls.wall, figures.seconds * max(1, calls.workers))
    upstream = min(1 - busy, max(0.0, calls.hungry))
    # Workers who have nothing to do though their place is not hungry wait for what they made to be taken.
    return busy, upstream, 1 - busy - upstream if calls.count else 0.0, _part(calls.cpu, calls.wall)


def _share(seconds: float, total: float) -> float:
    return min(1.0, max(0.0, seconds / total)) if total > 0 else 0.0


def _part(cpu: float | None, busy: float) -> float | None:
    return None if cpu is None or not busy else _share(cpu, busy)


# -- in words ----------------------------------------------------------------------------------------------------------


def sentence(report: Report) -> str:
    """The verdict in one line."""
    return clean(str(report.verdict))


def headline(report: Report) -> str:
    """The verdict in few words."""
    verdict = report.verdict
    stage, cause = cut(clean(verdict.stage), 44), _CAUSES.get(verdict.cause)
    return f"{stage} is the limit: {cause}" if cause else f"no limit is known: {clean(verdict.because)}"


def facts_of(figures: Figures) -> str:
    """How long it was looked at, and what came out."""
    facts = [f"looked at for {time_of(figures.seconds)}"]
    if figures.items is not None:
        rate = f", {amount_of(figures.items / figures.seconds)} a second" if figures.seconds else ""
        facts.append(f"{figures.items:,} items{rate}")
    if figures.loading is not None:
        facts.append(f"the consumer waits {percent(figures.loading.wait_share)} of its time")
    return "; ".join(facts)


def makers_of(figures: Figures) -> str:
    """`4 workers`, `8 workers on 2 ranks`; empty where the consumer's process makes the items."""
    parts = []
    if figures.loading is not None and figures.loading.workers:
        parts.append(f"{figures.makers} worker{'s' if figures.makers != 1 else ''}")
    if figures.ranks > 1:
        parts.append(f"on {figures.ranks} ranks")
    return " ".join(parts)


def split_of_consumer(figures: Figures) -> tuple[float, float]:
    """Shares of the time of the consumer that it works and that it waits for data; both 0 if none is known."""
    loading = figures.loading
    if loading is not None:
        return (1 - loading.wait_share, loading.wait_share) if loading.waited + loading.outside else (0.0, 0.0)
    main = [stage for stage in figures.stages if not stage.branch]
    if not main or not main[-1].items:
        return 0.0, 0.0
    works = _share(main[-1].downstream, figures.seconds * max(1, figures.makers))
    return works, 1 - works
