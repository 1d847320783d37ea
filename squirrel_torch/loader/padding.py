"""Batches that are filled up, and the mask that says with what."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from squirrel_torch.errors import PipelineError

__all__ = ["MASK", "Padded", "with_mask"]

MASK = "mask"
"""The key of the mask in batches that are dicts."""


class Padded(NamedTuple):
    """A batch that is no dict, and its mask.

    Args:
        batch: As the chain has made it.
        mask: True for samples of the epoch, False for those that fill up. Shape `[batch]`, bool.
    """

    batch: Any
    mask: torch.Tensor


def with_mask(batch: Any, mask: torch.Tensor) -> Any:
    """The batch and its mask: in a dict under "mask", else as `Padded`.

    Raises:
        PipelineError: If the batch has something else under "mask".
    """
    if not isinstance(batch, dict):
        return Padded(batch, mask)
    if MASK in batch:
        raise PipelineError(
            f'tail="pad" puts the mask of padded samples under {MASK!r}, and the batch has something there '
            f"({type(batch[MASK]).__name__}): give that field of the samples another name"
        )
    return {**batch, MASK: mask}
