"""The doors to torch: splits by rank and worker, and the dataset that a DataLoader takes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from squirrel_torch.checks import require_epoch
from squirrel_torch.errors import PipelineError, ShardingError
from squirrel_torch.iterstream.base import ChainEnd, Composable
from squirrel_torch.iterstream.datapipe import dealt_out_again, iterated_by_stateful_loader
from squirrel_torch.iterstream.epochs import EpochCounter
from squirrel_torch.iterstream.resumable import ResumableRun
from squirrel_torch.iterstream.run import Run
from squirrel_torch.iterstream.splits import splits_of
from squirrel_torch.iterstream.stage import Split
from squirrel_torch.iterstream.stages import AutoSplit, RankSplit, WorkerSplit
from squirrel_torch.sharding import WHOLE, CarriedShard, Shard, carry_rank, rank_shard, worker_shard

__all__ = ["SplitByRank", "SplitByWorker", "TorchIterable", "place_of_split"]

T_co = TypeVar("T_co", covariant=True)

_log = logging.getLogger(__name__)


class SplitByRank(Composable[Any]):
    """A rank's share of the stream, for `compose`; the same as `Composable.split_by_rank`.

    Args:
        torch_dist_group: A process group of torch.distributed; None is the default group.
    """

    def __init__(self, torch_dist_group: Any = None) -> None:
        super().__init__(stage=RankSplit(torch_dist_group))


class SplitByWorker(Composable[Any]):
    """A DataLoader worker's share of the stream, for `compose`; the same as `Composable.split_by_worker`."""

    def __init__(self) -> None:
        super().__init__(stage=WorkerSplit())


class TorchIterable(IterableDataset[T_co], ChainEnd):
    """A chain as a dataset for `torch.utils.data.DataLoader`, by which each item reaches one process, once.

    It is a plain IterableDataset, not an IterDataPipe: a DataLoader opens a process group of its own in each `iter()` over an
    IterDataPipe, walks through its attributes, and shards it by rules of its own.

    If the chain has no split, the stream is split here, by rank and worker, at the earliest place where that is right:
    behind the source and the stages that only order and choose, and behind each stage that means something else on a part of
    the stream (take, skip, zip_index, sliding). What was done is logged once. Where it can't be known what is right, behind
    `to` and composables of your own that don't say `needs_whole`, it is an error. If the chain has splits, they are checked.

    Each pass is a new epoch, also with workers, persistent or not. (If torch is seeded with one number before each pass, a
    DataLoader with workers gives the same epoch each time, as with torch's own shuffling: call `set_epoch` there.)

    Args:
        enforce_rank_check: What to do about ranks if the stream is not split by rank. None: split it here if it has no split
            at all, refuse it if it is split by worker alone. True: refuse it. False: do nothing, each rank gets all.
        enforce_worker_check: The same for the workers of the DataLoader.

    Raises:
        ShardingError: When it is made, if one branch of a mix has a split that another lacks. When it is iterated, if a
            split is missing, with the method to add.
    """

    def __init__(self, enforce_rank_check: bool | None = None, enforce_worker_check: bool | None = None) -> None:
        super().__init__()
        for name, value in (("enforce_rank_check", enforce_rank_check), ("enforce_worker_check", enforce_worker_check)):
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"{name} must be None, True or False, got {value!r} ({type(value).__name__})")
        self.source: Composable[T_co] | None = None
        self.enforce_rank_check = enforce_rank_check
        self.enforce_worker_check = enforce_worker_check
        self._epochs = EpochCounter()
        self._carried: CarriedShard | None = None

    def source_(self, source: Composable[T_co]) -> TorchIterable[T_co]:
        """Set the chain and return the dataset itself."""
        if not isinstance(source, Composable):
            raise TypeError(f"a TorchIterable needs a Composable as its source, got {source!r} ({type(source).__name__})")
        splits_of(source)
        self.source = source
        return self

    @property
    def chain(self) -> Composable[T_co]:
        """The chain that it ends.

        Raises:
            PipelineError: If there is none.
        """
        if self.source is None:
            raise PipelineError("a TorchIterable without a chain: end a chain with to_torch_iterable()")
        return self.source

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is; those after it go on from there. Called between passes, on every rank."""
        require_epoch(epoch)
        rank = rank_shard(carried=self._carried)
        self._require_dealt_once(rank, sys._getframe(1))
        self._epochs.set(epoch, rank.index if rank.count > 1 else None)

    def __iter__(self) -> Iterator[T_co]:
        """Start a pass over this process's share; for a StatefulDataLoader one that can be saved and loaded."""
        rank, worker = rank_shard(carried=self._carried), worker_shard()
        self._require_dealt_once(rank, sys._getframe(1))
        links, claim = self._sharded(self.chain, rank, worker), partial(self._epochs.claim, rank.index)
        if iterated_by_stateful_loader(sys._getframe(1)):
            return ResumableRun(links, claim, partial(self._epochs.passed, rank.index), rank, worker)
        return Run(links, claim)

    def _sharded(self, source: Composable[T_co], rank: Shard, worker: Shard) -> list[Composable[Any]]:
        """The places of the chain, with a split among them if there was none."""
        done = splits_of(source)
        own = WHOLE
        for axis, shard, enforce in (
            (Split.RANK, rank, self.enforce_rank_check),
            (Split.WORKER, worker, self.enforce_worker_check),
        ):
            if shard.count == 1 or done & axis or enforce is False:
                continue
            if enforce or done:
                raise _missing(axis, shard, done)
            own = shard.within(own)
        links = source._links()
        if own.count > 1:
            place = place_of_split(links)
            self._log_once(links, place, rank, worker)
            links.insert(place, Composable(stage=AutoSplit(own)))
        return links

    def _require_dealt_once(self, rank: Shard, caller: FrameType) -> None:
        divided = self.enforce_rank_check is not False or splits_of(self.chain) & Split.RANK
        if rank.count > 1 and dealt_out_again(caller) and divided:
            raise ShardingError(
                f"the stream is divided among {rank.count} ranks, and Accelerate divides it again, so samples would be lost: "
                "give it a StreamLoader (a Trainer of transformers: squirrel_torch.integrations.huggingface.StreamTrainer); or "
                "leave split_by_rank() out of the chain and end it with to_torch_iterable(enforce_rank_check=False)"
            )

    def _log_once(self, links: Sequence[Composable[Any]], place: int, rank: Shard, worker: Shard) -> None:
        if worker.index == 0 and self._epochs.first(rank.index):
            repeated = [link._describe() for link in links[1:place] if not _moves_only(link)]
            _log.info(
                "the stream has no split: it is split by rank %d of %d and worker %d of %d behind %s%s",
                rank.index,
                rank.count,
                worker.index,
                worker.count,
                links[place - 1]._describe(),
                f", so every process runs {', '.join(repeated)} on all items; split explicitly to avoid that" * bool(repeated),
            )

    def collect(self) -> list[T_co]:
        """All items of this process's share, in a list."""
        return list(self)

    def join(self) -> None:
        """Pull all items of this process's share through the stream and drop them."""
        for _ in self:
            pass

    def __repr__(self) -> str:
        return f"{self.source!r} > TorchIterable"

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no process group to ask for its rank.
        return {**self.__dict__, "_carried": carry_rank() or self._carried}


