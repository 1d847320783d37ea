"""How well an order is mixed."""

from typing import NamedTuple

import numpy as np

__all__ = ["Mixing", "mixing"]


class Mixing(NamedTuple):
    """Three measures of an order of the numbers 0 to n - 1.

    Args:
        displacement: How many positions an item is moved, on average.
        correlation: Spearman's, between the position and the number; 1 is not mixed at all.
        distance: How many positions apart two items come that were neighbours, on average.
    """

    displacement: float
    correlation: float
    distance: float


def mixing(order):
    order = np.asarray(order)
    positions = np.empty(len(order), np.int64)
    positions[order] = np.arange(len(order))
    return Mixing(
        float(np.abs(positions - np.arange(len(order))).mean()),
        float(np.corrcoef(positions, np.arange(len(order)))[0, 1]),
        float(np.abs(np.diff(positions)).mean()),
    )
