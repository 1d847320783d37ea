"""What is said of the places of a stream, in few words."""

from __future__ import annotations

from typing import Final

from squirrel_torch.observe.model import Model, Part
from squirrel_torch.observe.spelling import time_of

__all__ = ["TINY", "calls_of", "count_of", "hungry", "is_tiny", "named", "seconds_each", "share_of_cpu"]

TINY: Final = 5e-6
"""Seconds of a call below which Python's own work on an item counts."""

_LONGEST: Final = 60


def named(part: Part) -> str:
    """The stage as one would write it, cut where that is long."""
    name = part.stage.name
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def count_of(part: Part) -> int:
    """How often it did something."""
    return (part.stage.calls.count if part.stage.calls is not None else part.stage.items) or 0


def seconds_each(part: Part) -> float:
    """Seconds for each of its own items."""
    return (part.busy + part.wall) / max(1, count_of(part))


def hungry(part: Part) -> float:
    """Share of the time in which its place had less to do than it could."""
    return part.stage.calls.hungry if part.stage.calls is not None else 0.0


def is_tiny(part: Part) -> bool:
    """Whether its own work on an item is about what Python itself takes."""
    return part.busy < TINY * (part.stage.items or 0)


def calls_of(part: Part, model: Model) -> str:
    """How long its calls take, and on what."""
    number = part.workers // model.makers
    kind = {"process": "processes", "thread": "threads", "coroutine": "coroutines"}.get(part.place, f"workers of {part.place}")
    return f"its calls take {time_of(part.wall / max(1, count_of(part)))} on {number} {kind if number > 1 else part.place}"


def share_of_cpu(part: Part) -> str:
    """Whether it computes or waits."""
    if part.stage.cpu is None:
        return "computing or waiting"
    return f"of which it computes {100 * min(1.0, part.cpu / part.busy) if part.busy else 0:.0f} %"
