"""How far a loader has come: what was delivered, not what was made."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cursor"]


@dataclass(frozen=True)
class Cursor:
    """A place in a planned stream, the same for all ranks.

    Args:
        epoch: Which epoch, from 0.
        position: How many positions of its order have been delivered, on all ranks together.
        step: How many batches of the epoch each rank has got.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
