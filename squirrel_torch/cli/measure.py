"""The commands that run a pipeline: ``profile`` and ``bench``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from statistics import median
from time import perf_counter
from typing import Any, Final

from squirrel_torch.cli.output import complain, counted, say, say_json
from squirrel_torch.cli.pipeline import Pipeline, pipeline_of
from squirrel_torch.iterstream import Composable
from squirrel_torch.loader import StreamLoader
from squirrel_torch.observe import Report

__all__ = ["MISSED", "bench", "profile"]

MISSED: Final = 3
"""The exit code if the pipeline is not as fast as was asked for."""


# -- profile ----------------------------------------------------------------------------------------------------------


def profile(arguments: Namespace) -> int:
    """What limits a pipeline, and what to change."""
    report = _reported(pipeline_of(arguments.pipeline), arguments)
    if arguments.save is not None:
        report.save(arguments.save)
    if arguments.json:
        say_json(report.to_dict())
    else:
        for line in str(report).splitlines():
            say(line)
    gain = report.verdict.gain
    if arguments.most_gain is not None and gain > arguments.most_gain:
        complain(f"{report.verdict.remedy} is expected to give {gain:.2f}x, more than --most-gain {arguments.most_gain:g}")
        return MISSED
    return 0


def _reported(pipeline: Pipeline, arguments: Namespace) -> Report:
    if isinstance(pipeline, Composable) and arguments.workers is None:
        return pipeline.profile(arguments.count, seconds=arguments.seconds)
    with closing(_loader_of(pipeline, arguments.workers, observe=True)) as loader:
        for _ in _taken(loader, arguments.count, arguments.seconds):
            pass
        return loader.report()


# -- bench ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Speed:
    """How fast a pipeline was.

    Args:
        workers: Processes that made the items; None: a plain run of the chain.
        items: Taken in each round.
        rates: Items a second, of each round.
    """

    workers: int | None
    items: list[int]
    rates: list[float]

    @property
    def rate(self) -> float:
        """In the middle of all rounds."""
        return median(self.rates)


def bench(arguments: Namespace) -> int:
    """How many items a second come out of a pipeline."""
    pipeline = pipeline_of(arguments.pipeline)
    speeds = [_measured(pipeline, workers, arguments) for workers in arguments.workers or [None]]
    if arguments.json:
        say_json([{"workers": one.workers, "items": one.items, "rates": one.rates, "rate": one.rate} for one in speeds])
    else:
        for one in speeds:
            who = "the pipeline as it is" if one.workers is None else counted(one.workers, "worker")
            spread = f"{min(one.rates):,.1f} to {max(one.rates):,.1f}"
            say(f"{who}: {one.rate:,.1f} items a second ({spread}, {one.items[-1]:,} items)")
    best = max(one.rate for one in speeds)
    if arguments.at_least is not None and best < arguments.at_least:
        complain(f"{best:,.1f} items a second are fewer than --at-least {arguments.at_least:g}")
        return MISSED
    return 0


def _measured(pipeline: Pipeline, workers: int | None, arguments: Namespace) -> _Speed:
    items, rates = [], []
    for _ in range(arguments.rounds):
        stream: Any = pipeline.run(0) if isinstance(pipeline, Composable) and workers is None else None
        with closing(_loader_of(pipeline, workers, observe=False) if stream is None else stream) as running:
            began = perf_counter()
            taken = sum(1 for _ in _taken(running, arguments.count, arguments.seconds))
            rates.append(taken / (perf_counter() - began))
            items.append(taken)
    return _Speed(workers, items, rates)


def _loader_of(pipeline: Pipeline, workers: int | None, *, observe: bool) -> StreamLoader[Any]:
    """A loader over the chain; one that is given is taken as it is, unless other workers are asked for."""
    if isinstance(pipeline, Composable):
        return StreamLoader(pipeline, num_workers=workers or 0, observe=observe)
    if workers is None or workers == pipeline.num_workers:
        return pipeline
    return StreamLoader(pipeline.pipeline, num_workers=workers, tail=pipeline.tail, streams=pipeline.streams, observe=observe)


def _taken(items: Iterable[Any], count: int | None, seconds: float) -> Iterator[Any]:
    end = perf_counter() + seconds
    for item in islice(items, count):
        yield item
        if perf_counter() >= end:
            return
