"""Every random number of the package.

There is no sequential generator anywhere: each draw is a function of (seed, epoch, path, n). So the n-th draw of a stage
is the same in every process, after any restart and in any order of asking, and nothing but a counter has to be kept.
Numbers come from Philox, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
Only its raw 64-bit stream is used: numpy promises that this never changes, which it does not for distributions.
"""

import hashlib
import random
import struct
from collections.abc import Iterator
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "DEFAULT_SEED", "Path", "Seed", "key_words", "resolve_seed", "uniform_blocks", "uniforms"]

DEFAULT_SEED = 0
"""The seed of every shuffle and mix that was given none: all ranks agree without talking."""

BLOCK = 4096
"""Draws are made this many at a time."""

Seed = int | float | str | bytes | bytearray | np.integer[Any] | None
Path = tuple[int | str, ...]


def resolve_seed(seed: Seed, rng: random.Random | ModuleType | None = None) -> Seed:
    """The seed to use: the one given, else one drawn from `rng`, else `DEFAULT_SEED`.

    Args:
        seed: Any value that `random.seed` takes.
        rng: A `random.Random` or the module `random`. One 64-bit number is drawn from it, here and now; it is never
            re-seeded.

    Raises:
        TypeError: If `seed` is not a number, text or bytes, or `rng` can't give random bits.
        ValueError: If both are given.
    """
    if seed is not None and rng is not None:
        raise ValueError(f"give seed or rng, not both: seed={seed!r}, rng={rng!r}")
    if rng is not None:
        draw = getattr(rng, "getrandbits", None)
        if draw is None:
            raise TypeError(f"rng must be a random.Random or the module random, got {rng!r} ({type(rng).__name__})")
        return int(draw(64))
    if seed is None:
        return DEFAULT_SEED
    if not isinstance(seed, int | float | str | bytes | bytearray | np.integer):
        raise TypeError(f"seed must be a number, text or bytes, got {seed!r} ({type(seed).__name__})")
    if isinstance(seed, np.integer):
        return int(seed)
    return float(seed) if isinstance(seed, float) else seed  # numpy's float64 is a float of another name


def key_words(seed: Seed, epoch: int, path: Path, count: int) -> tuple[int, ...]:
    """`count` numbers below 2^64, at most 8, that stand for (seed, epoch, path); other counts give other numbers."""
    name = repr((type(seed).__name__, seed, int(epoch), path)).encode()
    digest = hashlib.blake2b(name, digest_size=8 * count).digest()
    return struct.unpack(f"<{count}Q", digest)


def uniforms(seed: Seed, epoch: int, path: Path, block: int, size: int = BLOCK) -> npt.NDArray[np.float64]:
    """Draws number `block * BLOCK` onwards of the stream named by (seed, epoch, path).

    Args:
        seed: Any value that `random.seed` takes.
        epoch: Number of the pass, from 0.
        path: Where in the pipeline the draws are used; different paths give independent streams.
        block: Which block of `BLOCK` draws, from 0.
        size: How many of the block's draws, at most `BLOCK`.

    Returns:
        Numbers in [0, 1), shape `[size]`, float64.
    """
    key = np.array(key_words(seed, epoch, path, 2), np.uint64)
    # The block stands in the highest word of the 256-bit counter, so that blocks never meet.
    raw = np.random.Philox(key=key, counter=[0, 0, 0, block]).random_raw(size)
    # The upper 53 bits fill the mantissa of a double in [0, 1).
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform_blocks(seed: Seed, epoch: int, path: Path, start: int = 0) -> Iterator[npt.NDArray[np.float64]]:
    """The draws of `uniforms` from number `start` on, in blocks, one after the other, without end."""
    first, offset = divmod(start, BLOCK)
    return (uniforms(seed, epoch, path, block)[offset if block == first else 0 :] for block in count(first))
