"""Hugging Face transformers: a Trainer that takes a StreamLoader where it takes a dataset.

Accelerate needs nothing of this: `Accelerator.prepare` takes a StreamLoader as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, compress, repeat
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from squirrel_torch.errors import MissingDependencyError, StateError
from squirrel_torch.loader import StreamLoader
from squirrel_torch.loader.padding import MASK, rows_of_mask

try:
    from accelerate.utils import gather_object, recursively_apply
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingDependencyError("transformers or accelerate", "huggingface") from error

__all__ = ["StreamLoaderState", "StreamTrainer"]


class StreamTrainer(Trainer):
    """A Trainer whose `train_dataset`, `eval_dataset` and test dataset may be StreamLoaders; other datasets are used as ever.

    To mix it into another Trainer: `class MyTrainer(StreamTrainer, Seq2SeqTrainer)`.

    Batches are dicts, and come as the loader makes them: the batch size, the collation and the workers are said to the loader,
    and the arguments that say them to a Trainer have no effect. Training begins with epoch 0 of the loader. Checkpoints hold
    its state, in `trainer_state.json`; `train(resume_from_checkpoint=...)` goes on with the very next batch, without making
    again what was trained on, on any number of processes that makes as many updates in an epoch.

    An evaluation counts each sample once: what `tail="pad"` fills up is kept from the model and the metrics.

    Args:
        *args: As of `transformers.Trainer`.
        **kwargs: As of `transformers.Trainer`.

    Raises:
        MissingDependencyError: When this module is imported and transformers or accelerate is not installed.
        ValueError: When training or an evaluation begins: if the loader would leave out samples that are to be evaluated, or
            give some ranks more batches than others; if the Trainer is to divide or resize batches.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._evaluates_stream = False
        super().__init__(*args, **kwargs)
        self.add_callback(StreamLoaderState())

    # -- training -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The passes of the loader that was given as `train_dataset`."""
        loader: Any = self.train_dataset
        if not isinstance(loader, StreamLoader):
            return super().get_train_dataloader()
        if self.args.auto_find_batch_size:
            raise ValueError("auto_find_batch_size can't change the batches of a StreamLoader: leave it out")
        self.accelerator.prepare(loader)
        _require_even_steps(loader)
        return Passes(loader)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StreamLoaderState):
                callback.update()
        super()._save_checkpoint(*args, **kwargs)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The loader that was given as `eval_dataset`."""
        given: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(given, str):
            given = self.eval_dataset[given]  # type: ignore[index]  # a dict, if there are names
        return self._for_evaluation(given) or super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The loader that was given to `predict`."""
        return self._for_evaluation(test_dataset) or super().get_test_dataloader(test_dataset)

    def _for_evaluation(self, loader: Any) -> StreamLoader[Any] | None:
        self._evaluates_stream = isinstance(loader, StreamLoader)
        if not isinstance(loader, StreamLoader):
            return None
        loader.set_epoch(0)  # each evaluation is of the same batches
        if loader.dropped:
            raise ValueError(
                f'{loader.dropped} samples would be left out of the evaluation: make the loader with tail="pad", and let '
                "batched() keep a last batch that is not full (drop_last_if_not_full=False)"
            )
        _require_even_steps(loader)
        self.accelerator.prepare(loader)
        self._pads = loader.tail == "pad"
        self.gather_function: Callable[[Any], Any] = self._gathered
        return loader

    def prediction_step(
        self, model: torch.nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As that of Trainer, on the samples that don't fill up."""
        if not self._evaluates_stream:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if not isinstance(inputs, Mapping):
            raise TypeError(f"a Trainer takes batches that are dicts, and the loader gave {type(inputs).__name__}")
        rows = _rows(inputs)
        self._mask = torch.ones(rows, dtype=torch.bool) if not self._pads else inputs[MASK].cpu()
        kept = int(self._mask.sum())
        self._kept = [int(count) for count in gather_object([kept])]
        if self._pads:
            inputs = {name: value for name, value in inputs.items() if name != MASK}
        if 0 < kept < rows:
            inputs = {name: _selected(value, self._mask) for name, value in inputs.items()}
        # A rank that has nothing goes along with what fills up: the others may need it, in a model that is divided.
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _gathered(self, values: Any) -> Any:
        """What the ranks have of a step, in place of `gather_for_metrics`, which counts by other rules."""
        kept, most = self._kept[self.accelerator.process_index], max(self._kept)

        def gathered(tensor: torch.Tensor) -> torch.Tensor:
            # Inputs come with all their rows, losses repeated as often as the arguments say.
            own = tensor[self._mask.to(tensor.device)] if len(tensor) == len(self._mask) else tensor[:kept]
            if len(own) < kept:
                raise ValueError(
                    f"a batch has {kept} samples, and per_device_eval_batch_size is {len(tensor)}: give it the batch size "
                    "of the loader, by which Trainer weighs the losses of batches"
                )
            filled = own.new_zeros((most, *own.shape[1:]))
            filled[:kept] = own
            every = self.accelerator.gather(filled)
            return torch.cat([every[rank * most : rank * most + count] for rank, count in enumerate(self._kept)])

        return recursively_apply(gathered, values)


class Passes(DataLoader[Any]):
    """The passes of a StreamLoader, in a loader that others can make again from its attributes.

    To go on with an epoch, a Trainer makes a loader that throws its first batches away. What was trained on stands here as so
    many times None, so that Trainer counts as it does without a stop, and nothing is made twice.

    It has no `set_epoch`: passes are counted by the StreamLoader, which knows in which epoch it was stopped.

    Args:
        loader: Whose passes.
    """

    def __init__(self, loader: StreamLoader[Any]) -> None:
        super().__init__(_PassesOf(loader), batch_size=None, collate_fn=_same)
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def go_on_behind(self, batches: int) -> None:
        """Let the next pass begin with that many times None."""
        passes: Any = self.dataset
        passes.behind = batches


class _PassesOf(IterableDataset[Any]):
    def __init__(self, loader: StreamLoader[Any]) -> None:
        self.loader = loader
        self.behind = 0

    def __iter__(self) -> Iterator[Any]:
        behind, self.behind = self.behind, 0
        return chain(repeat(None, behind), self.loader)


class StreamLoaderState(TrainerCallback, ExportableState):
    """Keeps the state of the training loader in the checkpoints of a StreamTrainer, which adds it."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None
        self._passes: Passes | None = None
        self._updates: int | None = None

    def state(self) -> dict[str, Any]:
        """What transformers writes into the checkpoint, as plain JSON types."""
        return {"args": {}, "attributes": {"saved": self.saved}}

    def update(self) -> None:
        """Take up how far the loader has come. Called on all ranks."""
        if self._passes is None:
            return
        loader = self._passes.loader
        states = [loader.state_dict()] if loader._has_one_state() else gather_object([loader.state_dict()])
        self.saved = {"updates": self._updates, "states": states}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Begin with epoch 0, or where the checkpoint was saved.

        Raises:
            StateError: If the checkpoint has no state of a loader.
            ValueError: If Trainer's count of epochs would not fit.
        """
        self._passes = train_dataloader if isinstance(train_dataloader, Passes) else None
        callbacks: Any = state.stateful_callbacks  # a dict, from its __post_init__ on
        kept = callbacks.setdefault(type(self).__name__, self.state())  # Trainer wants it to be there when it saves
        if self._passes is None:
            return
        self._updates = _updates_of_epoch(self._passes, args)
        if state.global_step == 0:
            self._passes.loader.set_epoch(0)
            return
        saved = kept["attributes"]["saved"]
        if saved is None:
            raise StateError(
                f"the checkpoint of step {state.global_step} has no state of the loader: it was saved by another Trainer, and "
                "can't be gone on with exactly. Load its weights into a new model instead"
            )
        self._go_on(self._passes, saved, args, state.global_step)

    def _go_on(self, passes: Passes, saved: dict[str, Any], args: TrainingArguments, step: int) -> None:
        if saved["updates"] != self._updates:
            raise ValueError(
                f"the checkpoint was saved with {saved['updates']} updates in an epoch, and now there are {self._updates}: "
                "Trainer counts epochs by updates. Choose the batch size of the loader and gradient_accumulation_steps so that "
                "ranks times batch size times gradient_accumulation_steps is what it was"
            )
        passes.loader.load_state_dict(saved["states"])
        if self._updates is not None and passes.loader.epoch != step // self._updates:
            raise ValueError(
                f"the loader was stopped in epoch {passes.loader.epoch}, and Trainer counts {step // self._updates} by its "
                f"{step} updates: an epoch was ended early, which can't be gone on with"
            )
        if not args.ignore_data_skip:
            of_epoch = step if self._updates is None else step % self._updates
            passes.go_on_behind(of_epoch * args.gradient_accumulation_steps)


def _updates_of_epoch(loader: DataLoader[Any], args: TrainingArguments) -> int | None:
    """As Trainer counts them; None if the loader has no length."""
    try:
        return max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
    except TypeError:
        return None


def _require_even_steps(loader: StreamLoader[Any]) -> None:
    try:
        own: int | None = len(loader)
    except TypeError:
        own = None
    steps = gather_object([own])
    if len(set(steps)) > 1:
        raise ValueError(
            f"the ranks would get {steps} batches, and those that have more would wait for the others: make the loader with "
            'tail="drop" to train, tail="pad" to evaluate'
        )


def _same(batch: Any) -> Any:
    return batch


def _rows(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.dim())


def _selected(value: Any, mask: torch.Tensor) -> Any:
    """The rows of an input for which the mask is True. A list has an entry for each sample, whatever is in that."""
    return list(compress(value, mask.tolist())) if isinstance(value, list) else rows_of_mask(value, mask)
