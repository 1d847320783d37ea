"""Orders against lists."""

import pickle
from itertools import chain, cycle, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch.plan import Applied, Looped, Permuted, Skipped, Straight, Strided, Taken, permutation_key
from squirrel_torch.plan.order import Order
from squirrel_torch.sharding import Shard


def listed(order, limit=None):
    """All ids of an order, or the first `limit`."""
    length = order.length if limit is None else limit
    return order.ids(np.arange(length)).tolist()


def key(*path):
    return permutation_key(0, 0, path)


def shuffled_pass(number):
    return Permuted(3, key("pass", number))


class Drawn(Order):
    """An order whose length differs from pass to pass, as those of some mixes do."""

    steady = False
    least = 0

    def __init__(self, *ids):
        self._ids = np.array(ids, np.int64)

    length = property(lambda self: len(self._ids))
    span = 100

    def at(self, positions):
        return self._ids[positions]


@st.composite
def orders(draw, depth=3):
    """An order and its list, with up to `depth` stages."""
    count = draw(st.integers(0, 30))
    if draw(st.booleans()):
        order, items = Straight(count), list(range(count))
    else:
        order = Permuted(count, key(draw(st.integers(0, 3))))
        items = listed(order)
    for _ in range(draw(st.integers(0, depth))):
        n = draw(st.integers(0, 12))
        match draw(st.sampled_from(["take", "skip", "stride", "loop", "shuffle"])):
            case "take":
                order, items = Taken(order, n), items[:n]
            case "skip":
                order, items = Skipped(order, n), items[n:]
            case "stride":
                shard = Shard(draw(st.integers(0, n)), n + 1)
                order, items = Strided(order, shard), list(shard.of(items))
            case "loop":
                times = draw(st.integers(0, 4))
                order, items = Looped(lambda number, order=order: Reversed(order, number), times), items
                items = list(chain.from_iterable(items[:: (-1) ** number] for number in range(times)))
            case "shuffle":
                outer = Permuted(len(items), key("outer"))
                order, items = Applied(outer, order), [items[place] for place in listed(outer)]
    return order, items


class Reversed(Order):
    """An order forwards in even passes, backwards in odd ones."""

    def __init__(self, order, number):
        self._order, self._number = order, number

    length = property(lambda self: self._order.length)
    span = property(lambda self: self._order.span)

    def at(self, positions):
        return self._order.at(self.length - 1 - positions if self._number % 2 else positions)


@given(orders(), st.randoms(use_true_random=False))
def test_chains_of_orders_are_chains_of_lists(pair, random):
    order, items = pair
    assert order.length == len(items)
    assert listed(order) == items
    assert order.least == len(items)
    assert order.steady
    assert all(0 <= item < order.span for item in items)
    if items:
        places = [random.randrange(len(items)) for _ in range(10)]
        assert order.ids(places).tolist() == [items[place] for place in places]


@given(orders(depth=2), st.integers(0, 100))
def test_without_end(pair, n):
    order, items = pair
    endless = Looped(lambda number: Reversed(order, number))
    expected = list(islice(chain.from_iterable(cycle([items, items[::-1]])), n)) if items else []
    assert endless.length == (None if items else 0)
    assert listed(Taken(endless, n)) == expected
    if items:
        assert listed(Skipped(endless, 7), n) == list(islice(chain.from_iterable(cycle([items, items[::-1]])), 7, 7 + n))
        assert listed(Strided(endless, Shard(1, 3)), len(expected[1::3])) == expected[1::3]


@given(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=20), st.integers(0, 20))
def test_passes_of_unequal_length_end_at_an_empty_one(passes, times):
    loop = Looped(lambda number: Drawn(*passes[number]), min(times, len(passes)))
    items = []
    for one in passes[:times]:
        items += one
        if not one:
            break
    assert listed(loop, len(items)) == items, "before the length was asked for"
    with pytest.raises(IndexError, match=f"positions must be from 0 to {len(items)} - 1, got {len(items)}"):
        loop.ids([len(items)])
    assert loop.length == len(items)
    assert loop.steady == (times == 0)
    assert loop.least == 0


def test_passes_of_unequal_length_without_end():
    passes = [[1, 2], [3], [4, 5, 6]]
    loop = Looped(lambda number: Drawn(*passes[number]) if number < 3 else Drawn())
    assert loop.length == 6
    assert listed(loop) == [1, 2, 3, 4, 5, 6]
    assert loop.ids([5, 0, 2]).tolist() == [6, 1, 3]


def test_a_loop_in_a_loop():
    inner = [Looped(lambda number, outer=outer: Permuted(5, key(outer, number)), 2) for outer in range(3)]
    loop = Looped(lambda number: inner[number], 3)
    assert listed(loop) == list(chain.from_iterable(listed(Permuted(5, key(o, n))) for o in range(3) for n in range(2)))


def test_an_endless_pass_is_never_followed_by_another():
    loop = Looped(lambda number: Looped(lambda number: Straight(3)), 2)
    assert loop.length is None
    assert loop.ids([10**15 + 1]).tolist() == [(10**15 + 1) % 3]


def test_far_positions():
    loop = Looped(lambda number: Permuted(10**6, key(number)))
    far = 10**15 + 5
    assert loop.ids([far]).tolist() == Permuted(10**6, key(10**9)).ids([5]).tolist()
    assert Skipped(Straight(10**12), 10**12 - 2).ids([0, 1]).tolist() == [10**12 - 2, 10**12 - 1]
    assert Strided(Straight(10**12), Shard(3, 7)).length == len(range(3, 10**12, 7))


def test_orders_of_few_passes_are_kept():
    """Not of all: a pass may be expensive to set up, and there may be many."""
    asked = []

    def order_of_pass(number):
        asked.append(number)
        return Straight(10)

    loop = Looped(order_of_pass, 100)
    for position in range(0, 1000, 5):
        loop.ids([position])
    assert asked == list(range(100))


@pytest.mark.parametrize("order", [Straight(5), Permuted(5, key()), Taken(Straight(9), 5), Skipped(Straight(9), 4)])
def test_positions_that_are_not_there(order):
    for wrong in (-1, 5):
        with pytest.raises(IndexError, match=f"positions must be from 0 to 5 - 1, got {wrong}"):
            order.ids([0, wrong])
    with pytest.raises(TypeError, match="positions must be integers, got float64"):
        order.ids([0.0])
    assert order.ids([]).tolist() == []
    assert order.ids(np.array([4], np.uint8)).dtype == np.int64


def test_bad_arguments():
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        Straight(-1)
    with pytest.raises(ValueError, match=r"count must not be above 2\^62"):
        Permuted((1 << 62) + 1, key())
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        Taken(Straight(3), -1)
    with pytest.raises(ValueError, match="times must be at least 0, got -1"):
        Looped(Straight, -1)
    with pytest.raises(TypeError, match="order_of_pass must be callable"):
        Looped(Straight(3))
    with pytest.raises(ValueError, match="the outer order is one of 4 positions, the inner one has 3"):
        Applied(Straight(4), Straight(3))


def test_what_was_worked_out_does_not_travel():
    loop = Looped(shuffled_pass, 4)
    taken = Taken(loop, 5)
    assert taken.ids([0, 4]).tolist() == loop.ids([0, 4]).tolist()
    assert loop.length == 12
    copy = pickle.loads(pickle.dumps(taken))
    assert copy == taken
    assert vars(copy.order) == {"order_of_pass": shuffled_pass, "times": 4}
    assert listed(copy) == listed(taken)
