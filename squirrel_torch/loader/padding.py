"""Batches that are filled up, and the mask that says with what."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from squirrel_torch.errors import PipelineError

__all__ = ["MASK", "Padded", "masked", "rows_of_mask", "unpadded", "with_mask"]

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


def masked(batch: Any) -> Any:
    """The batch, which has a mask, as one that is all filled up."""
    if isinstance(batch, Padded):
        return batch._replace(mask=torch.zeros_like(batch.mask))
    return {**batch, MASK: torch.zeros_like(batch[MASK])}


def unpadded(batch: Any, *values: Any) -> Any:
    """A batch of `tail="pad"` without what fills it up, for metrics that count each sample once.

    Args:
        batch: A dict with a mask, or a `Padded`. Batches without a mask stay as they are.
        values: What was made of the batch, such as predictions: tensors, or dicts, lists and tuples of them.

    Returns:
        The batch as it is without padding, with the rows of samples of the epoch alone. With `values` a list of it and of
        these, with the same rows of them. Rows are those of tensors whose first dimension is that of the mask, and of lists
        that are as long, unless they hold such tensors.

    Example:
        >>> batch = {"x": torch.arange(3), "mask": torch.tensor([True, True, False])}
        >>> unpadded(batch)
        {'x': tensor([0, 1])}
        >>> unpadded(batch, torch.ones(3))
        [{'x': tensor([0, 1])}, tensor([1., 1.])]
    """
    if isinstance(batch, Padded):
        plain, mask = batch
    elif isinstance(batch, dict) and MASK in batch:
        plain, mask = {name: value for name, value in batch.items() if name != MASK}, batch[MASK]
    else:
        plain, mask = batch, None
    parts = [plain, *values]
    if mask is not None and not bool(mask.all()):
        parts = [rows_of_mask(part, mask) for part in parts]
    return parts if values else parts[0]


def rows_of_mask(value: Any, mask: torch.Tensor) -> Any:
    """The rows of a value for which the mask is True; what the rows of a value are, `unpadded` says."""
    if isinstance(value, torch.Tensor):
        return value[mask.to(value.device)] if value.ndim and len(value) == len(mask) else value
    if isinstance(value, dict):
        return {name: rows_of_mask(part, mask) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rows_of_mask(part, mask) for part in value))
    if not isinstance(value, list | tuple):
        return value
    if len(value) == len(mask) and not any(_has_rows(part, len(mask)) for part in value):
        return type(value)(part for part, real in zip(value, mask.tolist(), strict=True) if real)
    return type(value)(rows_of_mask(part, mask) for part in value)


def _has_rows(value: Any, count: int) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim > 0 and len(value) == count
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(_has_rows(part, count) for part in parts)
