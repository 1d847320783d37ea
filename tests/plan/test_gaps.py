"""Positions that are left out, against plain lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch.plan import NO_GAPS, Deal, Gaps


def left(length, parts):
    """The positions of an epoch that are not left out: their indices are the places."""
    out = {position for first, end in parts for position in range(first, end)}
    return [position for position in range(length) if position not in out]


def drawn_gaps(data, length):
    gaps, expected = NO_GAPS, list(range(length))
    for _ in range(data.draw(st.integers(0, 4), "gaps")):
        if len(expected) == 0:
            break
        first = data.draw(st.integers(0, len(expected) - 1), "first")
        end = data.draw(st.integers(first + 1, len(expected)), "end")
        gaps = gaps.with_places(first, end)
        del expected[first:end]
    return gaps, expected


@given(st.data())
def test_gaps_in_gaps(data):
    length = data.draw(st.integers(1, 60), "length")
    gaps, expected = drawn_gaps(data, length)
    assert left(length, gaps.parts) == expected
    assert gaps.positions(np.arange(len(expected))).tolist() == expected
    assert gaps.total == length - len(expected)
    for place, position in enumerate(expected):
        before = position - place  # left out before this place
        own = expected[place - 1] + 1 if place else 0  # a gap that ends here stands before this place, and is ahead of it
        assert gaps.left_out_after(place) == gaps.total - before + (position - own)
    Gaps(gaps.parts)  # ascending, not touching


@given(st.data())
def test_a_deal_with_gaps_is_one_of_what_is_left(data):
    length = data.draw(st.integers(1, 60), "length")
    gaps, expected = drawn_gaps(data, length)
    ranks, batch = data.draw(st.integers(1, 4), "ranks"), data.draw(st.integers(1, 5), "batch")
    start = data.draw(st.integers(0, len(expected)), "start")
    tail, keep = data.draw(st.sampled_from(["exact", "pad", "drop"]), "tail"), data.draw(st.booleans(), "keep")
    deal = Deal(length, start, ranks, batch, tail, keep, gaps)
    plain = Deal(len(expected), start, ranks, batch, tail, keep)
    assert (deal.count, deal.dropped, deal.most_steps) == (len(expected), plain.dropped, plain.most_steps)
    for rank in range(ranks):
        assert deal.steps(rank) == plain.steps(rank)
        for step in range(plain.steps(rank)):
            assert deal.positions(rank, step).tolist() == [expected[place] for place in plain.positions(rank, step)]
            assert deal.real(rank, step).tolist() == plain.real(rank, step).tolist()
    if plain.most_steps:
        first = data.draw(st.integers(0, plain.most_steps - 1), "first")
        last = data.draw(st.integers(first + 1, plain.most_steps), "last")
        gone = {
            position
            for rank in range(ranks)
            for step in range(first, min(last, plain.steps(rank)))
            for position in deal.positions(rank, step)[deal.real(rank, step)].tolist()
        }
        fewer = deal.without(first, last)
        assert left(length, fewer.parts) == [position for position in expected if position not in gone]
        shorter = Deal(length, start, ranks, batch, tail, keep, fewer)
        for rank in range(ranks):
            own = [deal.positions(rank, step).tolist() for step in range(deal.steps(rank)) if not first <= step < last]
            if tail != "pad" or last < deal.most_steps:
                assert [shorter.positions(rank, step).tolist() for step in range(shorter.steps(rank))][:first] == own[:first]
                assert shorter.steps(rank) == len(own)
        with pytest.raises(ValueError, match="can't be left out"):
            deal.without(first, plain.most_steps + 1)


def test_without_end():
    deal = Deal(None, 0, 2, 3, gaps=NO_GAPS.with_places(6, 12))
    assert deal.positions(1, 0).tolist() == [1, 3, 5]
    assert deal.positions(1, 1).tolist() == [13, 15, 17]
    assert deal.without(1, 2).parts == ((6, 18),)
    assert (deal.steps(0), deal.most_steps, deal.count) == (None, None, None)


def test_wrong_ones():
    for parts in (((3, 3),), ((3, 2),), ((0, 2), (2, 3)), ((5, 6), (0, 2)), ((-1, 2),)):
        with pytest.raises(ValueError, match="must be at least"):
            Gaps(parts)
    with pytest.raises(ValueError, match="gaps must not be behind the end, which is 4"):
        Deal(4, gaps=Gaps(((2, 5),)))
    with pytest.raises(ValueError, match="start must not be behind the end, which is 3"):
        Deal(5, 4, gaps=Gaps(((2, 4),)))
