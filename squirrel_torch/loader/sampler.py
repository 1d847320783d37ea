"""How trainers that number the epochs of samplers reach a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakMethod

from torch.utils.data import Sampler

__all__ = ["EpochSampler"]


class EpochSampler(Sampler[Any]):
    """Stands where a DataLoader has its sampler; it passes the number of the epoch on, and samples nothing.

    Args:
        set_epoch: A method of the loader.
    """

    def __init__(self, set_epoch: Callable[[int], None]) -> None:
        self._set_epoch = WeakMethod(set_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is."""
        if (method := self._set_epoch()) is not None:
            method(epoch)

    def __iter__(self) -> Iterator[Any]:
        # As torch has it for datasets that choose their samples themselves.
        while True:
            yield None
