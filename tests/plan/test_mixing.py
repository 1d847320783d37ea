"""Mixes against the classes that mix streams."""

import random
from dataclasses import dataclass
from itertools import accumulate, chain, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch import IterableSamplerSource, IterableSource, Multiplexer
from squirrel_torch.iterstream.mix import pick
from squirrel_torch.iterstream.multiplexer import MultiplexingStrategy
from squirrel_torch.plan import Drawn, InTurn, Looped, Mixed, Permuted, Sampled, Skipped, Straight, Taken, permutation_key
from squirrel_torch.plan.drawing import pick_all
from squirrel_torch.seeding import uniforms

LIMIT = 300


@dataclass
class Leaf:
    """`count` items, again and again if `endless`."""

    count: int
    endless: bool = False

    def span(self):
        return self.count

    def stream(self, first):
        source = IterableSource(range(first, first + self.count))
        return source.loop() if self.endless else source

    def order(self, epoch, path):
        return Looped(lambda number: Straight(self.count)) if self.endless else Straight(self.count)


@dataclass
class Node:
    """A mix of leaves and other mixes: "sampled", "turn", "uniform" or "sampling"."""

    kind: str
    children: list
    weights: list
    seed: int
    max_reinits: int | None

    def span(self):
        return sum(child.span() for child in self.children)

    def streams(self, first):
        firsts = accumulate((child.span() for child in self.children), initial=first)
        return [child.stream(start) for child, start in zip(self.children, firsts, strict=False)]

    def stream(self, first):
        streams = self.streams(first)
        match self.kind:
            case "sampled":
                total = sum(self.weights)
                return IterableSamplerSource(streams, [weight / total for weight in self.weights], seed=self.seed)
            case "turn":
                return Multiplexer(streams, MultiplexingStrategy.ROUND_ROBIN)
            case "uniform":
                strategy = MultiplexingStrategy.UNIFORM_WITH_REPLACEMENT
                return Multiplexer(streams, strategy, seed=self.seed, max_reinits=self.max_reinits)
            case "sampling":
                strategy = MultiplexingStrategy.SAMPLING
                return Multiplexer(streams, strategy, self.weights, seed=self.seed, max_reinits=self.max_reinits)

    def order(self, epoch, path):
        def opened(index):
            # Where the mix stands in its chain, which opening of which branch, and where the first link of that stands.
            return lambda opening: self.children[index].order(epoch, (*path, "branch", index, opening, 0))

        branches = tuple(map(opened, range(len(self.children))))
        one = self.stream(0)
        match self.kind:
            case "sampled":
                return Sampled(branches, tuple(one.probs), self.seed, epoch, path)
            case "turn":
                return InTurn(branches)
            case _:
                return Drawn(branches, tuple(one.sampling_probas), self.seed, epoch, path, self.max_reinits)


def leaves():
    return st.builds(Leaf, st.integers(0, 12))


def nodes(children):
    return st.lists(children, min_size=1, max_size=4).flatmap(
        lambda branches: st.builds(
            Node,
            st.sampled_from(["sampled", "turn", "uniform", "sampling"]),
            st.just(branches),
            st.lists(st.floats(0.05, 1), min_size=len(branches), max_size=len(branches)),
            st.integers(0, 9),
            st.none() | st.integers(1, 3),
        )
    )


def trees():
    return nodes(st.recursive(leaves(), nodes, max_leaves=5))


@given(trees(), st.integers(0, 3), st.booleans())
def test_the_items_of_the_real_thing(node, epoch, length_first):
    """Mixes in mixes: where one is opened again it is drawn anew, and may have another length."""
    order = node.order(epoch, (0,))
    with node.stream(0).run(epoch) as run:
        expected = list(islice(run, 5000))
    if length_first:
        assert order.length == len(expected)
        assert not order.endless
    else:
        assert order.least <= len(expected)
    assert order.ids(np.arange(len(expected))).tolist() == expected
    with pytest.raises(IndexError):
        order.ids([len(expected)])
    assert order.span == node.span()
    if order.steady:
        assert node.order(epoch + 1, (0,)).length == len(expected)


