"""The ids of a rank's batches, one after the other."""

from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from squirrel_torch.checks import require_at_least
from squirrel_torch.plan.deal import Deal
from squirrel_torch.plan.order import Order

__all__ = ["batches_of"]

_AHEAD = 4096  # ids: an order costs about 40 µs each time it is asked, and that only once for so many


def batches_of(
    order: Order, deal: Deal, rank: int, first: int = 0, every: int = 1
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """The batches of a rank, from step `first` on.

    Args:
        order: That of the epoch.
        deal: How the epoch is dealt; its length is that of the order.
        rank: Whose batches.
        first: The first step.
        every: Give every such step only: DataLoader worker j of k makes the steps j, j + k, j + 2 k, ...

    Yields:
        The ids of a batch, int64, and which of them are the epoch's own, bool, both of shape `[batch]`, or less in a last
        step.
    """
    require_at_least("first", first, 0)
    require_at_least("every", every, 1)
    total = deal.steps(rank)
    steps = iter(count(first, every) if total is None else range(first, total, every))
    return _batches(order, deal, rank, steps)


def _batches(
    order: Order, deal: Deal, rank: int, steps: Iterator[int]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    at_once = max(1, _AHEAD // deal.batch)
    while some := list(islice(steps, at_once)):
        positions = [deal.positions(rank, step) for step in some]
        ends = np.cumsum([len(batch) for batch in positions])[:-1]
        for step, ids in zip(some, np.split(order.ids(np.concatenate(positions)), ends), strict=True):
            yield ids, deal.real(rank, step)
