"""How a loader goes through its epochs: what the two ways of it have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from squirrel_torch.errors import FingerprintMismatch, PipelineError, StateError
from squirrel_torch.iterstream.layout import Layout, require_same_chain, signature
from squirrel_torch.iterstream.stage import Split
from squirrel_torch.loader.work import Work
from squirrel_torch.loader.workers import END
from squirrel_torch.plan.state import whole
from squirrel_torch.sharding import Shard

__all__ = ["END", "Course", "Hands", "World", "is_automatic", "require_end"]

P = TypeVar("P")


@dataclass(frozen=True)
class World:
    """Who takes part in a pass.

    Args:
        rank: Of this process among the ranks.
        workers: How many make the batches of each.
    """

    rank: Shard
    workers: int


def is_automatic(layout: Layout, world: World) -> bool:
    """Whether several processes share the stream along an axis along which no split was written."""
    ranks = world.rank.count > 1 and not layout.splits & Split.RANK
    return bool(ranks or (world.workers > 1 and not layout.splits & Split.WORKER))


class Hands(Protocol):
    """Who makes the batches: worker processes, or this one."""

    def start(self, work: Work, seeds: Sequence[int]) -> None:
        """Begin a pass; one that goes on is left."""

    def receive(self, worker: int) -> Any:
        """The next (ticket, batch) of a worker, waited for; `END` behind the last."""

    def close(self) -> None:
        """End what goes on, for good."""


def require_end(hands: Hands, world: World) -> None:
    """Wait for the end of what each worker makes: what it says behind its last batch has come with that.

    Raises:
        PipelineError: If one gives another batch.
    """
    for worker in range(world.workers):
        if hands.receive(worker) is not END:
            raise PipelineError(f"worker {worker} gave more batches than it was to give")


class Course(ABC, Generic[P]):
    """The epochs of a chain, and the places in them. A place is never changed.

    Args:
        layout: The chain.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @abstractmethod
    def fresh(self, epoch: int, world: World) -> P:
        """The beginning of an epoch."""

    @abstractmethod
    def epoch(self, place: P) -> int:
        """The epoch in which a place is."""

    @abstractmethod
    def is_over(self, place: P, world: World) -> bool:
        """Whether something of the epoch was delivered, and nothing is left of it for any rank."""

    @abstractmethod
    def batches(self, place: P, world: World) -> int | None:
        """How many batches this rank gets in the whole epoch, those before `place` among them; None if it can't be known.

        Raises:
            TypeError: If it has no length.
        """

    def dropped(self, place: P, world: World) -> int:
        """How many samples of the epoch no rank gets."""
        return 0

    @abstractmethod
    def deliver(self, place: P, world: World, hands: Hands, seeds: Sequence[int]) -> Iterator[tuple[P, Any]]:
        """The batches of this rank from `place` on, each with the place behind it; at the end, `END` with the last place."""

    def over(self, place: P) -> P:
        """The end of the epoch, from any place in it, where the end is not known from the beginning."""
        raise NotImplementedError

    @abstractmethod
    def content(self, place: P, world: World) -> dict[str, Any]:
        """A place as plain JSON types, without what belongs to the chain."""

    @abstractmethod
    def placed(self, contents: Sequence[Mapping[str, Any]]) -> P:
        """The place that states tell of, which belong to this chain.

        Raises:
            StateError: If they tell of none.
        """

    @abstractmethod
    def data(self) -> dict[str, Any] | None:
        """The fingerprint of the dataset, if it has one."""

    @abstractmethod
    def difference(self, data: dict[str, Any]) -> str:
        """What has changed since that fingerprint, in words."""

    @property
    def chain(self) -> list[str]:
        """What decides the order of the stream."""
        return signature(self.layout.links)

    # -- states -------------------------------------------------------------------------------------------------------

    def save(self, place: P, world: World) -> dict[str, Any]:
        """The content of a state."""
        return {"mode": self.layout.mode.value, **self._own(), **self.content(place, world)}

    def _own(self) -> dict[str, Any]:
        return {"chain": self.chain, "data": self.data()}

    def load(self, contents: Sequence[Mapping[str, Any]]) -> P:
        """The place that states tell of.

        Raises:
            StateError: If they don't tell of one.
            FingerprintMismatch: If they belong to another chain or dataset.
        """
        if not contents:
            raise StateError("no state was given")
        for content in contents:
            self._check(content)
        epochs = {whole(content, "epoch") for content in contents}
        if len(epochs) > 1 or max(epochs) >= 1 << 31:
            raise StateError(f"states of one moment tell of one epoch below 2**31, these tell of {sorted(epochs)}")
        return self.placed(contents)

    def _check(self, content: Mapping[str, Any]) -> None:
        mode, chain, data = content.get("mode"), content.get("chain"), content.get("data")
        if mode != self.layout.mode.value:
            raise FingerprintMismatch(
                f"the state was saved by a {mode} chain, this one is {self.layout.mode.value}: {chain!r:.500}; now {self.chain}"
            )
        require_same_chain(chain, self.chain)
        own = self.data()
        if data != own:
            if not isinstance(data, dict) or own is None:
                raise FingerprintMismatch(f"the state was saved with another kind of source: {data!r} instead of {own!r}")
            raise FingerprintMismatch(f"the dataset is not the one that the state was saved with: {self.difference(data)}")
