"""Ranks that agree with each other while they go through an epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist

from squirrel_torch.errors import ClosedRunError, PipelineError, ShardingError
from squirrel_torch.sharding import can_gather

__all__ = ["Council", "Question"]

_councils: Final[WeakKeyDictionary[Any, dict[tuple[int, ...], Council]]] = WeakKeyDictionary()
"""For the default group, the councils of some of its ranks."""


class Question(NamedTuple):
    """What the ranks were asked; the answer is on its way.

    Args:
        work: Torch's handle.
        ballot: Becomes the answer.
    """

    work: Any
    ballot: torch.Tensor


class Council:
    """The ranks that share a stream.

    They talk in a gloo group of their own, which is made once and stays: what the trainer has on its way is not disturbed. Only
    the main process of a rank talks, never its workers.

    All passes of these ranks share it, also several that go on at once. So all ranks have to ask the same questions in the same
    order: when one is asked must depend on the steps alone, not on how far a rank has worked ahead.

    Args:
        group: A gloo group.
    """

    def __init__(self, group: Any) -> None:
        # Torch keeps it, until it is destroyed with the others. One that is there at the end of the process aborts it.
        self._kept = ref(group)
        self._passes = 0
        self._open: deque[Question] = deque()  # of passes that were left as well

    @classmethod
    def of(cls, ranks: Sequence[int]) -> Council:
        """That of these ranks, by their numbers among all processes; all of them have to call it.

        Raises:
            ShardingError: If torch.distributed is not initialized.
        """
        if not can_gather():
            raise ShardingError(
                "the ranks have to agree on how many steps they make, as the chain is not planned, and can't: "
                'torch.distributed is not initialized. Call init_process_group first, or say tail="exact"'
            )
        councils, key = _councils.setdefault(dist.group.WORLD, {}), tuple(ranks)
        if key not in councils:
            # Only the ranks that take part have to come here; the others need not know of it.
            councils[key] = cls(dist.new_group(list(ranks), _timeout(), backend="gloo", use_local_synchronization=True))
        return councils[key]

    @property
    def _group(self) -> Any:
        group = self._kept()
        if group is None:
            raise ClosedRunError("the process group of the ranks that share this stream was destroyed while a pass went on")
        return group

    def begin(self) -> int:
        """Begin a pass; all ranks begin equally many. Its number."""
        self._passes += 1
        return self._passes

    def ask(self, of_pass: int, step: int, number: int, *, able: bool) -> Question:
        """Begin to find the least and the largest number of all ranks; `able`: this one has something to fill up with."""
        ballot = torch.tensor([number, -number, able, of_pass, -of_pass, step, -step], dtype=torch.int64)
        question = Question(dist.all_reduce(ballot, dist.ReduceOp.MIN, group=self._group, async_op=True), ballot)
        self._open.append(question)
        return question

    def outcome(self, question: Question) -> tuple[int, int, bool]:
        """What was asked: the least and the largest number, and whether all are able.

        Raises:
            PipelineError: If the ranks are in different passes, or at different steps.
            RuntimeError: As torch raises it, if another rank is gone or keeps silent for longer than its timeout.
        """
        question.work.wait()
        while self._open and self._open[0].work.is_completed():
            self._open.popleft()
        least, most, able, earliest, latest, first, last = question.ballot.tolist()
        if earliest != -latest or first != -last:
            self._passes = max(self._passes, -latest)  # those that come may agree again
            raise PipelineError(
                f"the ranks that share this stream are not in the same pass: passes {earliest} to {-latest}, steps {first} to "
                f"{-last}; all have to take all batches, or to leave a pass behind the same step, also after an error"
            )
        return least, -most, bool(able)

    def shared(self, value: Any) -> Any:
        """What the first rank has that has something; None is nothing. All ranks have to call it."""
        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return next((one for one in values if one is not None), None)


def _timeout() -> timedelta | None:
    """That of the job. Torch would take its own of half an hour for a new group, and does not tell otherwise."""
    group: Any = dist.group.WORLD
    try:
        return min(group._get_backend(device).options._timeout for device in group._device_types)  # type: ignore[no-any-return]
    except (AttributeError, RuntimeError, ValueError):
        return None
