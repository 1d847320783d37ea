"""Which epoch is this? One answer for all worker processes of a DataLoader."""

import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch.utils.data import get_worker_info

from squirrel_torch.errors import ShardingError

__all__ = ["EpochCounter"]

_CALLS, _NEXT, _LOGGED = range(3)
_RANKS = 1024
_SLOTS = 4096
_TOKEN_BITS = 31
_PATIENCE = 60.0


class EpochCounter:
    """Numbers the passes over a dataset, also where other processes make them.

    A DataLoader with workers never iterates the dataset in the main process, and may start new workers for each epoch. So
    the count lives in shared memory, which fork, spawn and forkserver all hand on; a lock that all three hand on does not
    exist. All workers of one pass must find the same number. What they share is a token, the base seed that the DataLoader
    draws for them. The first of them to come takes the next number and publishes it beside the token, in one 64-bit word;
    the others read it there. That only one can be the first is seen to by a file that is created for the moment of
    publishing. Persistent workers keep their token, and each counts on from there by itself.

    A DataLoader that draws the same base seed again, because torch was seeded again, gets the same epoch again: new workers
    can't tell the two passes apart. So it is with torch's own shuffling.

    Ranks that inherit the counter from one parent share its memory, not its numbers: each rank has a row of its own.
    """

    def __init__(self) -> None:
        self._rows = _shared(torch.zeros((_RANKS, 3), dtype=torch.int64))
        self._first_epochs = _shared(torch.zeros(_SLOTS, dtype=torch.int64))
        self._passes: dict[int, int] = {}
        self._name = uuid4().hex

    def claim(self, rank: int) -> int:
        """The number of the pass that starts now.

        Raises:
            ShardingError: In a worker, if another one was killed while it held the lock.
        """
        row = self._rows[rank % _RANKS]
        worker = get_worker_info()
        if worker is None:
            return _take(row, int(row[_NEXT]))
        # After set_epoch the same persistent workers start counting anew; the last bit keeps a token from being 0.
        token = hash((worker.seed - worker.id, rank, int(row[_CALLS]))) % (1 << _TOKEN_BITS) | 1
        first = self._first_epoch(token, row)
        passes = self._passes.get(token, 0)
        self._passes[token] = passes + 1
        return _take(row, first + passes)

    def passed(self, rank: int, epoch: int) -> None:
        """Say that a pass of this number goes on elsewhere: the next one that is claimed is at least the one after it."""
        _take(self._rows[rank % _RANKS], epoch)

    def set(self, epoch: int, rank: int | None) -> None:
        """Give the next pass of a rank this number, or of all ranks. Called in the main process, between passes."""
        rows = self._rows if rank is None else self._rows[rank % _RANKS :][:1]
        rows[:, _CALLS] += 1
        rows[:, _NEXT] = epoch

    def first(self, rank: int) -> bool:
        """True once for each rank, whichever of its processes asks."""
        row = self._rows[rank % _RANKS]
        told = bool(row[_LOGGED])
        row[_LOGGED] = 1
        return not told

    def _published(self, token: int) -> int | None:
        word = int(self._first_epochs[token % _SLOTS])
        return word & 0xFFFFFFFF if word >> 32 == token else None

    def _first_epoch(self, token: int, row: torch.Tensor) -> int:
        lock = Path(tempfile.gettempdir()) / f"squirrel_torch-{self._name}-{token}"
        deadline = time.monotonic() + _PATIENCE
        while (first := self._published(token)) is None:
            try:
                lock.touch(exist_ok=False)
            except FileExistsError:
                if time.monotonic() > deadline:
                    raise ShardingError(
                        f"the workers of this DataLoader can't agree on an epoch: {lock} has been there for {_PATIENCE:.0f} s; "
                        "a worker was killed while it held it. Delete the file and start again"
                    ) from None
                time.sleep(0.001)  # held for microseconds
                continue
            try:
                if self._published(token) is None:  # nobody was faster
                    self._first_epochs[token % _SLOTS] = token << 32 | _take(row, int(row[_NEXT]))
            finally:
                lock.unlink()
        return first

    def __getstate__(self) -> dict[str, Any]:
        return {"_rows": self._rows, "_first_epochs": self._first_epochs, "_name": self._name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A spawned worker gets the same memory. A copy has its own, and counts on from here by itself.
        self._rows, self._first_epochs = _shared(state["_rows"]), _shared(state["_first_epochs"])
        self._passes = {}
        self._name = state["_name"]


def _take(row: torch.Tensor, epoch: int) -> int:
    row[_NEXT] = max(int(row[_NEXT]), epoch + 1)
    return epoch


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_shared() else tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch's
