"""How long calls took, in few numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor, log2
from typing import Final

__all__ = ["Histogram"]

_FINEST: Final = 1e-7
"""Seconds at which the first step of a histogram ends."""

_PER_OCTAVE: Final = 4
_STEPS: Final = 40 * _PER_OCTAVE


@dataclass
class Histogram:
    """How long calls took, in steps of a fourth of an octave: a quantile of it is right within 10 %.

    Args:
        counts: Calls by step.
    """

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, seconds: float, calls: int = 1) -> None:
        """Count `calls` calls that took about `seconds` each."""
        step = 0 if seconds <= _FINEST else min(1 + floor(log2(seconds / _FINEST) * _PER_OCTAVE), _STEPS)
        self.counts[step] = self.counts.get(step, 0) + calls

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the calls was done; 0 if there were none."""
        left = share * sum(self.counts.values())
        for step in sorted(self.counts):
            left -= self.counts[step]
            if left <= 0:
                return self.seconds_of(step)
        return 0.0

    @staticmethod
    def seconds_of(step: int) -> float:
        """About how long the calls of one step took: the middle of it."""
        return float(_FINEST * 2 ** ((step - 0.5) / _PER_OCTAVE)) if step else _FINEST

    def merged(self, other: Histogram) -> Histogram:
        """Both together."""
        steps = self.counts.keys() | other.counts.keys()
        return Histogram({step: self.counts.get(step, 0) + other.counts.get(step, 0) for step in steps})