@given(nodes(st.builds(Leaf, st.integers(1, 12), st.booleans())), st.integers(0, 3), st.randoms(use_true_random=False))
def test_streams_without_end(node, epoch, shuffle):
    order = node.order(epoch, (0,))
    with node.stream(0).run(epoch) as run:
        expected = list(islice(run, LIMIT))
    assert len(expected) == (LIMIT if order.endless else min(LIMIT, order.length))
    assert order.endless == (order.length is None)
    assert order.ids(np.arange(len(expected))).tolist() == expected
    places = shuffle.choices(range(len(expected)), k=20)
    assert order.ids(places).tolist() == [expected[place] for place in places]


def straight(*counts):
    return tuple(lambda opening, count=count: Straight(count) for count in counts)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (0.1, 0.1, 0.8)])
def test_many_blocks_in_any_order(weights):
    counts = (20_000, 9_000, 700)
    streams = [range(first, first + count) for first, count in zip((0, 20_000, 29_000), counts, strict=True)]
    expected = np.array(IterableSamplerSource(streams, weights, seed=1).collect())
    probs = tuple(IterableSamplerSource(streams, weights).probs)
    places = np.random.default_rng(0).permutation(len(expected))
    for some in (places[:64], places, places[:1], np.sort(places)[-64:]):
        order = Sampled(straight(*counts), probs, 1, 0, (0,))
        assert np.array_equal(order.ids(some), expected[some])
        assert np.array_equal(order.ids(some[::-1]), expected[some[::-1]]), "again, with blocks known"


def test_many_blocks_of_a_mix_that_opens_again():
    mux = Multiplexer([range(30_000), range(30_000, 30_007)], MultiplexingStrategy.SAMPLING, [0.7, 0.3], seed="x")
    expected = np.array(mux.collect())
    order = Drawn(straight(30_000, 7), tuple(mux.sampling_probas), "x", 0, (0,))
    some = np.random.default_rng(0).permutation(len(expected))
    assert np.array_equal(order.ids(some[:99]), expected[some[:99]])
    assert order.length == len(expected) > 30_000
    assert np.array_equal(order.ids(some), expected[some])


@pytest.mark.parametrize("count", [2047, 2048, 4094, 4095, 4096, 4097, 8191])
@pytest.mark.parametrize("max_reinits", [1, 2])
def test_ends_at_the_edge_of_a_block(count, max_reinits):
    """With one stream every draw asks it: the last draw of a block, or the first, finds it exhausted."""
    mux = Multiplexer([range(count)], MultiplexingStrategy.SAMPLING, [1.0], max_reinits=max_reinits)
    order = Drawn(straight(count), (1.0,), 0, 0, (0,), max_reinits)
    assert order.ids(np.arange(count)).tolist() == mux.collect()
    assert order.length == count, "a mix ends when each stream has been exhausted once"
    pair = [range(count), range(count, 2 * count)]
    mux = Multiplexer(pair, MultiplexingStrategy.SAMPLING, [1 - 1e-12, 1e-12], max_reinits=max_reinits, proba_threshold=0)
    order = Drawn(straight(count, count), tuple(mux.sampling_probas), 0, 0, (0,), max_reinits)
    assert order.length == max_reinits * count, "the other one is hardly ever drawn"
    assert order.ids(np.arange(order.length)).tolist() == mux.collect()
    order = Sampled(straight(count), (1.0,), 0, 0, (0,))
    assert order.ids(np.arange(count)).tolist() == list(range(count))
    assert order.length == count


def test_many_streams_that_end_soon():
    counts = [number % 6 for number in range(300)]
    firsts = list(accumulate(counts, initial=0))
    streams = [range(first, first + count) for first, count in zip(firsts, counts, strict=False)]
    source = IterableSamplerSource(streams)
    order = Sampled(straight(*counts), tuple(source.probs), 0, 0, (0,))
    assert order.ids(np.arange(order.length)).tolist() == source.collect()


