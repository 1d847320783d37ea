"""Batches on their way to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

from squirrel_torch.loader.course import END
from squirrel_torch.loader.spans import inside

__all__ = ["moved", "on_device"]

T = TypeVar("T")


def moved(batch: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`batch` with `move` of each tensor in it; dicts, lists and tuples, named ones too, are looked into."""
    if isinstance(batch, torch.Tensor):
        return move(batch)
    if isinstance(batch, dict):
        return {key: moved(value, move) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, move) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, move) for value in batch)
    return batch


def on_device(
    batches: Iterator[tuple[T, Any]], device: torch.device, pin_memory: bool, lane: str = "loader"
) -> Iterator[tuple[T, Any]]:
    """The batches on `device`, each with what travels beside it.

    On CUDA the next batch is copied on a stream of its own while the one before is worked on. On a CPU nothing is done.
    In a recording, the copies are spans of `lane`: on CUDA only how long it took to start them.
    """
    if device.type == "cpu":
        return batches
    if device.type != "cuda":
        return _one_by_one(batches, device, lane)
    return _ahead(batches, device, pin_memory, lane)


def _copying(lane: str, batch: Any) -> AbstractContextManager[None]:
    return nullcontext() if batch is END else inside(lane, "copy", "copy to device")


def _one_by_one(batches: Iterator[tuple[T, Any]], device: torch.device, lane: str) -> Iterator[tuple[T, Any]]:
    for ticket, batch in batches:
        with _copying(lane, batch):
            batch = moved(batch, lambda tensor: tensor.to(device))
        yield ticket, batch


def _ahead(batches: Iterator[tuple[T, Any]], device: torch.device, pin_memory: bool, lane: str) -> Iterator[tuple[T, Any]]:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's

    def copied(batch: Any) -> tuple[Any, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            # Copies of memory that is not pinned are not done beside anything.
            copy = moved(batch, lambda tensor: (tensor.pin_memory() if pin_memory else tensor).to(device, non_blocking=True))
            return copy, stream.record_event()

    def handed_over(batch: Any, done: torch.cuda.Event) -> Any:
        current = torch.cuda.current_stream(device)
        current.wait_event(done)  # not for the stream: the next batch is on its way there

        def used(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_cuda:
                tensor.record_stream(current)  # its memory must not be given to the next copy before it has been used
            return tensor

        return moved(batch, used)

    waiting: tuple[T, tuple[Any, torch.cuda.Event]] | None = None
    for ticket, batch in batches:
        with _copying(lane, batch):
            copying = ticket, copied(batch)
        if waiting is not None:
            yield waiting[0], handed_over(*waiting[1])
        waiting = copying
    if waiting is not None:
        yield waiting[0], handed_over(*waiting[1])
