"""Which epoch is this? One answer for all worker processes of a DataLoader."""

import time
from typing import Any

import torch
from torch.utils.data import get_worker_info

from squirrel_torch.errors import ShardingError

__all__ = ["EpochCounter"]

_CALLS, _NEXT, _LOGGED, _FIRST_EPOCHS = 0, 1, 2, 3
_SLOTS = 4096
_TOKEN_BITS = 31
_PATIENCE = 300.0


class EpochCounter:
    """Numbers the passes over a dataset, also where other processes make them.

    A DataLoader with workers never iterates the dataset in the main process, and may start new workers for each epoch. So
    the count lives in shared memory, which fork, spawn and forkserver all hand on; a lock that all three hand on does not
    exist. All workers of one pass must find the same number. What they share is a token, the base seed that the DataLoader
    draws for them. Worker 0 decides: it takes the next number and publishes it beside the token, in one 64-bit word; the
    others wait for that word. Persistent workers keep their token, and each counts on from there by itself.

    A DataLoader that draws the same base seed again, because torch was seeded again, gets the same epoch again: new workers
    can't tell the two passes apart. So it is with torch's own shuffling.
    """

    def __init__(self) -> None:
        ledger = torch.zeros(_FIRST_EPOCHS + _SLOTS, dtype=torch.int64)
        self._ledger = ledger.share_memory_()  # type: ignore[no-untyped-call]
        self._passes: dict[int, int] = {}

    def claim(self) -> int:
        """The number of the pass that starts now.

        Raises:
            ShardingError: In a worker other than worker 0, if that does not iterate the dataset too.
        """
        worker = get_worker_info()
        if worker is None:
            return self._take(int(self._ledger[_NEXT]))
        token = self._token(worker.seed - worker.id)
        first = self._published(token)
        if first is None:
            first = self._publish(token) if worker.id == 0 else self._wait_for(token)
        passes = self._passes.get(token, 0)
        self._passes[token] = passes + 1
        return self._take(first + passes) if worker.id == 0 else first + passes

    def set(self, epoch: int) -> None:
        """Give the next pass this number. Called in the main process, between passes."""
        self._ledger[_CALLS] += 1
        self._ledger[_NEXT] = epoch

    def first(self) -> bool:
        """True once, whichever process asks."""
        told = bool(self._ledger[_LOGGED])
        self._ledger[_LOGGED] = 1
        return not told

    def _take(self, epoch: int) -> int:
        self._ledger[_NEXT] = max(int(self._ledger[_NEXT]), epoch + 1)
        return epoch

    def _token(self, base_seed: int) -> int:
        # After set_epoch the same persistent workers start counting anew; the last bit keeps a token from being 0.
        calls = int(self._ledger[_CALLS])
        return hash((base_seed, calls)) % (1 << _TOKEN_BITS) | 1

    def _published(self, token: int) -> int | None:
        word = int(self._ledger[_FIRST_EPOCHS + token % _SLOTS])
        return word & 0xFFFFFFFF if word >> 32 == token else None

    def _publish(self, token: int) -> int:
        first = int(self._ledger[_NEXT])
        self._ledger[_FIRST_EPOCHS + token % _SLOTS] = token << 32 | first
        return first

    def _wait_for(self, token: int) -> int:
        deadline = time.monotonic() + _PATIENCE
        while (first := self._published(token)) is None:
            if time.monotonic() > deadline:
                raise ShardingError(
                    f"worker 0 of this DataLoader has not begun to iterate the dataset for {_PATIENCE:.0f} s, and the workers "
                    "can't agree on an epoch: a TorchIterable must be iterated by all workers of its DataLoader"
                )
            time.sleep(0.001)
        return first

    def __getstate__(self) -> dict[str, Any]:
        return {"_ledger": self._ledger}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._ledger = state["_ledger"]
        self._passes = {}