def test_a_stream_that_is_opened_again_is_shuffled_anew():
    shuffles = [Permuted(50, permutation_key(0, 0, ("branch", opening))) for opening in range(20)]
    order = Drawn((shuffles.__getitem__, straight(200)[0]), (0.7, 0.3), 0, 0, (), max_reinits=15)
    ids = order.ids(np.arange(order.length))
    first = ids[ids < 50]
    given_out = list(chain.from_iterable(shuffle.ids(range(50)).tolist() for shuffle in shuffles))
    assert first.tolist() == given_out[: len(first)]
    assert len(first) > 200


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=9), st.integers(0, 99))
def test_picks_are_the_same_to_the_last_bit(weights, seed):
    draws = uniforms(seed, 0, (), 0, 200)
    # Draws that fall on the boundaries between weights, and next to them.
    edges = np.cumsum(weights) / sum(weights)
    draws = np.concatenate([draws, edges, np.nextafter(edges, 0), np.nextafter(edges, 1)])
    draws = draws[draws < 1]
    assert pick_all(weights, draws).tolist() == [pick(weights, draw) for draw in draws.tolist()]


def test_stages_behind_a_mix_whose_length_is_drawn():
    node = Node("uniform", [Leaf(40), Leaf(3)], [], 3, 5)
    with node.stream(0).skip(5).take(12).run(2) as run:
        expected = list(run)
    order = Taken(Skipped(node.order(2, (0,)), 5), 12)
    assert order.length == len(expected) == 12
    assert order.ids(np.arange(12)).tolist() == expected

    with node.stream(0).loop(4).run(2) as run:
        expected = list(run)
    loop = Looped(lambda number: node.order(2, ("pass", 1, number, 0) if number else (0,)), 4)
    assert not loop.steady
    assert loop.length == len(expected)
    assert loop.ids(np.arange(loop.length)).tolist() == expected


def test_seeking_looks_into_few_blocks():
    """Blocks on the way are gone through once, not looked into."""
    order = Sampled(straight(10**7, 10**7), (0.5, 0.5), 0, 0, ())
    order.ids([400_000])
    assert len(order._marks) < 110
    assert order._block.cache_info().misses == 1
    order.ids([399_999, 5, 200_000])
    assert order._block.cache_info().misses == 3
    assert order.length == 2 * 10**7, "known without going there"


def test_mixes_that_no_memory_holds():
    order = InTurn((*straight(10**12, 5), lambda opening: Looped(lambda number: Straight(3))))
    assert order.length is None
    assert order.ids([0, 1, 2, 3, 15, 16, 17]).tolist() == [0, 10**12, 10**12 + 5, 1, 5, 10**12 + 5 + 2, 6]
    assert order.ids([2 * 10**12 + 3, 2 * 10**12 + 4]).tolist() == [10**12 - 1, 10**12 + 5 + (10**12 - 1) % 3]
    assert order.ids([2 * 10**12 + 5]).tolist() == [10**12 + 5 + 10**12 % 3]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: InTurn(()), ValueError, "branches must hold at least one stream, got none"),
        (lambda: InTurn((Straight(3),)), TypeError, "a branch must be callable"),
        (lambda: Sampled(straight(1, 2), (1.0,), 0, 0, ()), ValueError, "a number for each of 2 streams, got 1"),
        (lambda: Sampled(straight(1, 2), (1.0, 0.0), 0, 0, ()), ValueError, r"weights must all be positive, got \[1.0, 0.0\]"),
        (lambda: Drawn(straight(1), (1.0,), 0, 0, (), 0), ValueError, "max_reinits must be at least 1, got 0"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_all_mixes_share():
    assert all(issubclass(kind, Mixed) for kind in (InTurn, Sampled, Drawn))
    random.seed(0)
    before = random.getstate()
    Sampled(straight(3, 3), (0.5, 0.5), 0, 0, ()).ids(range(6))
    assert random.getstate() == before, "global generators are not touched"
