"""What a loader goes through, and how: chosen by the chain and the arguments that it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from torch.utils.data import default_collate

from squirrel_torch.checks import require_one_of
from squirrel_torch.errors import ShardingError
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.iterable import may_divide_itself
from squirrel_torch.iterstream.layout import Layout, Mode
from squirrel_torch.iterstream.mix import Mix
from squirrel_torch.iterstream.planned import planned_prefix
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.iterstream.stages import Batched
from squirrel_torch.iterstream.torch_composables import TorchIterable
from squirrel_torch.loader.course import Course, World, is_automatic
from squirrel_torch.loader.dealt import DealtCourse, is_dealt
from squirrel_torch.loader.planned import PlannedCourse
from squirrel_torch.loader.streamed import StreamedCourse
from squirrel_torch.loader.streams import split_place
from squirrel_torch.plan import Tail

__all__ = ["course_of", "dataset_of", "require_whole_sources"]


def dataset_of(
    pipeline: object, batch_size: int | None, collate_fn: Callable[[list[Any]], Any] | None, drop_last: bool
) -> TorchIterable[Any]:
    """The chain, its batches included, as torch's DataLoader wants it."""
    chain: object = pipeline.source if isinstance(pipeline, TorchIterable) else pipeline
    if not isinstance(chain, Composable):
        raise TypeError(f"pipeline must be a chain, such as IterableSource(...), got {pipeline!r} ({type(pipeline).__name__})")
    if batch_size is None:
        if collate_fn is not None or drop_last:
            raise ValueError(
                "collate_fn and drop_last need a batch_size; for a chain that makes batches they are said to batched()"
            )
        return pipeline if isinstance(pipeline, TorchIterable) else chain.to_torch_iterable()
    if any(isinstance(link._stage, Batched) for link in chain._links()):
        raise ValueError(
            f"the chain makes batches itself: leave batch_size={batch_size} out, or take batched() out of the chain"
        )
    batched = chain.batched(batch_size, default_collate if collate_fn is None else collate_fn, drop_last)
    if isinstance(pipeline, TorchIterable):
        return batched.to_torch_iterable(pipeline.enforce_rank_check, pipeline.enforce_worker_check)
    return batched.to_torch_iterable()


def course_of(layout: Layout, tail: Tail | None, streams: int | None) -> Course[Any]:
    """The way through the epochs of a chain.

    Raises:
        ValueError: If there is no such tail, or the chain can't have it.
    """
    if tail is not None:
        require_one_of("tail", tail, get_args(Tail))
    if layout.mode is Mode.PLANNED:
        return PlannedCourse(layout, tail or "drop")
    pads = tail == "pad"
    if streams is None and (place := _dealt_at(layout)) is not None:
        return DealtCourse(layout, place, pads=pads)
    return StreamedCourse(layout, streams, pads=pads)


def require_whole_sources(layout: Layout, world: World) -> None:
    """Refuse a source that may divide itself where several processes are to share the stream: it would be divided twice.

    What a callable gives, and what pipes of torch hold, is seen where it is opened.

    Raises:
        ShardingError: If there is one, and no splits in the chain say that it gives everything to everybody.
    """
    if is_automatic(layout, world):
        _require_whole_sources(layout.links)


def _require_whole_sources(links: Sequence[Composable[Any]]) -> None:
    for branch in links[0].branches if isinstance(links[0], Mix) else ():
        _require_whole_sources(branch._links())
    if may_divide_itself(links[0].source):
        raise ShardingError(
            f"the source is the dataset {type(links[0].source).__qualname__}, which may divide its items among ranks and "
            "workers itself, and a StreamLoader would divide them a second time. If it doesn't, add .split_by_rank() and "
            ".split_by_worker() to the chain; if it does, use num_workers=0 on one rank, or a DataLoader over "
            ".to_torch_iterable(False, False)"
        )


def _dealt_at(layout: Layout) -> int | None:
    """Where a chain is dealt out whose beginning every process runs as a whole; None for other chains."""
    try:
        place = split_place(layout)
    except ShardingError:  # raised where it is divided; one process alone need not
        return None
    planned = planned_prefix(layout.links[:place], Context())
    if planned is not None and planned.count == place:
        return None
    return next(later for later in range(place, len(layout.links) + 1) if is_dealt(layout, later))
