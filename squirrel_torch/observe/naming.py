"""Places of a chain, as whoever reads figures wants to find them in the code."""

from __future__ import annotations

import re
from typing import Any, Final

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.observe.figures import StageFigures

__all__ = ["kind_of", "named", "unseen"]

_LONGEST: Final = 200
_METHODS: Final = {
    "AsyncMap": "async_map",
    "Batched": "batched",
    "DaskMap": "dask_map",
    "Filter": "filter",
    "FlatMap": "flat_map",
    "Flatten": "flatten",
    "Loop": "loop",
    "Map": "map",
    "Monitored": "monitor",
    "NumbaMap": "numba_map",
    "Piped": "to",
    "RankSplit": "split_by_rank",
    "Shuffled": "shuffle",
    "Skip": "skip",
    "Sliding": "sliding",
    "Take": "take",
    "Tqdm": "tqdm",
    "WorkerSplit": "split_by_worker",
    "ZipIndex": "zip_index",
}
"""The methods that put these stages onto a stream."""

_FIRST: Final = re.compile(r"\b(callback|predicate|function|size|n)=")
"""Arguments that one writes without their names."""

_SITE: Final = re.compile(r" at [^\s,()]+:\d+")


def named(link: Any) -> str:
    """A place as one would write it: `map(decode)`, `batched(64)`; by its class if no method puts it onto a stream."""
    text = str(link._describe())
    kind, opened, arguments = text.partition("(")
    method = _METHODS.get(kind)
    if method is not None and opened:
        text = f"{method}({_SITE.sub('', _FIRST.sub('', arguments))}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def kind_of(link: Any) -> str:
    """The class of its stage, or its own."""
    return type(getattr(link, "_stage", None) or link).__name__


def unseen(link: Composable[Any], place: int, *, planned: bool) -> StageFigures:
    """A place of a main chain of which nothing was seen: its work is arithmetic, or has not begun."""
    return StageFigures(place, named(link), kind_of(link), site=link._site, planned=planned)
