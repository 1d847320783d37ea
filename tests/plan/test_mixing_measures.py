"""A planned shuffle mixes at least as well as the buffer that it stands for."""

import numpy as np
import pytest

from squirrel_torch.iterstream.stage import Context
from squirrel_torch.iterstream.stages.shuffle import Shuffled
from squirrel_torch.plan import Permuted, Windowed, permutation_key
from tests.plan.measures import Mixing, mixing

EPOCHS = 5


def by_buffer(total, size, epoch):
    return list(Shuffled(size).start(range(total), Context(epoch)))


def by_plan(total, size, epoch, shards):
    key = permutation_key(0, epoch, ())
    order = Windowed(np.diff(np.arange(shards + 1) * total // shards), size, key) if shards else Permuted(total, key)
    return order.ids(np.arange(total))


def average(orders):
    return Mixing(*np.mean([mixing(order) for order in orders], axis=0))


def test_the_measures():
    assert mixing(range(10)) == (0, pytest.approx(1), 1)
    assert mixing(range(9, -1, -1)) == (5, pytest.approx(-1), 1)
    assert mixing([2, 0, 1]).displacement == pytest.approx(4 / 3)
    assert mixing([2, 0, 1]).distance == pytest.approx(1.5)
    random = average(np.random.default_rng(seed).permutation(3000) for seed in range(20))
    assert random.displacement == pytest.approx(1000, rel=0.02)
    assert random.correlation == pytest.approx(0, abs=0.02)
    assert random.distance == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("shards", [0, 1, 7, 100])
@pytest.mark.parametrize(("total", "size"), [(300, 10), (2000, 2), (2000, 100), (2000, 1000), (20_000, 100), (20_000, 6000)])
def test_a_plan_mixes_no_less_than_a_buffer(total, size, shards):
    """Over an average of epochs; of a few thousand items all measures vary by some percent between two permutations."""
    planned = average(by_plan(total, size, epoch, shards) for epoch in range(EPOCHS))
    buffered = average(by_buffer(total, size, epoch) for epoch in range(EPOCHS))
    assert planned.displacement >= buffered.displacement
    assert planned.distance >= buffered.distance
    assert abs(planned.correlation) <= max(buffered.correlation, 0.05)
