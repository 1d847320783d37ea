"""Who am I among the ranks and the DataLoader workers, read where and when a stream starts."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch.distributed as dist
from torch.utils.data import get_worker_info

from squirrel_torch.checks import require_at_least, require_int
from squirrel_torch.errors import ShardingError

__all__ = ["WHOLE", "CarriedShard", "Shard", "can_gather", "carry_rank", "gathered", "rank_shard", "ranks_of", "worker_shard"]

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Share `index` of `count` equal shares: every count-th item, from item `index` on.

    Example:
        >>> list(Shard(1, 3).of(range(10)))
        [1, 4, 7]
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        require_at_least("count", self.count, 1)
        require_int("index", self.index)
        if not 0 <= self.index < self.count:
            raise ValueError(f"index must be from 0 to count - 1 = {self.count - 1}, got {self.index}")

    def of(self, items: Iterable[T]) -> Iterator[T]:
        """This shard's items, in order."""
        return iter(items) if self.count == 1 else islice(items, self.index, None, self.count)

    def within(self, outer: "Shard") -> "Shard":
        """The shard that is left when `outer` is taken first and this one of what it left."""
        return Shard(outer.index + outer.count * self.index, outer.count * self.count)


@dataclass(frozen=True)
class CarriedShard:
    """A rank as its own process saw it, on the way to that process's DataLoader workers.

    A spawned worker has no process group to ask. It may trust a shard that comes from its own parent, and no other.
    """

    shard: Shard
    pid: int

    def from_parent(self) -> Shard | None:
        """The shard, if the process that made it is the parent of this one."""
        parent = multiprocessing.parent_process()
        return self.shard if parent is not None and parent.pid == self.pid else None


WHOLE = Shard()
"""The only share of one: everything."""


def rank_shard(group: Any = None, carried: CarriedShard | None = None) -> Shard:
    """This process's rank and the world size.

    Asked in this order: the process group, what the parent process carried here, the environment (RANK and WORLD_SIZE,
    as torchrun sets them). Where none of them is there, this is the only process: rank 0 of 1.

    Args:
        group: A process group of torch.distributed, or a device mesh, of which only the processes along its dimensions share
            the stream; None is the default group.
        carried: The rank that was read where the pipeline was pickled.

    Raises:
        ShardingError: If the environment is half set or not made of integers, if this process is not a member of
            `group`, or if a group is given and there is nothing to ask.
    """
    if can_gather():
        if _is_mesh(group):
            return _place_in(group)
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        if rank < 0:
            raise ShardingError(f"rank {dist.get_rank()} is not a member of the process group {group!r} it should be split by")
        return Shard(rank, size)
    if carried is not None and (shard := carried.from_parent()) is not None:
        return shard
    if group is not None:
        raise ShardingError(
            f"the rank in the process group {group!r} can't be read: torch.distributed is not initialized in process "
            f"{os.getpid()}; start the stream after init_process_group"
        )
    return _rank_of_environment()


def _is_mesh(group: Any) -> bool:
    # Not by its class: to import it takes longer than to import this package.
    return hasattr(group, "get_coordinate")


def _place_in(mesh: Any) -> Shard:
    """The place of this process among those of a mesh, which is read row by row."""
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ShardingError(f"rank {dist.get_rank()} is not a member of the device mesh {mesh!r} it should be split by")
    index = 0
    for at, size in zip(coordinate, mesh.shape, strict=True):
        index = index * size + at
    return Shard(index, mesh.size())


def _rank_of_environment() -> Shard:
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and size is None:
        return Shard()
    try:
        return Shard(int(rank or ""), int(size or ""))
    except ValueError:
        raise ShardingError(
            f"the rank can't be read: RANK={rank!r} and WORLD_SIZE={size!r} must both be set, with 0 <= RANK < WORLD_SIZE "
            "(torchrun does), or both be unset"
        ) from None


def carry_rank(group: Any = None) -> CarriedShard | None:
    """What this process's workers have to be told of its rank, None if it has no process group itself."""
    if not can_gather():
        return None
    return CarriedShard(rank_shard(group), os.getpid())


def ranks_of(group: Any = None) -> list[int]:
    """The processes that share a stream which is split by a group or a device mesh: their numbers among all processes."""
    if _is_mesh(group):
        return [int(rank) for rank in group.mesh.flatten().tolist()]
    if not can_gather():
        return [0]
    # Torch before 2.7 knows no None here.
    return [int(rank) for rank in dist.get_process_group_ranks(dist.group.WORLD if group is None else group)]


def worker_shard() -> Shard:
    """This process's place among the workers of its DataLoader; 0 of 1 outside of one."""
    info = get_worker_info()
    return Shard() if info is None else Shard(info.id, info.num_workers)


def can_gather() -> bool:
    """Whether the ranks can tell one another something: torch.distributed is initialized."""
    return bool(dist.is_available() and dist.is_initialized())


def gathered(value: T) -> list[T]:
    """The `value` of each rank, in their order. All ranks have to call it; one process alone gets its own.

    It travels by pickle, between processes of one job.
    """
    if not can_gather() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
