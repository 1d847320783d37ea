"""Smaller batches at the end of a stream, filled up where they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.stages import Batched
from squirrel_torch.loader.work import with_stage

__all__ = ["batch_size_of", "filled", "mask_of", "real_samples"]


@dataclass(frozen=True)
class _Fill:
    """Makes a batch of `size` samples of fewer: these come again."""

    size: int
    collate: Callable[[list[Any]], Any] | None

    def __call__(self, samples: list[Any]) -> Any:
        full = list(islice(cycle(samples), self.size))
        return full if self.collate is None else self.collate(full)


def batch_size_of(links: Sequence[Composable[Any]]) -> int:
    """How many samples a batch of a chain has; 1 where none are made.

    Raises:
        ValueError: If batches are changed behind the stage that makes them, so that a mask would not fit.
    """
    at = [place for place, link in enumerate(links) if isinstance(link._stage, Batched)]
    if not at:
        return 1
    for link in links[at[-1] + 1 :]:
        stage = None if link._custom else link._stage
        if stage is None or not stage.one_to_one:
            raise ValueError(
                f'tail="pad" needs to know which samples are in a batch, and {link._describe()} stands behind batched() and '
                'may change that: put it in front of batched(), or say tail="drop" or "exact"'
            )
    return int(links[at[-1]]._stage.size)  # type: ignore[union-attr]  # a Batched


def filled(links: Sequence[Composable[Any]]) -> list[Composable[Any]]:
    """The places of a chain, whose last batches are filled up."""
    changed = list(links)
    for place in reversed(range(len(changed))):
        stage = changed[place]._stage
        if isinstance(stage, Batched):
            fill = _Fill(stage.size, stage.collation_fn)
            changed[place] = with_stage(changed[place], replace(stage, collation_fn=fill))
            break
    return changed


def real_samples(own: object) -> int:
    """How many samples a batch was made of, by its id."""
    return len(own) if isinstance(own, tuple) else 1


def mask_of(real: int, size: int) -> torch.Tensor:
    """The mask of a batch. Shape `[size]`, bool."""
    return torch.arange(size) < real
