"""What others find at a loader who would make one of their own of it: Hugging Face Accelerate takes it as it is."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypeVar

from squirrel_torch.errors import PipelineError, StateError
from squirrel_torch.iterstream.torch_composables import TorchIterable

__all__ = ["Dealt", "TakenByAccelerate"]

T_co = TypeVar("T_co", covariant=True)


class Dealt(TorchIterable[T_co]):
    """The dataset of a StreamLoader, which deals it out itself: in another loader it would come in another order."""

    @classmethod
    def out_of(cls, dataset: TorchIterable[T_co]) -> Dealt[T_co]:
        """The same chain with the same checks."""
        dealt = cls(dataset.enforce_rank_check, dataset.enforce_worker_check)
        dealt.source_(dataset.chain)
        return dealt

    def __iter__(self) -> Iterator[T_co]:
        """Refuse it.

        Raises:
            PipelineError: Always.
        """
        raise PipelineError(
            "this is the dataset of a StreamLoader, and another loader was made of it, which would give other samples: use the "
            "StreamLoader itself. To go on where a job was stopped, load its state_dict() instead of skipping batches; for "
            "transformers, squirrel_torch.integrations.huggingface.StreamTrainer does that"
        )


class TakenByAccelerate(ABC):
    """A loader that `Accelerator.prepare` returns as it is, whose state `save_state` saves and `load_state` loads.

    Accelerate makes a loader of its own from the attributes of the one that it is given. It leaves those alone that it has
    made already, and knows them by an attribute. What its own would do, a StreamLoader does itself.
    """

    remainder = -1
    """How many samples of the last batch are no repetitions, of which Accelerate knows nothing here."""
    _is_prepared = False

    @property
    def _is_accelerate_prepared(self) -> bool:
        """Asked by `Accelerator.prepare`.

        Raises:
            ValueError: If the Accelerator is to divide batches by itself, or counts other ranks.
        """
        caller = sys._getframe(1)
        if caller.f_globals.get("__name__") == "accelerate.accelerator":
            _refuse_what_cannot_be(caller.f_locals.get("self"), self._ranks())
        return True

    @_is_accelerate_prepared.setter
    def _is_accelerate_prepared(self, value: bool) -> None:
        self._is_prepared = value  # set by `Accelerator.prepare` at its end

    @property
    def use_stateful_dataloader(self) -> bool:
        """Asked by `save_state` and `load_state`: whether `state_dict` is to be saved, in one file for all ranks.

        Raises:
            StateError: If each rank has a state of its own.
        """
        if not self._has_one_state():
            raise StateError(
                "Accelerate keeps one state of a loader for all ranks, and of a chain that is not planned each rank has its "
                "own: leave the loader out of prepare() and save the state_dict() of each rank; pipeline.explain() says what "
                "to change to make the chain a planned one"
            )
        return True

    @property
    def end_of_dataloader(self) -> bool:
        """Whether the batch that was delivered last is the last of the epoch: `accumulate` makes a step with it."""
        return self._is_at_end()

    @abstractmethod
    def _ranks(self) -> int | None:
        """Among how many ranks samples are dealt out; None if the chain says it."""

    @abstractmethod
    def _has_one_state(self) -> bool:
        """Whether the state is the same on all ranks."""

    @abstractmethod
    def _is_at_end(self) -> bool:
        """Whether nothing is left of the epoch."""

    def _announce(self, goes_on: bool) -> None:
        """Tell Accelerate that a pass begins or ends, if it has prepared this loader."""
        if not self._is_prepared:
            return
        from accelerate.state import GradientState

        state = GradientState()
        if any(known is self for known in state.dataloader_references):  # still, if the pass before was left without a word
            state._remove_dataloader(self)
        if goes_on:
            state._add_dataloader(self)


def _refuse_what_cannot_be(accelerator: Any, ranks: int | None) -> None:
    """Raise an error if an Accelerator is to do what a loader that was dealt out among `ranks` can't serve."""
    for option in ("dispatch_batches", "split_batches"):
        if getattr(accelerator, option, None):
            raise ValueError(
                f"a StreamLoader gives each rank batches of its own, which Accelerate can't divide again: leave {option}=True "
                "out of DataLoaderConfiguration, and give the loader the batch size of one rank"
            )
    if ranks is None:
        return
    if accelerator.num_processes != ranks:
        raise ValueError(
            f"the loader deals its samples out among {ranks} ranks, as torchrun or torch.distributed counts them, and "
            f"Accelerate counts {accelerator.num_processes}, so each model would see a part of the samples: without GPUs write "
            "Accelerator(cpu=True), for a Trainer TrainingArguments(use_cpu=True)"
        )
    parallelism: Any = getattr(accelerator, "parallelism_config", None)
    shared = [name for name in ("tp_size", "cp_size", "sp_size") if (getattr(parallelism, name, None) or 1) > 1]
    if shared:
        raise ValueError(
            f"some ranks are to get the same batches ({', '.join(shared)} is more than 1), and the loader gives each rank its "
            "own: say in the chain who gets different ones, with split_by_rank(group) and the process group of data parallelism"
        )
