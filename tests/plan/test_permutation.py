"""Permutations that are computed element by element."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch.plan.permutation import SORTED, Grid, permutation_key, permute, scattered

KEY = permutation_key(0, 0, ())
BEHIND_THE_TABLES = [SORTED + 1, SORTED + 2, 65 * 65, 65 * 66 - 1, 65 * 66, 5000, 9973, 1 << 13, (1 << 13) + 1, 99_999]


@pytest.mark.parametrize("sizes", [range(1, 200), [SORTED - 1, SORTED, *BEHIND_THE_TABLES]], ids=["small", "large"])
def test_each_number_comes_once(sizes):
    for size in sizes:
        permuted = permute(np.arange(size), size, KEY)
        assert permuted.dtype == np.int64
        assert np.array_equal(np.sort(permuted), np.arange(size)), size


@pytest.mark.parametrize("size", [1, 10, SORTED, SORTED + 1, 9973])
def test_an_element_does_not_depend_on_what_else_is_asked_for(size):
    whole = permute(np.arange(size), size, KEY)
    some = np.random.default_rng(0).integers(0, size, 300)
    assert np.array_equal(permute(some, size, KEY), whole[some])
    assert [int(permute(np.array([one]), size, KEY)[0]) for one in some[:20]] == whole[some[:20]].tolist()
    assert np.array_equal(permute(some.reshape(3, 100), size, KEY), whole[some].reshape(3, 100))
    assert permute(some[:0], size, KEY).shape == (0,)
    assert np.array_equal(permute(np.repeat(some, 2)[::2], size, KEY), whole[some]), "not contiguous"


@pytest.mark.parametrize("size", [10**12, (1 << 62) - 1, 1 << 62])
def test_ranges_that_no_memory_holds(size):
    ends = np.concatenate([np.arange(5000), np.arange(size - 5000, size)])
    permuted = permute(ends, size, KEY)
    assert len(np.unique(permuted)) == len(ends)
    assert permuted.min() >= 0
    assert permuted.max() < size
    # Neighbours are sent to all 16 parts alike: chi-square with 15 degrees of freedom is below 45 at 0.9999.
    counts = np.bincount(permuted // (-(-size // 16)), minlength=16)
    assert ((counts - 625) ** 2 / 625).sum() < 45


def test_inputs_are_left_alone():
    positions = np.arange(9000)
    for size in (9000, 100_000):
        permute(positions, size, KEY)
    assert np.array_equal(positions, np.arange(9000))


def test_keys_name_permutations():
    names = [(seed, epoch, path) for seed in (0, 1, "0") for epoch in (0, 1) for path in ((), (0,), ("0",), (0, "pass", 1))]
    for size in (100, 10_000):
        seen = {tuple(permute(np.arange(20), size, permutation_key(*name))) for name in names}
        assert len(seen) == len(names)


def test_permutations_are_frozen():
    """A figure that changed would change the order of every job that is resumed."""
    first = np.arange(5)
    assert permute(first, 10, KEY).tolist() == [0, 9, 4, 8, 5]
    assert permute(first, 10_000, KEY).tolist() == [7050, 960, 2748, 8846, 2486]
    assert permute(first, 10**12, KEY).tolist() == [134919615547, 19074333525, 484220728916, 668786025835, 462125687467]
    windows = scattered(first, np.array([9, 10, 11, 11, 9]), Grid(11), np.array([0, 1, 2, 2, 0]), KEY)
    assert windows.tolist() == [2, 1, 10, 8, 8]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_permutations_of_few_are_equally_likely(size):
    draws = 3000
    seen = dict.fromkeys(permutations(range(size)), 0)
    for epoch in range(draws):
        seen[tuple(permute(np.arange(size), size, permutation_key(0, epoch, ())).tolist())] += 1
    expected = draws / len(seen)
    freedom = len(seen) - 1
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 5


def test_elements_and_neighbours_are_sent_anywhere_alike():
    """Over keys: where the first element goes, and the first two together."""
    size, parts = 10_000, 8
    ends = np.stack([permute(np.arange(2), size, permutation_key(0, epoch, ())) for epoch in range(4000)]) * parts // size
    for numbers, cells in ((ends[:, 0], parts), (ends[:, 0] * parts + ends[:, 1], parts**2)):
        counts = np.bincount(numbers, minlength=cells)
        expected = len(ends) / cells
        assert ((counts - expected) ** 2 / expected).sum() < cells + 4 * (2 * cells) ** 0.5


def test_within_one_permutation_nothing_can_be_foretold():
    size, parts = 1_000_000, 16
    permuted = permute(np.arange(size), size, KEY)
    cells = permuted * parts // size
    for distance in (1, 2, 3, 1000, 1001):  # sides of the grid among them
        pairs = np.bincount(cells[distance:] * parts + cells[:-distance], minlength=parts**2)
        expected = (size - distance) / parts**2
        assert ((pairs - expected) ** 2 / expected).sum() < 255 + 4 * 510**0.5
    steps = np.bincount((permuted[1:] - permuted[:-1]) % size * parts // size, minlength=parts)
    assert ((steps - size / parts) ** 2 / (size / parts)).sum() < 45
    assert (permuted == np.arange(size)).sum() < 8, "about one element stays"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 1 << 61), st.integers(0, 9))
def test_many_small_permutations_at_once(sizes, first, epoch):
    """Each is a permutation, whatever stands beside it."""
    key, grid = permutation_key(0, epoch, ()), Grid(max(sizes))
    indices = np.concatenate([np.arange(size) for size in sizes])
    which = first + np.repeat(np.arange(len(sizes)), sizes)
    together = scattered(indices, np.repeat(sizes, sizes), grid, which, key)
    cuts = np.cumsum([0, *sizes])
    for (start, stop), size in zip(pairwise(cuts), sizes, strict=True):
        assert sorted(together[start:stop].tolist()) == list(range(size))
        alone = scattered(indices[start:stop], np.full(size, size), grid, which[start:stop], key)
        assert np.array_equal(together[start:stop], alone)


@pytest.mark.parametrize("size", [16, 17, 50, 100])
def test_windows_are_shuffled_well_and_apart(size):
    """From 16 on, which is the least that is asked for: elements go anywhere alike, and windows next to each other differ."""
    windows = 200_000 // size
    indices, which = np.tile(np.arange(size), windows), np.repeat(np.arange(windows), size)
    permuted = scattered(indices, np.full(len(indices), size), Grid(size), which, KEY).reshape(windows, size)
    freedom = (size - 1) ** 2
    limit = freedom + 4 * (2 * freedom) ** 0.5
    for cells in (indices * size + permuted.ravel(), (permuted[1:] * size + permuted[:-1]).ravel()):
        counts = np.bincount(cells, minlength=size**2)
        expected = len(cells) / size**2
        assert ((counts - expected) ** 2 / expected).sum() < limit
    assert 0.49 < (permuted[:, 1:] > permuted[:, :-1]).mean() < 0.51
