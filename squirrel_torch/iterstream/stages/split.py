"""A rank's and a worker's share of the stream."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, TypeVar

from squirrel_torch.iterstream.stage import Following, Split, Stage, Step
from squirrel_torch.sharding import WHOLE, CarriedShard, Shard, carry_rank, rank_shard, worker_shard

__all__ = ["AutoSplit", "RankSplit", "SplitStage", "WorkerSplit"]

T = TypeVar("T")


@dataclass(frozen=True)
class SplitStage(Stage[T, T]):
    """Every count-th item, from the own index on. Order: kept. Holds: nothing. State: none.

    A chain of splits right behind a source that can seek reaches into it: items of other processes are never made.
    """

    moves_only: ClassVar[bool] = True
    remembers: ClassVar[Mapping[str, str]] = {"next": "count"}

    @abstractmethod
    def shard(self) -> Shard:
        """This process's share, read when the stream starts."""

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        return self.shard().of(items)

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        shard = self.shard()
        begin = (shard.index - memory.get("next", 0)) % shard.count
        memory["next"] = (shard.index + 1) % shard.count  # of the item behind each that is given
        yield from islice(steps, begin, None, shard.count)


@dataclass(frozen=True)
class RankSplit(SplitStage[T]):
    """The share of this process's rank in `group`, the default group if None."""

    group: Any = None
    splits: ClassVar[Split] = Split.RANK

    def shard(self) -> Shard:
        return rank_shard(self.group, self.__dict__.get("_carried"))

    def __deepcopy__(self, memo: dict[int, Any]) -> "RankSplit[T]":
        return RankSplit(self.group)

    def __getstate__(self) -> dict[str, Any]:
        # A process group can't leave its process, and a spawned worker has none to ask.
        carried: CarriedShard | None = carry_rank(self.group) or self.__dict__.get("_carried")
        group = self.group if self.group is None or isinstance(self.group, str) else repr(self.group)
        return {"group": group, "_carried": carried}


@dataclass(frozen=True)
class WorkerSplit(SplitStage[T]):
    """The share of this process's DataLoader worker; everything outside of a worker."""

    splits: ClassVar[Split] = Split.WORKER

    def shard(self) -> Shard:
        return worker_shard()


@dataclass(frozen=True)
class AutoSplit(SplitStage[T]):
    """A share that `TorchIterable` or a loader has worked out.

    Args:
        share: Which one.
        written: Whether it stands for splits that were written: somebody has said that the source gives everything to all.
    """

    share: Shard = WHOLE
    written: bool = False

    def shard(self) -> Shard:
        return self.share
