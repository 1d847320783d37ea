"""A chain that is run for its figures alone."""

from __future__ import annotations

from itertools import islice
from time import perf_counter
from typing import Any

from squirrel_torch.checks import require_at_least, require_positive_seconds
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.run import Run
from squirrel_torch.observe.report import Report
from squirrel_torch.observe.sampler import Sampler
from squirrel_torch.observe.timed import Timed
from squirrel_torch.observe.verdict import verdict_of

__all__ = ["profile"]


def profile(chain: Composable[Any], n: int | None = None, seconds: float = 10.0) -> Report:
    """See `Composable.profile`."""
    if n is not None:
        require_at_least("n", n, 1)
    require_positive_seconds("seconds", seconds)
    links = chain._links()
    timed = Timed(len(links) - 1)
    run: Run[Any] = Run(links, lambda: 0, observer=timed)
    with Sampler(timed, always=True), run:
        end = perf_counter() + seconds
        for _ in islice(run, n):
            if perf_counter() >= end:
                break
        timed.end()
        figures = timed.figures()
    return Report(repr(chain), figures, verdict_of(figures))
