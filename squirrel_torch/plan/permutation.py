"""Permutations of range(size) of which any element can be asked for, without an array of that size.

A Feistel network over the pairs (left, right) of a grid that is hardly larger than the range, and cycle walking: what falls
outside of the range is sent through again until it falls inside. (Black and Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002: their generalized Feistel cipher; the rounds are keyed by a mixing function, as here nobody has to be
kept from guessing.) Ranges up to `SORTED` are sorted by keyed draws instead, which makes all permutations equally likely.
"""

import hashlib
import struct
from functools import lru_cache
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from squirrel_torch.seeding import Path, Seed, key_words

__all__ = ["SIZE_LIMIT", "SORTED", "Grid", "Key", "permutation_key", "permute", "scattered", "subkey"]

Key = tuple[int, ...]
"""8 numbers below 2^64: one for each round, and two for the draws by which small ranges are sorted."""

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

SORTED = 4096
"""Up to this size, a permutation is a table: 32 KB at most, the last 64 are kept."""

SIZE_LIMIT = 1 << 62
"""Sizes must not be above this."""

_ROUNDS = 6
_BLOCK = 4096  # indices at a time: what a block needs stays in the processor's cache
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


def permutation_key(seed: Seed, epoch: int, path: Path) -> Key:
    """The key of the permutation that is named by (seed, epoch, path).

    Args:
        seed: Any value that `random.seed` takes.
        epoch: Number of the pass, from 0.
        path: Where in the pipeline the permutation is used; different paths give independent ones.
    """
    return key_words(seed, epoch, path, 8)


def subkey(key: Key, name: str) -> Key:
    """The key of a part of what has `key`; each name gives another one."""
    return struct.unpack("<8Q", hashlib.blake2b(struct.pack("<8Q", *key) + name.encode(), digest_size=64).digest())


def permute(indices: Integers, size: int, key: Key) -> Integers:
    """Where a permutation of range(size) sends each of `indices`.

    Args:
        indices: Numbers in [0, size), any shape, int64. They are not checked.
        size: From 1 to 2^62.
        key: That of `permutation_key`.

    Returns:
        Numbers in [0, size), of the shape of `indices`, int64; different ones for different indices.
    """
    if size <= SORTED:
        return _table(size, key)[indices]
    flat = np.ascontiguousarray(indices).reshape(-1).view(np.uint64)
    grid = Grid(size)
    keys = [np.uint64(word) for word in key[:_ROUNDS]]
    out = np.empty(len(flat), np.uint64)
    for start in range(0, len(flat), _BLOCK):
        part = slice(start, start + _BLOCK)
        out[part] = _walked(flat[part], np.uint64(size), grid, keys)
    return out.view(np.int64).reshape(indices.shape)


def scattered(indices: Integers, sizes: Integers | int, grid: "Grid", which: Integers, key: Key) -> Integers:
    """Like `permute`, where each index is one of a permutation of its own.

    Args:
        indices: Numbers, each in [0, its size), shape `[n]`, int64.
        sizes: How large the permutation of each is, shape `[n]`, int64; or one for all.
        grid: One for the largest of all sizes, or more. The same permutation must be asked for with the same grid.
        which: The number of the permutation of each, shape `[n]`, int64.
        key: That of `permutation_key`.

    Returns:
        Numbers, each in [0, its size), shape `[n]`, int64.
    """
    out = np.empty(len(indices), np.uint64)
    words = [np.uint64(word) for word in key[: _ROUNDS + 1]]
    for start in range(0, len(indices), _BLOCK):
        part = slice(start, start + _BLOCK)
        tweak = _mixed(which[part].view(np.uint64) * _SECOND + words[_ROUNDS])
        keys = [tweak ^ word for word in words[:_ROUNDS]]
        below = np.uint64(sizes) if isinstance(sizes, int) else sizes[part].view(np.uint64)
        out[part] = _walked(indices[part].view(np.uint64), below, grid, keys)
    return out.view(np.int64)


@lru_cache(maxsize=64)
def _table(size: int, key: Key) -> Integers:
    draws = np.random.Philox(key=np.array(key[-2:], np.uint64)).random_raw(size)
    table = np.argsort(draws, kind="stable").astype(np.int64)
    table.flags.writeable = False
    return table


class Grid:
    """The pairs (left, right) in which a range of `at_least` numbers is laid out.

    Its `size`, how many pairs there are, is at most sqrt(at_least) + 1 more.
    """

    def __init__(self, at_least: int) -> None:
        root = isqrt(at_least - 1) + 1
        sides = root, -(-at_least // root)
        self.size: int = sides[0] * sides[1]
        self.left: np.uint64 = np.uint64(sides[0])
        self.right: np.uint64 = np.uint64(sides[1])


def _mixed(words: Words) -> Words:
    words ^= words >> _HALF
    words *= _FIRST
    words ^= words >> _HALF
    return words


def _walked(indices: Words, sizes: Any, grid: Grid, keys: list[Any]) -> Words:
    """The permuted indices, below their sizes; `sizes` and `keys` are one for all or one for each."""
    out = _through(indices, grid, keys)
    outside = np.flatnonzero(out >= sizes)
    while len(outside):
        below = sizes if np.ndim(sizes) == 0 else sizes[outside]
        those = keys if np.ndim(keys[0]) == 0 else [key[outside] for key in keys]
        again = _through(out[outside], grid, those)
        out[outside] = again
        outside = outside[again >= below]
    return out


def _through(indices: Words, grid: Grid, keys: list[Any]) -> Words:
    """The rounds: each adds to one half of the pair, modulo its range, a function of the other half."""
    right = indices // grid.left
    left = indices - right * grid.left
    word, shifted = np.empty_like(left), np.empty_like(left)
    ranges = grid.left, grid.right
    halves = [left, right]
    for number, key in enumerate(keys):
        place = number & 1
        half, modulus = halves[place], ranges[place]
        np.add(halves[1 - place], key, out=word)
        np.multiply(word, _FIRST, out=word)
        np.right_shift(word, _HALF, out=shifted)
        np.bitwise_xor(word, shifted, out=word)
        np.multiply(word, _SECOND, out=word)
        np.right_shift(word, _HALF, out=word)
        # The upper 32 bits times the range, divided by 2^32: a number in the range, without a division.
        np.multiply(word, modulus, out=word)
        np.right_shift(word, _HALF, out=word)
        np.add(half, word, out=half)
        # Below the range already, or else less by it: what is subtracted too much wraps to a huge number.
        np.subtract(half, modulus, out=word)
        np.minimum(half, word, out=half)
    right *= grid.left
    right += left
    return right
