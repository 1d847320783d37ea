"""Several streams in one: what mixes have in common, and streams mixed at random."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import inf, isclose
from typing import TYPE_CHECKING, Any

from squirrel_torch.iterstream.base import ChainEnd, Composable, chained, copied
from squirrel_torch.iterstream.iterable import IterableSource, Source, T_co
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.iterstream.run import open_links
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.iterstream.stages import Monitored
from squirrel_torch.seeding import Seed, resolve_seed
from squirrel_torch.sharding import Shard

if TYPE_CHECKING:
    import random
    from types import ModuleType

__all__ = ["IterableSamplerSource", "Mix", "OpenBranches", "as_branches", "check_probabilities", "pick"]


class Mix(Source[T_co]):
    """A source over several streams, its `branches`."""

    branches: list[Composable[Any]]

    @property
    def _branches(self) -> list[list[Composable[Any]]]:
        return [branch._links() for branch in self.branches]


class IterableSamplerSource(Mix[T_co]):
    """Items of several streams, mixed at random until all are exhausted.

    Each item comes from a stream drawn by its probability. When a stream is exhausted the probabilities of the others are
    normalized. Which stream comes next depends on (seed, epoch) alone: it is the same on all ranks, and new in each epoch.

    Args:
        iterables: The streams: composables or other iterables.
        probs: A probability for each, positive, adding up to 1. By default all are equal.
        rng: A seed is drawn from it, now. The generator is not used afterwards.
        seed: By default `squirrel_torch.seeding.DEFAULT_SEED`.

    Raises:
        ValueError: If there is no stream, if the probabilities are not as said, or if both `rng` and `seed` are given.

    Example:
        >>> sum(IterableSamplerSource([[1, 2, 3], [4, 5]], probs=[0.7, 0.3]).collect())
        15
    """

    def __init__(
        self,
        iterables: Sequence[Iterable[T_co]],
        probs: Sequence[float] | None = None,
        rng: random.Random | ModuleType | None = None,
        seed: Seed = None,
    ) -> None:
        super().__init__()
        self.branches: list[Composable[Any]] = as_branches("iterables", iterables)
        self.probs: list[float] = check_probabilities("probs", probs, len(self.branches))
        self.seed: Seed = resolve_seed(seed, rng)

    @property
    def _draws(self) -> bool:
        return True

    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[T_co]:
        return shard.of(self._mixed(context, lifetime))

    def _mixed(self, context: Context, lifetime: Lifetime) -> Iterator[T_co]:
        draws = chain.from_iterable(block.tolist() for block in context.uniforms(self.seed))
        weights = list(self.probs)
        with OpenBranches(self.branches, context, lifetime) as alive:
            streams = list(alive.streams)
            while streams:
                index = pick(weights, next(draws))
                # Not `yield next(...)` in a try: a StopIteration thrown in by the consumer is not the end of a stream.
                for item in streams[index]:
                    yield item
                    break
                else:
                    del streams[index], weights[index]

    def _describe(self) -> str:
        return f"IterableSamplerSource({len(self.branches)} streams)"


def as_branches(name: str, streams: Sequence[Iterable[Any]]) -> list[Composable[Any]]:
    """The streams of a mix as composables.

    Raises:
        TypeError: If it is one stream instead of a list of them.
        ValueError: If there is none.
    """
    if isinstance(streams, Composable | ChainEnd | str):
        raise TypeError(f"{name} must be a list of streams, got one stream: {streams!r}")
    branches = [stream if isinstance(stream, Composable) else IterableSource(stream) for stream in streams]
    if not branches:
        raise ValueError(f"{name} must hold at least one stream, got {streams!r}")
    return _told_apart(branches, [])


def _told_apart(branches: Sequence[Composable[Any]], others: list[Monitored[Any]]) -> list[Composable[Any]]:
    """The streams of a mix; monitors in several of them that would give the same names get numbers, as in one chain.

    Args:
        branches: The streams.
        others: The monitors before them; theirs are added.
    """
    apart: list[Composable[Any]] = []
    for branch in branches:
        links = branch._links()
        numbered = [_numbered(link, others) for link in links]
        changed = any(one is not link for one, link in zip(numbered, links, strict=True))
        apart.append(chained(numbered) if changed else branch)
    return apart


def _numbered(link: Composable[Any], others: list[Monitored[Any]]) -> Composable[Any]:
    """A place of such a stream: itself, or a copy with another prefix."""
    stage = link._stage
    if isinstance(link, Mix):
        branches = _told_apart(link.branches, others)
        if any(one is not branch for one, branch in zip(branches, link.branches, strict=True)):
            mix: Mix[Any] = copied(link)
            mix.branches = branches
            return mix
    elif isinstance(stage, Monitored):
        apart = stage.told_apart(others)
        others.append(apart)
        if apart is not stage:
            link = copied(link)
            link._stage = apart
    return link


def check_probabilities(name: str, probabilities: Sequence[float] | None, streams: int) -> list[float]:
    """A copy of `probabilities` that adds up to exactly what floats allow; equal ones if None.

    Raises:
        ValueError: If there is not one for each stream, if one is not positive, or if they don't add up to 1.
    """
    if probabilities is None:
        return [1 / streams] * streams
    if len(probabilities) != streams:
        raise ValueError(
            f"{name} must hold a number for each of the {streams} streams, got {len(probabilities)}: {probabilities!r}"
        )
    if not all(0 < probability < inf for probability in probabilities):
        raise ValueError(f"{name} must all be positive, got {list(probabilities)!r}")
    total = sum(probabilities)
    if not isclose(total, 1, abs_tol=1e-6):
        raise ValueError(f"{name} must add up to 1, got {list(probabilities)!r}, which add up to {total!r}")
    return [float(probability) / total for probability in probabilities]


def pick(weights: Sequence[float], draw: float) -> int:
    """The index that `draw`, in [0, 1), falls on where each index has a share of [0, 1) in proportion to its weight."""
    target = draw * sum(weights)
    for index, weight in enumerate(weights):
        target -= weight
        if target < 0:
            return index
    return len(weights) - 1  # rounding


class OpenBranches:
    """The streams of a mix in one run, each with a lifetime of its own.

    Args:
        branches: The streams as composables.
        context: That of the mix.
        lifetime: That of the mix.
    """

    def __init__(self, branches: Sequence[Composable[Any]], context: Context, lifetime: Lifetime) -> None:
        self._branches = branches
        self._context = context
        self._lifetime = lifetime
        self._lifetimes = [lifetime.child(f"branch {index}") for index in range(len(branches))]
        self.streams: list[Iterator[Any]] = []

    def _open(self, index: int, opening: int) -> Iterator[Any]:
        below = self._context.below("branch", index, opening)
        return open_links(self._branches[index]._links(), below, self._lifetimes[index])

    def open_again(self, index: int, opening: int) -> None:
        """Start a stream anew, for the (`opening` + 1)-th time in this run: it is shuffled differently."""
        self._lifetimes[index].close("closed")
        self._lifetimes[index] = self._lifetime.child(f"branch {index}")
        self.streams[index] = self._open(index, opening)

    def __enter__(self) -> OpenBranches:
        self.streams = [self._open(index, 0) for index in range(len(self._branches))]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        for lifetime in self._lifetimes:
            lifetime.__exit__(kind, error, traceback)
