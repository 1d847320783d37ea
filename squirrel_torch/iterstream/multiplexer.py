"""Mixing several streams, some of them more than once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from math import inf
from typing import Any, TypeVar

from squirrel_torch.checks import require_at_least
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.iterstream.mix import Mix, OpenBranches, as_branches, pick
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.seeding import Seed, resolve_seed
from squirrel_torch.sharding import Shard

__all__ = ["Multiplexer", "MultiplexingStrategy"]

T_co = TypeVar("T_co", covariant=True)

_log = logging.getLogger(__name__)


class MultiplexingStrategy(Enum):
    """Which stream gives the next item, and when the mix ends."""

    ROUND_ROBIN = "RoundRobin"
    """One after the other. A stream that is exhausted drops out; the mix ends with the last one."""

    UNIFORM_WITH_REPLACEMENT = "uniform_with_replacement"
    """Drawn, all equally likely. A stream that is exhausted starts again."""

    SAMPLING = "sampling"
    """Drawn by given probabilities. A stream that is exhausted starts again."""


@dataclass
class _Counts:
    """What happened to the streams of one run."""

    reinits: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)


class Multiplexer(Mix[T_co]):
    """Items of several streams, mixed.

    Two things can be set: the share w_i of the mix that comes from stream i, and how often a stream may be gone through.
    The length of a stream is not known before its end, so the shares hold for what comes out: a stream of t_i items is gone
    through e_i = w_i T / t_i times in a mix of T items, and not both can be chosen at will.

    With a strategy that draws, the mix ends when each stream has been exhausted once, or one for the `max_reinits`-th time.
    Which stream comes next depends on (seed, epoch) alone: it is the same on all ranks, and new in each epoch.

    Args:
        composables: The streams: composables or other iterables.
        mux_strategy: See `MultiplexingStrategy`.
        sampling_probas: With SAMPLING, the probability of each stream. They need not add up to 1.
        max_reinits: End the mix when a stream is exhausted for this many times.
        seed: By default `squirrel_torch.seeding.DEFAULT_SEED`.
        proba_threshold: With SAMPLING, streams that are not more likely than this are left out. A warning in the log names
            them.

    Raises:
        ValueError: If there is no stream, if the probabilities are missing, not one for each stream, or none is above the
            threshold.
        TypeError: If `mux_strategy` is not a MultiplexingStrategy.

    Example:
        >>> Multiplexer([[1, 2, 3], [10]], MultiplexingStrategy.ROUND_ROBIN).collect()
        [1, 10, 2, 3]
    """

    def __init__(
        self,
        composables: Sequence[Iterable[T_co]],
        mux_strategy: MultiplexingStrategy,
        sampling_probas: Sequence[float] | None = None,
        max_reinits: int | None = None,
        seed: Seed = None,
        proba_threshold: float = 1e-3,
    ) -> None:
        super().__init__()
        if not isinstance(mux_strategy, MultiplexingStrategy):
            raise TypeError(f"mux_strategy must be a MultiplexingStrategy, got {mux_strategy!r}")
        if max_reinits is not None:
            require_at_least("max_reinits", max_reinits, 1)
        branches = as_branches("composables", composables)
        self.mux_strategy = mux_strategy
        self.max_reinits: int = sys.maxsize if max_reinits is None else max_reinits
        self.seed: Seed = resolve_seed(seed)
        self.branches: list[Composable[Any]]
        self.sampling_probas: list[float]
        if mux_strategy is MultiplexingStrategy.SAMPLING:
            self.branches, self.sampling_probas = _likely(branches, sampling_probas, proba_threshold)
        else:
            self.branches, self.sampling_probas = branches, [1 / len(branches)] * len(branches)
        self._counts = _Counts()

    @property
    def _draws(self) -> bool:
        return self.mux_strategy is not MultiplexingStrategy.ROUND_ROBIN

    @property
    def reinit_counts(self) -> list[int]:
        """How often each stream was exhausted, in the run that was started last in this process."""
        return list(self._counts.reinits)

    @property
    def num_samples(self) -> list[int]:
        """How many items each stream gave, in the run that was started last in this process."""
        return list(self._counts.samples)

    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[T_co]:
        streams = len(self.branches)
        counts = self._counts = _Counts([0] * streams, [0] * streams)
        mixed = self._drawn if self._draws else self._in_turn
        return shard.of(mixed(OpenBranches(self.branches, context, lifetime), counts, context))

    def _in_turn(self, branches: OpenBranches, counts: _Counts, context: Context) -> Iterator[T_co]:
        with branches:
            turns = list(enumerate(branches.streams))
            while turns:
                exhausted = []
                for index, stream in turns:
                    for item in stream:
                        counts.samples[index] += 1
                        yield item
                        break
                    else:
                        counts.reinits[index] += 1
                        exhausted.append(index)
                turns = [turn for turn in turns if turn[0] not in exhausted]

    def _drawn(self, branches: OpenBranches, counts: _Counts, context: Context) -> Iterator[T_co]:
        draws = chain.from_iterable(block.tolist() for block in context.uniforms(self.seed))
        weights = self.sampling_probas
        with branches:
            while True:
                index = pick(weights, next(draws))
                for item in branches.streams[index]:
                    counts.samples[index] += 1
                    yield item
                    break
                else:
                    counts.reinits[index] += 1
                    if min(counts.reinits) > 0 or max(counts.reinits) >= self.max_reinits:
                        return
                    branches.open_again(index, counts.reinits[index])

    def _describe(self) -> str:
        return f"Multiplexer({len(self.branches)} streams, {self.mux_strategy.name})"


def _likely(
    branches: list[Composable[Any]], probabilities: Sequence[float] | None, threshold: float
) -> tuple[list[Composable[Any]], list[float]]:
    """The streams that are more likely than the threshold, and their probabilities, adding up to 1."""
    if probabilities is None:
        raise ValueError("sampling_probas must be given with MultiplexingStrategy.SAMPLING, got None")
    if len(probabilities) != len(branches):
        raise ValueError(
            f"sampling_probas must hold a number for each of the {len(branches)} streams, got {len(probabilities)}"
        )
    if not all(0 <= probability < inf for probability in probabilities) or sum(probabilities) == inf:
        raise ValueError(f"sampling_probas must be finite and not negative, got {list(probabilities)!r}")
    kept = [index for index, probability in enumerate(probabilities) if probability > threshold]
    if not kept:
        raise ValueError(
            f"no stream is more likely than proba_threshold = {threshold}: sampling_probas = {list(probabilities)!r}"
        )
    if len(kept) < len(branches):
        left_out = [index for index in range(len(branches)) if index not in kept]
        _log.warning("streams %s are left out of the mix: their probabilities are not above %s", left_out, threshold)
    total = sum(probabilities[index] for index in kept)
    return [branches[index] for index in kept], [probabilities[index] / total for index in kept]
