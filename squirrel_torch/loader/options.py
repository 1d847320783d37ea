"""The arguments that say how a StreamLoader works, by their names and types, for type checkers."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import TypedDict

import torch

from squirrel_torch.plan import Tail

__all__ = ["LoaderOptions"]


class LoaderOptions(TypedDict, total=False):
    """The keyword arguments of `StreamLoader` that do not change what its batches are."""

    tail: Tail | None
    drop_last: bool
    streams: int | None
    prefetch_factor: int | None
    persistent_workers: bool
    multiprocessing_context: str | BaseContext | None
    worker_init_fn: Callable[[int], None] | None
    timeout: float
    pin_memory: bool
    device: torch.device | str | None
    report_after: float
    observe: bool
    dataset: object
    sampler: None
    batch_sampler: None