def run_in_dataloader(composable: Composable[T_co]) -> Run[T_co]:
    """A pass over a composable that was handed to a DataLoader itself, without `to_torch_iterable()`.

    Raises:
        PipelineError: In a worker process, where a composable can't know which epoch it is.
    """
    if get_worker_info() is not None:
        raise PipelineError(
            "a DataLoader with workers was given a composable: hand it composable.to_torch_iterable() instead, which numbers "
            "the epochs and divides the stream among ranks and workers"
        )
    links = composable.to_torch_iterable()._sharded(composable, rank_shard(), worker_shard())
    return Run(links, composable._claim_epoch)


def _missing(axis: Split, shard: Shard, done: Split) -> ShardingError:
    if axis is Split.RANK:
        who, each, method = f"rank {shard.index} of {shard.count}", "rank", "split_by_rank()"
    else:
        who, each, method = f"worker {shard.index} of {shard.count}", "worker", "split_by_worker()"
    other = " It is split along the other axis, so nothing is split automatically." if done else ""
    return ShardingError(
        f"the stream is not split by {each}, and this is {who}: every {each} would get the same items.{other} "
        f"Add .{method} to the chain, behind the source and the shuffle"
    )


def _moves_only(link: Composable[Any]) -> bool:
    return link._stage is not None and link._stage.moves_only


def place_of_split(links: Sequence[Composable[Any]]) -> int:
    """The index in `links` at which a split belongs.

    Raises:
        ShardingError: If that can't be known.
    """
    place = 1
    while place < len(links) and _moves_only(links[place]):
        place += 1
    for index, link in enumerate(links[place:], start=place):
        needs_whole = _needs_whole(link)
        if needs_whole is None:
            raise ShardingError(
                f"the stream has no split, and can't be split automatically: {link._describe()} may look at one item at a "
                "time or at several. Add .split_by_rank() and .split_by_worker() in front of it or behind it, or, if it is a "
                "class of your own, write needs_whole = False or True into the class"
            )
        if needs_whole:
            place = index + 1
    return place


def _needs_whole(link: Composable[Any]) -> bool | None:
    return link.needs_whole if link._stage is None else link._stage.needs_whole
