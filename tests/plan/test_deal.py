"""Dealing an epoch to ranks, in steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch.plan import Deal


def model(length, start, ranks, batch, tail, keep_partial):
    """What each rank gets, as [(position, own), ...] for each step: written as one would say it."""
    steps = [[] for _ in range(ranks)]
    left = list(range(start, length))
    while left:
        taken, left = left[: ranks * batch], left[ranks * batch :]
        own = len(taken)
        if own < ranks * batch:
            taken = last_step(taken, ranks, batch, tail, keep_partial)
        for rank in range(ranks):
            mine = [(p % length, number < own) for number, p in enumerate(taken) if p % ranks == rank]
            if mine:
                steps[rank].append(mine)
    return steps


def last_step(taken, ranks, batch, tail, keep_partial):
    if tail == "pad":
        return [taken[0] + number for number in range(ranks * batch)]
    if tail == "drop":
        return taken[: len(taken) - len(taken) % ranks] if keep_partial else []
    return taken


def dealt(deal):
    return [
        [
            list(zip(deal.positions(rank, step).tolist(), deal.real(rank, step).tolist(), strict=True))
            for step in range(deal.steps(rank))
        ]
        for rank in range(deal.ranks)
    ]


TAILS = [("exact", False), ("pad", False), ("drop", False), ("drop", True)]


@pytest.mark.parametrize(("tail", "keep_partial"), TAILS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_as_one_would_say_it(ranks, tail, keep_partial):
    for batch in (1, 2, 3):
        for length in range(15):
            for start in range(length + 1):
                deal = Deal(length, start, ranks, batch, tail, keep_partial)
                expected = model(length, start, ranks, batch, tail, keep_partial)
                assert dealt(deal) == expected, deal
                given_out = sum(own for steps in expected for step in steps for _, own in step)
                assert deal.dropped == length - start - given_out, deal
                if tail != "exact":
                    assert len({deal.steps(rank) for rank in range(ranks)}) == 1


@given(
    length=st.integers(0, 500),
    worlds=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 6)), max_size=8),
    last=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    tail=st.sampled_from(["exact", "pad"]),
)
def test_each_position_once_and_in_order_through_all_changes(length, worlds, last, tail):
    """Other numbers of ranks and samples, again and again inside an epoch."""
    delivered, cursor = [], 0
    for ranks, batch, steps in [*worlds, (*last, None)]:
        deal = Deal(length, cursor, ranks, batch, tail)
        most = max(deal.steps(rank) for rank in range(ranks))
        steps = most if steps is None else min(steps, most)
        for step in range(steps):
            parts = [deal.positions(rank, step)[deal.real(rank, step)] for rank in range(ranks) if step < deal.steps(rank)]
            delivered += sorted(np.concatenate(parts).tolist())
        cursor = deal.after(steps)
    assert delivered == list(range(length))
    assert cursor == length


@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.data())
def test_drop_drops_the_end_alone(length, ranks, batch, keep_partial, data):
    deal = Deal(length, data.draw(st.integers(0, length)), ranks, batch, "drop", keep_partial)
    got = sorted(p for rank in range(ranks) for step in range(deal.steps(rank)) for p in deal.positions(rank, step).tolist())
    assert got == list(range(deal.start, length - deal.dropped))
    assert deal.dropped < (ranks if keep_partial else ranks * batch)
    sizes = [[len(deal.positions(rank, step)) for step in range(deal.steps(rank))] for rank in range(ranks)]
    assert all(size == sizes[0] for size in sizes)


def test_a_rank_is_a_residue_wherever_it_starts():
    """So that a rank stays on its own streams of the plan after a resize."""
    deal = Deal(100, start=7, ranks=4, batch=2)
    assert deal.positions(0, 0).tolist() == [8, 12]
    assert deal.positions(3, 0).tolist() == [7, 11]
    assert deal.positions(3, 1).tolist() == [15, 19]


def test_a_pass_shorter_than_a_step_wraps_around_several_times():
    deal = Deal(3, start=1, ranks=2, batch=4, tail="pad")
    assert [deal.steps(rank) for rank in range(2)] == [1, 1]
    assert deal.positions(0, 0).tolist() == [2, 1, 0, 2]
    assert deal.real(0, 0).tolist() == [True, False, False, False]
    assert deal.positions(1, 0).tolist() == [1, 0, 2, 1]
    assert deal.real(1, 0).tolist() == [True, False, False, False]


def test_without_end():
    deal = Deal(None, start=10**12, ranks=64, batch=2, tail="drop")
    assert deal.steps(63) is None
    assert deal.dropped == 0
    assert deal.after(10**6) == 10**12 + 128 * 10**6
    assert deal.positions(5, 10**6).tolist() == [10**12 + 128 * 10**6 + 5, 10**12 + 128 * 10**6 + 69]
    assert deal.real(5, 10**6).tolist() == [True, True]


def test_long_epochs():
    deal = Deal(10**12 + 3, ranks=1000, batch=100)
    assert deal.steps(2) == 10**7 + 1
    assert deal.steps(3) == 10**7
    assert deal.positions(2, 10**7).tolist() == [10**12 + 2]
    assert deal.positions(0, 0).dtype == np.int64


@pytest.mark.parametrize("tail", ["exact", "pad", "drop"])
def test_nothing_left_is_no_step(tail):
    for length in (0, 5):
        deal = Deal(length, length, 3, 2, tail, keep_partial=True)
        assert [deal.steps(rank) for rank in range(3)] == [0, 0, 0]
        assert deal.after(0) == deal.after(9) == length
        with pytest.raises(IndexError, match="makes 0 steps, there is no step 0"):
            deal.positions(0, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": -1}, ValueError, "length must be at least 0, got -1"),
        ({"length": 5, "start": 6}, ValueError, "start must not be behind the end, which is 5, got 6"),
        ({"length": 5, "ranks": 0}, ValueError, "ranks must be at least 1"),
        ({"length": 5, "batch": 0}, ValueError, "batch must be at least 1"),
        ({"length": 5.0}, TypeError, "length must be an integer"),
        ({"length": 5, "tail": "pda"}, ValueError, "tail must be one of 'exact', 'pad', 'drop', got 'pda'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Deal(**arguments)


def test_ranks_and_steps_that_are_not_there():
    deal = Deal(10, ranks=2, batch=2)
    for rank in (-1, 2):
        with pytest.raises(IndexError, match=f"rank must be from 0 to 1, got {rank}"):
            deal.steps(rank)
    for step in (-1, 3):
        with pytest.raises(IndexError, match=f"makes 3 steps, there is no step {step}"):
            deal.real(0, step)
