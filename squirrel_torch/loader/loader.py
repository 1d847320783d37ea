"""A DataLoader that knows how far it has come."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from multiprocessing.context import BaseContext
from typing import Any, Final, TypeVar, Unpack, overload
from weakref import ref

import torch
from torch.utils.data import DataLoader

from squirrel_torch.checks import require_at_least, require_epoch, require_int, require_seconds
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.layout import Mode, layout_of, signature
from squirrel_torch.iterstream.torch_composables import TorchIterable
from squirrel_torch.loader.accelerate import Dealt, TakenByAccelerate
from squirrel_torch.loader.choosing import course_of, dataset_of, require_whole_sources
from squirrel_torch.loader.council import Council
from squirrel_torch.loader.course import Course, World
from squirrel_torch.loader.even import Even
from squirrel_torch.loader.inline import Inline
from squirrel_torch.loader.looking import Looked
from squirrel_torch.loader.options import LoaderOptions
from squirrel_torch.loader.passing import Batches
from squirrel_torch.loader.progress import Progress
from squirrel_torch.loader.provenance import Epochs, Traced, say_left_out
from squirrel_torch.loader.reports import KIND, Reports
from squirrel_torch.loader.sampler import EpochSampler
from squirrel_torch.loader.seen import SeenPass
from squirrel_torch.loader.waits import Waits
from squirrel_torch.loader.watch import Names, Watch
from squirrel_torch.loader.work import Serve
from squirrel_torch.loader.workers import Workers
from squirrel_torch.plan import Tail
from squirrel_torch.plan.state import seal, unseal
from squirrel_torch.sharding import WHOLE, can_gather, rank_shard, ranks_of

__all__ = ["StreamLoader"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")

_log = logging.getLogger(__name__)

_REMEMBERED: Final = 1024
"""Places behind earlier batches, for a trainer that takes batches and works on them later."""

_numbers: Final = count()
"""Of the loaders of this process, in recordings."""


class StreamLoader(Looked[T_co], Traced[T_co], TakenByAccelerate, DataLoader[T_co]):
    """A DataLoader over a chain: each sample of an epoch reaches one rank, once, even across stops and restarts.

    `state_dict()` says how far it has come: what was delivered, not what was made ahead. Load it into another loader over the
    same chain, on any number of ranks and workers and with any batch size, and that loader continues right there. If the order
    of the chain is arithmetic (`explain` says so), the state is a position, usually less than a kilobyte, the same on all
    ranks, and the batches of a rank are the same for every number of workers.

    The loader divides the samples among ranks and workers itself, so the chain needs no splits. Those that it has are ignored,
    except for the group of a `split_by_rank`.

    Each pass is the next epoch. A pass after `load_state_dict` is the rest of the epoch that was stopped.

    Args:
        pipeline: A chain, or what `to_torch_iterable()` made of one.
        batch_size: Samples of a batch, where the chain makes no batches itself.
        num_workers: Processes that make the batches; 0: this process makes them.
        collate_fn: Makes a batch of the list of its samples, with `batch_size`. By default torch's `default_collate`.
        tail: What happens to the samples at the end of an epoch that don't make a batch for each rank. "drop", the default: all
            ranks take the same number of steps with the same number of samples, the rest is left out, and `dropped` says how
            many. "pad": all ranks get full batches, filled up with samples that come again, and a mask. Batches that are dicts
            get an entry "mask", a bool tensor of shape `[batch]` that is False for what fills up; others come as
            `Padded(batch, mask)`. `unpadded` removes what fills up. "exact": the samples are delivered in smaller batches, and
            some ranks may get one sample less, or take one step less, than others.

            Where the chain is not planned, nobody knows beforehand how many samples there are for each rank. Then "exact" may
            give them very different numbers of steps. With "pad" and "drop" the ranks agree on the number of steps, a few
            batches ahead, by torch.distributed. "drop" keeps smaller batches there.
        drop_last: With `batch_size`: leave out a last batch that is not full, as `batched` does by default.
        streams: Into how many streams a chain that is not planned is dealt, over all ranks. It decides the order of its items,
            and there can be no more ranks times workers than streams with something to do. By default 12 or more; as many as
            there are workers on all ranks where each has to read the source from its beginning.
        prefetch_factor: Batches that each worker makes ahead, 2 by default.
        persistent_workers: Keep the workers from epoch to epoch.
        multiprocessing_context: How workers are started: "fork", "spawn", "forkserver" or a context.
        worker_init_fn: Called in each worker with its number, before it makes anything.
        timeout: Seconds to wait for a batch of a worker; 0 is no limit.
        pin_memory: Give tensors in memory that is pinned, if there is CUDA.
        device: Give tensors on this device. With CUDA the next batch is copied while the one before is worked on.
        report_after: Seconds for which a batch may be waited before the log says where it hangs: worker, stage, item, and the
            stacks of the threads that make it; again after twice as long each time. 0: never. Of several ranks one without a
            step for so long also says which ranks it seems to wait for, and at which step and stage these are; they leave word
            of that in the store of torch.distributed.
        observe: Whether the passes are looked at, for `report`: a thread in each process that runs the chain looks for a tenth
            of the time where it is. While it looks, threads give up Python's GIL sooner (`sys.setswitchinterval`).
        dataset: Only for trainers that make a loader once more of its attributes (Lightning does before it predicts): what is
            loaded is the pipeline.
        sampler: None; the chain chooses the samples.
        batch_sampler: None, as well.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If an argument is out of range, or arguments contradict each other.

    Example:
        >>> from squirrel_torch import IterableSource
        >>> loader = StreamLoader(IterableSource(range(10)).shuffle(10).batched(2))
        >>> first = [batch for _, batch in zip(range(2), loader)]
        >>> again = StreamLoader(IterableSource(range(10)).shuffle(10).batched(3))
        >>> again.load_state_dict(loader.state_dict())
        >>> sorted(sum(first, []) + sum(again, []))
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    @overload
    def __init__(
        self,
        pipeline: Composable[T_co] | TorchIterable[T_co],
        batch_size: None = None,
        num_workers: int = 0,
        collate_fn: None = None,
        **options: Unpack[LoaderOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: StreamLoader[U],
        pipeline: Composable[T] | TorchIterable[T],
        batch_size: int,
        num_workers: int = 0,
        *,
        collate_fn: Callable[[list[T]], U],
        **options: Unpack[LoaderOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: StreamLoader[Any],
        pipeline: Composable[Any] | TorchIterable[Any],
        batch_size: int | None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None: ...

    def __init__(
        self,
        pipeline: Composable[Any] | TorchIterable[Any],
        batch_size: int | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        tail: Tail | None = None,
        drop_last: bool = False,
        streams: int | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        multiprocessing_context: str | BaseContext | None = None,
        worker_init_fn: Callable[[int], None] | None = None,
        timeout: float = 0,
        pin_memory: bool = False,
        device: torch.device | str | None = None,
        report_after: float = 120,
        observe: bool = True,
        dataset: object = None,
        sampler: None = None,
        batch_sampler: None = None,
    ) -> None:
        if streams is not None:
            require_at_least("streams", streams, 1)
        for name, value in (("sampler", sampler), ("batch_sampler", batch_sampler)):
            if value is not None:
                raise ValueError(f"{name} must be None, as the chain chooses the samples; got {value!r}")
        if dataset is not None:
            collate_fn = None  # torch's own, from an attribute; that of the chain is in the chain
        require_seconds("report_after", report_after)
        torch_iterable = dataset_of(pipeline, batch_size, collate_fn, drop_last)
        super().__init__(
            Dealt.out_of(torch_iterable),
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout=timeout,
            worker_init_fn=worker_init_fn,
            multiprocessing_context=multiprocessing_context,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
        )
        # What a trainer that wants to make the loader once more would look for.
        self.pipeline = torch_iterable
        self.tail = tail
        self.streams = streams
        self.report_after = report_after
        self.observe = observe
        self.device: torch.device | None = None if device is None else torch.device(device)
        # Through __dict__: a DataLoader keeps its sampler from being changed.
        self.__dict__["sampler"] = EpochSampler(self.set_epoch)
        self._layout = layout_of(torch_iterable.chain)
        self._course: Course[Any] = course_of(self._layout, tail, streams)
        self._serve = Serve(self._layout, observes=observe)
        self._workers: Workers | None = None
        self._pass: ref[Batches[T_co]] | None = None  # whoever iterates keeps it alive, or lets it go
        # Where the next pass begins, if not at the beginning of an epoch; how far the last one has come; whether to its end.
        self._resumed: Any = None
        self._place: Any = None
        self._earlier: deque[tuple[Any, World]] = deque(maxlen=_REMEMBERED)
        self._epochs = Epochs()
        self._has_ended = False
        self._place_world = World(WHOLE, 1)
        self._next_epoch = 0
        self._lane = f"loader {next(_numbers)}"
        self._names = Names(signature(self._layout.links))
        self._taken_by: Callable[[StreamLoader[T_co]], Any] | None = None
        self._waits: Waits | None = None
        self._seen = SeenPass(self._layout, Waits.none(), num_workers, 0)

    # -- passes -------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[T_co]:  # type: ignore[override]  # no iterator of torch's own
        """Start the next epoch, or go on with the one that was stopped. An iterator that is still there is closed."""
        self._leave()
        world = self._world()
        require_whole_sources(self._layout, world)
        self._epochs.note(self._place, self._place_world)
        self._place, self._place_world, self._has_ended = self._begin(world), world, False
        batches = Batches(self, self._place, world)
        self._pass = ref(batches)
        self._announce(True)
        return batches

    def _leave(self) -> None:
        """End the pass that goes on."""
        batches = self._open_pass()
        if batches is not None:
            batches.close()

    def _open_pass(self) -> Batches[T_co] | None:
        """The pass that goes on, if one does."""
        batches = None if self._pass is None else self._pass()
        return batches if batches is not None and batches.is_open else None

    @property
    def _group(self) -> Any:
        """Whose ranks share the stream: what a `split_by_rank` in the chain was given."""
        return None if self._layout.split is None else self._layout.split.group

    def _world(self) -> World:
        dataset: TorchIterable[T_co] = self.dataset  # type: ignore[assignment]  # given in __init__
        whole = dataset.enforce_rank_check is False and self._layout.split is None
        return World(WHOLE if whole else rank_shard(self._group), max(1, self.num_workers))

    def _begin(self, world: World) -> Any:
        """The place at which the next pass begins."""
        if self._resumed is None:
            return self._course.fresh(self._next_epoch, world)
        if self._course.is_over(self._resumed, world):
            return self._course.fresh(self._course.epoch(self._resumed) + 1, world)
        return self._resumed

    def _agrees(self, world: World) -> bool:
        """Whether the ranks agree on their steps while they go."""
        return self.needs_all_states and world.rank.count > 1 and self.tail != "exact"

    def _evened(self, delivered: Iterator[tuple[Any, Any]], place: Any, world: World) -> Iterator[tuple[Any, Any]]:
        """The batches of this rank, as many as those of the others if that has to be agreed on with them."""
        if not self._agrees(world):
            return delivered
        if self.tail is None and not can_gather():
            _log.warning(
                "the ranks may make different numbers of steps: this chain is not planned, so they have to agree, and "
                "torch.distributed is not initialized"
            )
            return delivered
        council = Council.of(ranks_of(self._group))
        return Even(delivered, council, pads=self.tail == "pad", over=self._course.over, lane=self._lane).batches(place)

    def _watched(self, batches: object, progress: Progress, world: World) -> Watch | None:
        if world.rank.count == 1:
            return None
        ranks = ranks_of(self._group)
        name = f"{ranks[0]}/{self._names.of_next(progress.epoch)}"
        return Watch.over(batches, progress, name, ranks, self.report_after)

    def _delivered(self, place: Any) -> None:
        self._earlier.append((self._place, self._place_world))
        self._place, self._resumed = place, None
        self._next_epoch = self._course.epoch(place) + 1

    def _finished(self, place: Any, dropped: int) -> None:
        # Not the next epoch yet: other ranks may have a batch left of this one.
        self._place, self._resumed, self._has_ended = place, None, True
        self._epochs.note(place, self._place_world)
        epoch = self._course.epoch(place)
        self._next_epoch = epoch + 1
        if dropped:
            _log.info("%d samples of epoch %d were left out: they make no batch for each rank (tail='drop')", dropped, epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is; those after it go on from there. Called between passes, on every rank.

        An epoch that was stopped and loaded is gone on with if it is that one. A pass that goes on is not changed.
        """
        require_epoch(epoch)
        epoch = int(epoch)  # a state and a recording take no numbers of numpy
        if self._resumed is not None and self._course.epoch(self._resumed) != epoch:
            self._drop_resumed(f"set_epoch({epoch}) leaves that epoch")
        if self._open_pass() is None and self._place is not None and self._course.epoch(self._place) != epoch:
            self._forget()
        self._next_epoch = epoch

    def begin_anew(self, epoch: int) -> None:
        """Let the next pass be an epoch from its beginning on, whatever was stopped or loaded."""
        self._leave()
        self._forget()
        self._drop_resumed(f"epoch {epoch} begins anew")
        self.set_epoch(epoch)

    def _drop_resumed(self, why: str) -> None:
        say_left_out(self._resumed, why)
        self._resumed = None

    def _forget(self) -> None:
        self._epochs.note(self._place, self._place_world)
        self._place = None
        self._earlier.clear()

    @property
    def epoch(self) -> int:
        """The epoch of the pass that goes on, or of the next one."""
        return self._course.epoch(self._now()[0])

    @property
    def dropped(self) -> int:
        """How many samples of the epoch are left out at its end, as `tail` and `drop_last` have it."""
        return self._course.dropped(*self._now())

    def _now(self) -> tuple[Any, World]:
        """The place to which the last pass has come, or where the next one begins if it came to its end; who takes part."""
        if self._place is not None and not self._has_ended:
            return self._place, self._place_world
        world = self._world()
        return self._begin(world), world

    def __len__(self) -> int:
        """How many batches this rank gets in the epoch: all of it, also where a pass begins in the middle.

        Raises:
            TypeError: If it can't be known.
        """
        batches = self._course.batches(*self._now())
        if batches is None:
            raise TypeError("the stream does not end: it has no length")
        return batches

    def batches_of_epoch(self, epoch: int) -> int | None:
        """How many batches this rank gets of an epoch, or has got and gets if it is the one that goes on; None if not known."""
        try:
            return self._course.batches(*self._place_of(epoch))
        except TypeError:
            return None

    def _place_of(self, epoch: int | None) -> tuple[Any, World]:
        place, world = self._now()
        if epoch is None or self._course.epoch(place) == epoch:
            return place, world
        return self._epochs[epoch] or (self._course.fresh(epoch, world), world)

    def _next(self) -> tuple[Any, World, Any]:
        place, world = self._now()
        return place, world, self._begin(world) if self._open_pass() is None else place

    def _go_on_from(self, place: Any) -> None:
        batches = self._open_pass()
        if batches is None or self._resumed is not None or place.step == 0:
            self._resumed = place  # nothing of that pass has been given yet
        if batches is None:
            self._forget()
            return
        earlier = ((replace(one, gaps=place.gaps) if one.epoch == place.epoch else one, world) for one, world in self._earlier)
        self._place, self._earlier = place, deque(earlier, maxlen=_REMEMBERED)
        batches.go_on_from(place)

    def _chain(self) -> Composable[T_co]:
        return self.pipeline.chain

    def _is_at_end(self) -> bool:
        return self._place is not None and self._course.is_over(self._place, self._place_world)

    # -- states -------------------------------------------------------------------------------------------------------

    @property
    def needs_all_states(self) -> bool:
        """Whether to go on takes the states of all ranks: the chain is not planned, and none of them knows the others'."""
        return self._layout.mode is not Mode.PLANNED

    def taken_by(self, tell: Callable[[StreamLoader[T_co]], Any]) -> None:
        """Name who takes the batches, if it takes them ahead: it is asked for the state then, and knows what it holds.

        Args:
            tell: Gives what `state_dict()` without arguments returns; it may call `state_dict(held=...)`.
        """
        self._taken_by = tell

    def state_dict(self, *, held: int | None = None) -> Any:
        """How far the stream was delivered, as plain JSON types: a fresh copy.

        The state of a planned chain is the same on all ranks, and one is enough. Of another chain each rank has its own.

        Args:
            held: How many of the last batches were not worked on yet, as a trainer has it that takes them ahead: the state
                is that of the moment before them. By default 0, or what `taken_by` has named decides.

        Raises:
            ValueError: If not so many were delivered, or more than 1,024 are asked for.
        """
        if held is None and self._taken_by is not None:
            return self._taken_by(self)
        held = 0 if held is None else held
        require_int("held", held)
        if not 0 <= held <= len(self._earlier):
            raise ValueError(f"held must be from 0 to {len(self._earlier)}, the batches whose places are known, got {held}")
        if held:
            return seal(self._course.save(*self._earlier[-held]))
        if self._place is not None:
            return seal(self._course.save(self._place, self._place_world))
        world = self._world()
        return seal(self._course.save(self._begin(world), world))

    def state_of_epoch(self, epoch: int) -> dict[str, Any]:
        """The state at the beginning of an epoch, for a trainer that leaves the one before at a place of its own."""
        world = self._world()
        return seal(self._course.save(self._course.fresh(epoch, world), world))

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on where a loader over the same chain has stopped: the next pass is the rest of that epoch.

        Args:
            state: What `state_dict` gave, on any rank; the states of all ranks where the chain is not planned.

        Raises:
            StateError: If it is damaged, or states are missing. The loader is as it was.
            FingerprintMismatch: If it was saved with another dataset or another chain; it says what differs.
        """
        states = [state] if isinstance(state, Mapping) or not isinstance(state, Sequence) else list(state)
        resumed = self._course.load([unseal(one) for one in states])
        self._leave()
        self._forget()
        self._epochs.forget_from(self._course.epoch(resumed))
        self._epochs.note(resumed, self._world())
        self._resumed = resumed
        say_left_out(resumed, "the state has it, and they are")

    def _ranks(self) -> int | None:
        dataset: TorchIterable[T_co] = self.dataset  # type: ignore[assignment]  # given in __init__
        split = self._layout.split
        decided = dataset.enforce_rank_check is False if split is None else split.group is not None
        return None if decided else self._world().rank.count

    def _has_one_state(self) -> bool:
        return not self.needs_all_states or self._world().rank.count == 1

    # -- workers ------------------------------------------------------------------------------------------------------

    def _hands(self) -> Any:
        """Who makes the batches of a new pass."""
        if self.num_workers == 0:
            return Inline(self._serve, self._lane)
        if self._workers is not None:
            return self._workers
        context = self.multiprocessing_context
        workers = Workers(
            self._serve,
            self.num_workers,
            start_method=None if context is None else context.get_start_method(),
            prefetch=self.prefetch_factor or 2,
            worker_init_fn=self.worker_init_fn,
            timeout=self.timeout,
            dataset=self.dataset,
            pinned=self.pin_memory,
            lane=self._lane,
        )
        if self.persistent_workers:
            self._workers = workers
        return workers

    def _reports(self, hands: Any) -> Reports | None:
        """Tells what monitors see in the workers in a new pass; None where there is nothing to put together."""
        if not (self._serve.monitors and isinstance(hands, Workers)):
            return None
        reports = Reports(self._serve.monitors, len(hands))
        hands.handlers[KIND] = reports.take
        return reports

    def close(self) -> None:
        """End the pass that goes on, and worker processes that were kept. The next pass goes on from here, with new ones."""
        place = self._place
        self._leave()
        if place is not None and not self._has_ended:
            self._resumed = place
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _seeds(self, epoch: int, world: World) -> list[int]:
        """What the global random generators of the workers begin with, which users' code may use."""
        names = [f"{torch.initial_seed()} {epoch} {world.rank.index} {worker}" for worker in range(world.workers)]
        return [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little") for name in names]
