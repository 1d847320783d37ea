"""Datasets in shards, shuffled in windows of streams."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch.plan import STREAMS, Deal, Permuted, Windowed, permutation_key, permute
from squirrel_torch.plan.permutation import Grid, scattered, subkey

KEY = permutation_key(0, 0, ("shuffle",))


def everything(order):
    return order.ids(np.arange(order.length)).tolist()


def model(counts, size, key, streams):
    """The order as lists of lists: shards end to end, streams, windows, one row after the other."""
    rows, first = [], 0
    for count in counts:
        rows.append(range(first, first + count))
        first += count
    total = first
    window = Grid(max(16, -(-3 * size // streams))).size
    if window * streams >= total:
        return permute(np.arange(total), total, key).tolist()
    laid = [row for shard in permute(np.arange(len(counts)), len(counts), subkey(key, "shards")) for row in rows[shard]]
    if len(counts) < streams:
        turn = subkey(key, "turn")[0] % total
        laid = laid[turn:] + laid[:turn]
    cut = [laid[total * v // streams : total * (v + 1) // streams] for v in range(streams)]
    slots = [cut[v] for v in permute(np.arange(streams), streams, subkey(key, "slots"))]
    slots = [shuffled(stream, number, window, total // streams, streams, key) for number, stream in enumerate(slots)]
    return [stream[place] for place in range(total // streams + 1) for stream in slots if place < len(stream)]


def shuffled(stream, number, window, rounds, streams, key):
    windows = rounds // window
    given_out = []
    for index in range(windows):
        last = index == windows - 1
        part = stream[index * window :] if last else stream[index * window : (index + 1) * window]
        grid = Grid(rounds - index * window + 1) if last else Grid(window)
        which = np.full(len(part), index * streams + number)
        places = scattered(np.arange(len(part)), len(part), grid, which, subkey(key, "rows"))
        given_out += [part[place] for place in places]
    return given_out


@given(
    counts=st.lists(st.integers(0, 60), max_size=30),
    size=st.integers(1, 100),
    streams=st.sampled_from([1, 2, 3, 7, 12]),
    epoch=st.integers(0, 3),
)
def test_as_lists_of_lists(counts, size, streams, epoch):
    key = permutation_key(0, epoch, ())
    order = Windowed(counts, size, key, streams)
    assert order.length == order.span == sum(counts)
    expected = model(counts, size, key, streams)
    assert everything(order) == expected
    assert sorted(expected) == list(range(sum(counts)))


@pytest.mark.parametrize("counts", [[3000], [1] * 3000, [0, 0, 2999, 0, 1], [30] * 100, [17] * 61, list(range(77))], ids=len)
@pytest.mark.parametrize("size", [2, 10, 333, 900])
def test_with_as_many_streams_as_by_default(counts, size):
    assert everything(Windowed(counts, size, KEY)) == model(counts, size, KEY, STREAMS)


@pytest.mark.parametrize("total", [0, 1, 2, 59, 60, 960, 1019, 1020, 1021, 1079, 1080])
def test_lengths_around_the_first_windows(total):
    order = Windowed([total], 1, KEY)
    assert order.whole == (total <= 960)
    assert sorted(everything(order)) == list(range(total))


def test_what_the_windows_cover_is_permuted_as_a_whole():
    order = Windowed([500] * 6, 1000, KEY)
    assert order.whole
    assert everything(order) == everything(Permuted(3000, KEY))


def test_any_position_can_be_asked_for():
    order = Windowed([1000] * 90, 500, KEY)
    expected = order.ids(np.arange(order.length))
    some = np.random.default_rng(0).permutation(order.length)
    assert np.array_equal(order.ids(some), expected[some]), "in blocks"
    for start in (0, 4567, order.length - 64):
        assert np.array_equal(order.ids(np.arange(start, start + 64)), expected[start : start + 64])
    assert order.ids([]).tolist() == []


def test_a_stream_is_read_from_window_to_window():
    counts, size = [1000] * 120, 1000
    order = Windowed(counts, size, KEY)
    ids = order.ids(np.arange(order.length)).reshape(-1, STREAMS)
    assert order.window == 56, "the first product of neighbours from 3 * 1000 / 60 on"
    for stream in ids.T:
        for first in range(0, len(stream) - 2 * order.window, order.window):
            window = stream[first : first + order.window]
            assert len(set(window // 1000)) <= 2, "rows of one shard, or of where the next one begins"
            assert window.max() - window.min() < order.window or len(set(window // 1000)) == 2


@pytest.mark.parametrize(("ranks", "most"), [(1, 1.0), (4, 1.2), (60, 1.2), (7, 7.0), (8, 2.4)])
def test_how_many_ranks_read_a_shard(ranks, most):
    """One, where they divide the streams, but for the up to 60 shards that are cut; W / gcd(W, streams) else."""
    order = Windowed([101] * 597, 300, KEY)
    readers = set()
    for rank in range(ranks):
        deal = Deal(order.length, ranks=ranks, batch=-(-order.length // ranks))
        readers |= {(rank, shard) for shard in (order.ids(deal.positions(rank, 0)) // 101).tolist()}
    assert len(readers) / 597 <= most


def test_few_shards_are_cut_elsewhere_in_each_epoch():
    """Else the same rows would come first in every epoch."""
    firsts = np.array([Windowed([10_000], 10, permutation_key(0, epoch, ())).ids([0])[0] for epoch in range(400)])
    counts = np.bincount(firsts // 1250, minlength=8)
    assert ((counts - 50) ** 2 / 50).sum() < 35, "chi-square with 7 degrees of freedom"


def test_epochs_and_seeds_differ():
    orders = {tuple(Windowed([100] * 100, 50, permutation_key(*name)).ids(range(10))) for name in NAMES}
    assert len(orders) == len(NAMES)


NAMES = [(seed, epoch, path) for seed in (0, 1) for epoch in (0, 1, 2) for path in ((), (0,))]


def test_the_order_is_frozen():
    """A figure that changed would change the order of every job that is resumed."""
    assert Windowed([1000, 2000, 3000] * 20, 100, KEY).ids(range(5)).tolist() == [68008, 7010, 71005, 80006, 17000]
    assert Windowed([9000], 100, KEY).ids(range(5)).tolist() == [5916, 4718, 3513, 1414, 5308]


def test_datasets_that_no_memory_holds():
    order = Windowed([10**7] * 10**5, 10**5, KEY)
    assert order.length == 10**12
    for start in (0, 10**11 + 7, 10**12 - 20_000):
        ids = order.ids(np.arange(start, start + 20_000))
        assert len(np.unique(ids)) == 20_000
        assert ids.min() >= 0
        assert ids.max() < 10**12
    window = order.window * STREAMS
    first = order.ids(np.arange(window))
    assert len(np.unique(first)) == window
    assert len(np.unique(first // 10**7)) <= 2 * STREAMS


def test_what_was_worked_out_does_not_travel():
    order = Windowed([50] * 100, 20, KEY)
    expected = everything(order)
    copy = pickle.loads(pickle.dumps(order))
    assert set(vars(copy)) == {"counts", "size", "key", "streams"}
    assert everything(copy) == expected
    counts = np.array([50] * 100)
    order = Windowed(counts, 20, KEY)
    counts[:] = 0
    assert everything(order) == expected, "the counts are its own"


@pytest.mark.parametrize(
    ("counts", "size", "streams", "error", "message"),
    [
        ([5, -1], 10, 60, ValueError, "counts must not be negative, got -1"),
        ([5.0], 10, 60, TypeError, "counts must be a list of integers, got float64"),
        (5, 10, 60, TypeError, r"counts must be a list of integers, got int64 of shape \(\)"),
        ([1 << 61] * 3, 10, 60, ValueError, r"add up to more than 2\^62, got 6917529027641081856"),
        ([5], 0, 60, ValueError, "size must be at least 1, got 0"),
        ([5], 10, 0, ValueError, "streams must be at least 1, got 0"),
    ],
)
def test_bad_arguments(counts, size, streams, error, message):
    with pytest.raises(error, match=message):
        Windowed(counts, size, KEY, streams)
