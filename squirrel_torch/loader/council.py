"""Ranks that agree with each other while they go through an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist

from squirrel_torch.errors import ClosedRunError, ShardingError
from squirrel_torch.sharding import can_gather

__all__ = ["Council"]

_councils: Final[WeakKeyDictionary[Any, dict[tuple[int, ...], Council]]] = WeakKeyDictionary()
"""For the default group, the councils of some of its ranks."""


class Council:
    """The ranks that share a stream.

    They talk in a gloo group of their own, which is made once and stays: what the trainer has on its way is not disturbed. Only
    the main process of a rank talks, never its workers.

    A pass may be left while a question is open that other ranks never asked. So each question says of which pass it is: if a
    left one meets one of a later pass, its rank drops it, and the others ask again.

    Args:
        group: A gloo group.
    """

    def __init__(self, group: Any) -> None:
        # Torch keeps it, until it is destroyed with the others. One that is there at the end of the process aborts it.
        self._kept = ref(group)
        self._pass = 0
        self._open: tuple[Any, torch.Tensor] | None = None
        self._asked = (0, False)

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
            councils[key] = cls(dist.new_group(list(ranks), backend="gloo", use_local_synchronization=True))
        return councils[key]

    @property
    def _group(self) -> Any:
        group = self._kept()
        if group is None:
            raise ClosedRunError("the process group of the ranks that share this stream was destroyed while a pass went on")
        return group

    def begin(self) -> None:
        """Begin a pass; all ranks begin equally many."""
        self._pass += 1

    def ask(self, number: int, *, able: bool) -> None:
        """Begin to find the least and the largest number of all ranks; `able`: this one has something to fill up with."""
        if self._open is not None:
            self._open[0].wait()  # of a pass that was left
        self._asked = number, able
        ballot = torch.tensor([number, -number, able, self._pass, -self._pass], dtype=torch.int64)
        self._open = dist.all_reduce(ballot, dist.ReduceOp.MIN, group=self._group, async_op=True), ballot

    def outcome(self) -> tuple[int, int, bool]:
        """What was asked: the least and the largest number, and whether all are able.

        Raises:
            RuntimeError: As torch raises it, if another rank is gone or keeps silent for longer than its timeout.
        """
        while self._open is not None:
            (work, ballot), self._open = self._open, None
            work.wait()
            least, most, able, earliest, latest = ballot.tolist()
            if earliest == -latest:
                return least, -most, bool(able)
            self.ask(self._asked[0], able=self._asked[1])
        raise AssertionError("outcome() without ask()")

    def shared(self, value: Any) -> Any:
        """What the first rank has that has something; None is nothing. All ranks have to call it."""
        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return next((one for one in values if one is not None), None)
