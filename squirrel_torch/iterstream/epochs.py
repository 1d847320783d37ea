"""Which epoch is this? One answer for all worker processes of a DataLoader."""

from typing import Any

import torch
from torch.utils.data import get_worker_info

from squirrel_torch.errors import ShardingError

__all__ = ["EpochCounter"]

_WORKERS = 1024
_BASE, _NEXT = 0, 1
_TOKEN_BITS = 31


class EpochCounter:
    """Numbers the passes over a dataset, also where other processes make them.

    A DataLoader with workers never iterates the dataset in the main process, and may start new workers for each epoch. So
    the count lives in shared memory, which fork, spawn and forkserver all hand on. All workers of one pass must find the
    same number without a lock (none can be handed on by all three). What they share is a token: the base seed that the
    DataLoader draws for them.

    Each worker writes into its own row only: (token, first epoch of the token) as one 64-bit word, then the epoch after the
    one it starts. A worker that finds its token in any row uses the epoch beside it. Otherwise it is among the first of its
    pass; no worker of its pass has raised the second column yet, so all who get here compute the same number from it. One
    who sees a raised number will also see the token, which was written before: hence the second look.

    Persistent workers keep their token; they count on from its first epoch by themselves.
    """

    def __init__(self) -> None:
        # Row 0 belongs to the main process: (how often set_epoch was called, its next epoch).
        self._ledger = torch.zeros((1 + _WORKERS, 2), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._passes: dict[int, int] = {}

    def claim(self) -> int:
        """The number of the pass that starts now."""
        worker = get_worker_info()
        if worker is None:
            epoch = int(self._ledger[:, _NEXT].max())
            self._ledger[0, _NEXT] = epoch + 1
            return epoch
        if worker.num_workers > _WORKERS:
            raise ShardingError(f"at most {_WORKERS} workers can agree on an epoch, got num_workers={worker.num_workers}")
        token = self._token(worker.seed - worker.id)
        first = self._first_epoch(token)
        passes = self._passes.get(token, 0)
        self._passes[token] = passes + 1
        row = self._ledger[1 + worker.id]
        row[_BASE] = token << 32 | first
        row[_NEXT] = max(int(row[_NEXT]), first + passes + 1)
        return first + passes

    def set(self, epoch: int) -> None:
        """Give the next pass this number. Called in the main process, between passes."""
        calls = int(self._ledger[0, _BASE]) + 1
        self._ledger.zero_()
        self._ledger[0, _BASE], self._ledger[0, _NEXT] = calls, epoch

    def _token(self, base_seed: int) -> int:
        # After set_epoch the same persistent workers start counting anew; the last bit keeps a token from being 0.
        calls = int(self._ledger[0, _BASE])
        return hash((base_seed, calls)) % (1 << _TOKEN_BITS) | 1

    def _first_epoch(self, token: int) -> int:
        found = self._look_up(token)
        if found is None:
            computed = int(self._ledger[:, _NEXT].max())
            found = self._look_up(token)
            return computed if found is None else found
        return found

    def _look_up(self, token: int) -> int | None:
        words = self._ledger[1:, _BASE]
        hits = words[words >> 32 == token]
        return int(hits[0]) & 0xFFFFFFFF if len(hits) else None

    def __getstate__(self) -> dict[str, Any]:
        return {"_ledger": self._ledger}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._ledger = state["_ledger"]
        self._passes = {}
