"""The ids of a rank's batches."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch.plan import Deal, Looped, Permuted, Straight, Windowed, batches_of, permutation_key

KEY = permutation_key(0, 0, ())


def listed(batches):
    return [(ids.tolist(), real.tolist()) for ids, real in batches]


@given(
    length=st.integers(0, 300),
    ranks=st.integers(1, 5),
    batch=st.integers(1, 9),
    tail=st.sampled_from(["exact", "pad", "drop"]),
    first=st.integers(0, 9),
    every=st.integers(1, 4),
    data=st.data(),
)
def test_as_one_step_after_the_other(length, ranks, batch, tail, first, every, data):
    order = Permuted(length, KEY)
    deal = Deal(length, data.draw(st.integers(0, length)), ranks, batch, tail)
    for rank in range(ranks):
        expected = [
            (order.ids(deal.positions(rank, step)).tolist(), deal.real(rank, step).tolist())
            for step in range(first, deal.steps(rank), every)
        ]
        assert listed(batches_of(order, deal, rank, first, every)) == expected


def test_many_blocks_and_large_batches():
    order = Windowed([1000] * 30, 100, KEY)
    for batch in (1, 64, 5000):
        deal = Deal(order.length, 17, 3, batch)
        expected = [order.ids(deal.positions(1, step)).tolist() for step in range(deal.steps(1))]
        assert [ids.tolist() for ids, _ in batches_of(order, deal, 1)] == expected


def test_without_end():
    order = Looped(lambda number: Straight(10))
    batches = batches_of(order, Deal(None, ranks=2, batch=3), 1, first=1)
    assert [ids.tolist() for ids, _ in islice(batches, 3)] == [[7, 9, 1], [3, 5, 7], [9, 1, 3]]


def test_workers_share_the_steps_of_a_rank():
    order, deal = Straight(100), Deal(100, ranks=2, batch=4)
    whole = listed(batches_of(order, deal, 0))
    assert [listed(batches_of(order, deal, 0, worker, 3)) for worker in range(3)] == [whole[worker::3] for worker in range(3)]


def test_bad_arguments_are_refused_at_once():
    for arguments in ((0, -1), (0, 0, 0)):
        with pytest.raises(ValueError, match="must be at least"):
            batches_of(Straight(5), Deal(5), *arguments)
    with pytest.raises(IndexError, match="rank must be from 0 to 0, got 1"):
        batches_of(Straight(5), Deal(5), 1)
