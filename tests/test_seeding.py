"""Draws are a function of (seed, epoch, path, n)."""

import random
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch.seeding import BLOCK, DEFAULT_SEED, resolve_seed, uniform_blocks, uniforms

SEEDS = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.binary(max_size=5))


@given(SEEDS, st.integers(0, 2**31), st.lists(st.one_of(st.integers(0, 9), st.text(max_size=3)), max_size=3), st.integers(0, 9))
def test_a_draw_depends_on_nothing_else(seed, epoch, path, block):
    one, other = (uniforms(seed, epoch, tuple(path), block) for _ in range(2))
    assert np.array_equal(one, other)
    assert one.shape == (BLOCK,)
    assert one.dtype == np.float64
    assert one.min() >= 0
    assert one.max() < 1
    assert np.array_equal(uniforms(seed, epoch, tuple(path), block, size=10), one[:10])


def test_streams_do_not_meet():
    names = [
        (seed, epoch, path, block)
        for seed in (0, 1, "0")
        for epoch in (0, 1)
        for path in ((), (0,), ("0",))
        for block in (0, 1)
    ]
    draws = {tuple(uniforms(*name, size=3)) for name in names}
    assert len(draws) == len(names)
    assert tuple(uniforms(0, 1, (), 0, size=3)) != tuple(uniforms(1, 0, (), 0, size=3)), "seed and epoch are not added"


def test_draws_are_frozen():
    """A figure that changed would change the order of every job that is resumed."""
    assert uniforms(0, 0, (), 0, size=3).tolist() == [0.2755451035466384, 0.6635082971685671, 0.8082871588888894]


def test_blocks_follow_each_other():
    blocks = uniform_blocks(0, 0, ())
    for number in range(3):
        assert np.array_equal(next(blocks), uniforms(0, 0, (), number))


def test_draws_are_uniform():
    draws = np.concatenate([uniforms("uniform", 0, (), block) for block in range(10)])
    counts, _ = np.histogram(draws, 16, (0, 1))
    expected = len(draws) / 16
    # chi-square with 15 degrees of freedom is below 45 with probability 0.9999
    assert ((counts - expected) ** 2 / expected).sum() < 45


def test_other_processes_draw_the_same():
    code = "from squirrel_torch.seeding import uniforms; print(uniforms('seed', 3, (1, 'pass', 2), 4, size=2).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(uniforms("seed", 3, (1, "pass", 2), 4, size=2).tolist())


def test_seeds():
    assert resolve_seed(None) == DEFAULT_SEED
    assert resolve_seed(np.int32(5)) == 5
    assert resolve_seed(None, random.Random(1)) == random.Random(1).getrandbits(64)
