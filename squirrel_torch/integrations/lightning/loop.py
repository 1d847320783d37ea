"""How far Lightning's training loop has come, and what it has to be told.

Lightning has no public words for that. What is used of it is all here, and was tried with 2.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, Final

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import Sampler, SequentialSampler

from squirrel_torch.loader import StreamLoader
from squirrel_torch.loader.sampler import EpochSampler

__all__ = ["TrainingLoop", "sampler_for"]

_COUNTS: Final = ("ready", "started", "processed", "completed")


class _OneOrder(EpochSampler, SequentialSampler):
    """A loader that has a sequential sampler is left as it is when Lightning overfits."""

    data_source: Sized = ()


def sampler_for(trainer: Any, set_epoch: Callable[[int], None]) -> Sampler[Any]:
    """Through which a Trainer calls `set_epoch` when an epoch begins."""
    return (_OneOrder if trainer is not None and trainer.overfit_batches > 0 else EpochSampler)(set_epoch)


class TrainingLoop:
    """The training loop of a Trainer.

    Args:
        trainer: A `Trainer`. It may have no loop that goes on; then nothing was taken.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._loop: Any = trainer.fit_loop

    @property
    def goes_on(self) -> bool:
        """Whether it takes batches."""
        return self._loop._data_fetcher is not None

    @property
    def loaders(self) -> list[StreamLoader[Any]]:
        """Those of the training that are streams."""
        combined = self._loop._combined_loader
        flat = [] if combined is None else combined.flattened
        return [loader for loader in flat if isinstance(loader, StreamLoader)]

    @property
    def logged_step(self) -> int:
        """The step under which the Trainer logs what belongs to this batch."""
        return int(self._loop.epoch_loop._batches_that_stepped)

    @property
    def held(self) -> int:
        """How many batches it has taken and not trained on: fetched ahead, or being trained on when an error came."""
        if not self.goes_on:
            return 0
        fetcher = self._loop._data_fetcher
        # Both are counted from the beginning of the epoch, also after a resume; before the loop runs only the other is right.
        taken = fetcher.fetched - self._loop.epoch_loop.batch_progress.current.processed
        return int(max(taken, len(getattr(fetcher, "batches", ()))))

    @property
    def to_redo(self) -> int:
        """How many batches it has trained on whose gradients were not applied yet."""
        if not self.goes_on or self.leaves_epoch:
            return 0
        model = self._trainer.lightning_module
        if model is not None and not model.automatic_optimization:
            return 0  # when a step is made is known to the model alone
        return int(self._loop.epoch_loop.batch_progress.current.processed % self._trainer.accumulate_grad_batches)

    @property
    def leaves_epoch(self) -> bool:
        """Whether it has come to the end of what it calls an epoch, which may be before that of the stream."""
        if not self.goes_on:
            return False
        current = self._loop.epoch_loop.batch_progress.current
        if current.processed == 0 or current.processed < current.ready:
            return False
        return bool(self._loop.epoch_loop._num_ready_batches_reached() or (self.held == 0 and self._nothing_is_left))

    @property
    def _nothing_is_left(self) -> bool:
        """Whether the streams are at their end, also where more batches were expected of one that has no length."""
        combined = self._loop._combined_loader
        epoch = self.of_streams(self._loop.epoch_progress.current.started - 1)
        ended = [isinstance(one, StreamLoader) and (one.end_of_dataloader or one.epoch > epoch) for one in combined.flattened]
        return any(ended) if combined._mode == "min_size" else all(ended)

    def of_streams(self, epoch: int) -> int:
        """Which epoch of the streams one of the Trainer begins with: always the first if it overfits."""
        return 0 if self._trainer.overfit_batches > 0 else epoch

    @property
    def next_epoch(self) -> int:
        """Which epoch of the streams comes behind the one that was begun last."""
        return self.of_streams(self._loop.epoch_progress.current.started)

    def mark_ended(self, loaders: Sequence[StreamLoader[Any]], epoch: int) -> None:
        """Say which streams have ended once, and are further than `epoch`: an epoch ends when each of them has.

        Lightning notes that while it takes batches, and a run that is resumed in the middle has not seen it.
        """
        combined = self._loop._combined_loader
        ended = getattr(None if combined is None else combined._iterator, "_consumed", None)
        if not ended:
            return
        for place, loader in enumerate(combined.flattened):
            if any(loader is own for own in loaders) and loader.epoch > epoch:
                ended[place] = True

    def go_back(self, batches: int) -> None:
        """Count some batches less, those of the epoch and all."""
        _count(self._loop.epoch_loop.batch_progress, -batches, *_COUNTS)

    def end_epoch(self, loaders: Sequence[StreamLoader[Any]]) -> None:
        """Let a loop that was restored at its last batch know that it was the last.

        It sees that by itself where it knows the number of batches. Where it does not, it would number the batches of the
        next epoch from there on. Then it gets the counts that a checkpoint at the end of an epoch has.
        """
        if all(sized_len(loader) is not None for loader in loaders):
            return
        epochs, batches = self._loop.epoch_progress, self._loop.epoch_loop.batch_progress
        if epochs.current.processed < epochs.current.started:
            _count(batches, batches.current.processed - batches.current.completed, "completed")
            _count(epochs, 1, "processed")
            # The loop's own setter keeps it on where the training is limited by steps.
            _Loop.restarting.fset(self._loop, False)  # type: ignore[attr-defined]  # a property

    def renew_lengths(self, loaders: Sequence[StreamLoader[Any]], epoch: int) -> None:
        """Say how many batches an epoch has: the rest of a resumed one may have more or less than those behind it.

        Lightning asks once, when it gets the loaders.
        """
        combined, trainer = self._loop._combined_loader, self._trainer
        if combined is None or not trainer.training or combined.limits is None:
            return
        limits = list(combined.limits)
        for place, loader in enumerate(combined.flattened):
            if any(loader is own for own in loaders):
                length = loader.batches_of_epoch(epoch)
                count = float("inf") if length is None else length
                limits[place] = _parse_num_batches(RunningStage.TRAINING, count, trainer.limit_train_batches)
            elif (length := sized_len(loader)) is not None:
                limits[place] = _parse_num_batches(RunningStage.TRAINING, length, trainer.limit_train_batches)
        if limits == combined.limits:
            return
        combined.limits = limits
        self._loop.max_batches = min(limits) if combined._mode == "min_size" else max(limits)
        if isinstance(trainer.val_check_interval, float) and self._loop.max_batches != float("inf"):
            trainer.val_check_batch = max(1, int(self._loop.max_batches * trainer.val_check_interval))


def _count(progress: Any, more: int, *names: str) -> None:
    """Change the counts of one of Lightning's loops, those of this run and the total ones."""
    for counts in (progress.current, progress.total):
        for name in names:
            setattr(counts, name, max(getattr(counts, name) + more, 0))
