"""Along which axes a stream is divided, wherever in it the splits are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from squirrel_torch.errors import ShardingError
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.datapipe import is_datapipe, pipes_in
from squirrel_torch.iterstream.mix import Mix
from squirrel_torch.iterstream.stage import Split

__all__ = ["splits_of"]


def splits_of(composable: Composable[Any]) -> Split:
    """The axes along which a chain is divided, by itself or in all branches of its mix.

    Raises:
        ShardingError: If some branches are divided along an axis and others are not, or one axis is divided twice.
    """
    links = composable._links()
    own = Split.NONE
    for link in links:
        own |= link._splits
    splits = _splits_of_branches(links[0])
    if not splits:
        return own
    for axis, method in ((Split.RANK, "split_by_rank()"), (Split.WORKER, "split_by_worker()")):
        split = [index for index, done in enumerate(splits) if done & axis]
        if split and len(split) < len(splits) and not own & axis:
            missing = [index for index in range(len(splits)) if index not in split]
            raise ShardingError(
                f"{links[0]._describe()}: branches {split} are split and branches {missing} are not; "
                f"add .{method} to all branches or to none"
            )
        if split and own & axis:
            raise ShardingError(
                f"{links[0]._describe()}: branches {split} are split and so is the mix itself, so items would be lost; "
                f"keep .{method} in all branches or behind the mix"
            )
    return own | splits[0]


def _splits_of_branches(first: Composable[Any]) -> list[Split]:
    """For each stream that the beginning of a chain brings together, the axes along which it is divided."""
    if isinstance(first, Mix):
        return [splits_of(branch) for branch in first.branches]
    return list(_splits_of_pipe(first.source)) if is_datapipe(first.source) else []


def _splits_of_pipe(pipe: Any) -> Iterator[Split]:
    if isinstance(pipe, Composable):
        yield splits_of(pipe)
        return
    behind = list(pipes_in(pipe))
    if not behind:
        yield Split.NONE
    for inner in behind:
        yield from _splits_of_pipe(inner)
