"""Figures of several as those of one, and those since earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from squirrel_torch.histogram import Histogram
from squirrel_torch.observe.figures import Calls, Figures, Loading, StageFigures

__all__ = ["added", "since"]


def added(parts: Sequence[Figures], *, ranks: bool = False) -> Figures:
    """The figures of several workers, or ranks, of one stream, as those of one.

    Seconds and items are added up; seconds that were looked at are the longest of all.

    Args:
        parts: At least one. Their chains are the same.
        ranks: Whether they are those of ranks.
    """
    first, *others = parts
    stages: list[StageFigures] = list(first.stages)
    for other in others:
        known = {(stage.branch, stage.place): number for number, stage in enumerate(stages)}
        for stage in other.stages:
            number = known.get((stage.branch, stage.place))
            if number is None:
                stages.append(stage)
            else:
                stages[number] = _both(stages[number], stage)
    loadings = [part.loading for part in parts if part.loading is not None]
    return replace(
        first,
        seconds=max(part.seconds for part in parts),
        stages=tuple(stages),
        loading=_loading(loadings) if loadings else None,
        makers=sum(part.makers for part in parts),
        ranks=sum(part.ranks for part in parts) if ranks else first.ranks,
        # Workers share the CPUs of their machine; ranks may share them too, which nobody tells them.
        cores=max(part.cores for part in parts),
        warnings=tuple(dict.fromkeys(warning for part in parts for warning in part.warnings)),
    )


def _loading(parts: Sequence[Loading]) -> Loading:
    total = parts[0]
    for part in parts[1:]:
        numbers = {
            name: getattr(total, name) + getattr(part, name)
            for name in ("workers", "batches", "waited", "outside", "packing", "blocked", "unpacking", "ready", "most_ready")
        }
        samples = None if total.samples is None or part.samples is None else total.samples + part.samples
        size = _mean(total.size, total.batches, part.size, part.batches)
        cpu = _sum(total.outside_cpu, part.outside_cpu)
        total = replace(total, samples=samples, size=size, outside_cpu=cpu, **numbers)
    return total


def _both(one: StageFigures, other: StageFigures) -> StageFigures:
    times = one.times.merged(other.times) if one.times is not None and other.times is not None else one.times or other.times
    return replace(
        one,
        items=None if one.items is None or other.items is None else one.items + other.items,
        exact=one.exact and other.exact,
        size=_mean(one.size, one.items or 0, other.size, other.items or 0),
        busy=one.busy + other.busy,
        cpu=_sum(one.cpu, other.cpu),
        upstream=one.upstream + other.upstream,
        downstream=one.downstream + other.downstream,
        retries=one.retries + other.retries,
        skipped=one.skipped + other.skipped,
        calls=_both_calls(one.calls, other.calls),
        times=times,
    )


def _both_calls(one: Calls | None, other: Calls | None) -> Calls | None:
    if one is None or other is None:
        return one or other
    return replace(
        one,
        workers=one.workers + other.workers,
        count=one.count + other.count,
        wall=one.wall + other.wall,
        cpu=_sum(one.cpu, other.cpu),
        away=one.away + other.away,
        hungry=(one.hungry + other.hungry) / 2,
        in_flight=one.in_flight + other.in_flight,
        buffer=one.buffer + other.buffer,
        times=one.times.merged(other.times),
    )


def since(figures: Figures, earlier: Figures) -> Figures:
    """What was seen after earlier figures of the same stream.

    Averages, such as items in flight, are those of the time between. Figures that are no continuation, since the stream was
    started again or is another one, are given back as they are.

    Args:
        figures: Those of now.
        earlier: Those that were taken before.
    """
    known = {(stage.branch, stage.place): stage for stage in earlier.stages}
    chains = [[(stage.branch, stage.place, stage.name) for stage in part.stages] for part in (figures, earlier)]
    less = (figures.items or 0) < (earlier.items or 0)
    if figures.seconds <= earlier.seconds or less or not set(chains[1]) <= set(chains[0]):
        return figures
    spans = figures.seconds, earlier.seconds
    stages = [_stage_since(stage, known.get((stage.branch, stage.place)), spans) for stage in figures.stages]
    return replace(
        figures,
        seconds=figures.seconds - earlier.seconds,
        stages=tuple(stages),
        loading=_loading_since(figures.loading, earlier.loading),
    )


def _stage_since(stage: StageFigures, earlier: StageFigures | None, spans: tuple[float, float]) -> StageFigures:
    if earlier is None:
        return stage
    names = ("items", "busy", "cpu", "upstream", "downstream", "retries", "skipped")
    calls, times = stage.calls, stage.times
    if calls is not None and earlier.calls is not None:
        calls = _calls_since(calls, earlier.calls, spans)
    if times is not None and earlier.times is not None:
        times = _times_since(times, earlier.times)
    return replace(stage, calls=calls, times=times, **_less(stage, earlier, names))


def _calls_since(calls: Calls, earlier: Calls, spans: tuple[float, float]) -> Calls:
    return replace(
        calls,
        hungry=min(1.0, _mean_since(calls.hungry, earlier.hungry, spans)),
        in_flight=_mean_since(calls.in_flight, earlier.in_flight, spans),
        times=_times_since(calls.times, earlier.times),
        **_less(calls, earlier, ("count", "wall", "cpu", "away")),
    )


def _loading_since(loading: Loading | None, earlier: Loading | None) -> Loading | None:
    if loading is None or earlier is None:
        return loading
    names = ("batches", "samples", "waited", "outside", "outside_cpu", "packing", "blocked", "unpacking")
    ready = _mean_since(loading.ready, earlier.ready, (loading.batches, earlier.batches))
    return replace(loading, ready=ready, **_less(loading, earlier, names))


def _less(one: Any, earlier: Any, names: Sequence[str]) -> dict[str, Any]:
    """What these have grown by; what was sampled by a clock may seem to have shrunk by a little."""
    values = {name: (getattr(one, name), getattr(earlier, name)) for name in names}
    return {name: None if None in pair else max(0, pair[0] - pair[1]) for name, pair in values.items()}


def _mean_since(mean: float, earlier: float, spans: tuple[float, float]) -> float:
    span, span_of_earlier = spans
    if span <= span_of_earlier:
        return mean
    return max(0.0, (mean * span - earlier * span_of_earlier) / (span - span_of_earlier))


def _times_since(times: Histogram, earlier: Histogram) -> Histogram:
    left = {step: count - earlier.counts.get(step, 0) for step, count in times.counts.items()}
    return Histogram({step: count for step, count in left.items() if count > 0})


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _mean(one: float | None, weight: float, other: float | None, weight_of_other: float) -> float | None:
    if one is None or other is None or not weight + weight_of_other:
        return other if one is None else one
    return (one * weight + other * weight_of_other) / (weight + weight_of_other)
