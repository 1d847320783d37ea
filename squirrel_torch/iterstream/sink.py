"""A stream into a store: in parallel, committed at its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from squirrel_torch.checks import require_at_least
from squirrel_torch.errors import ShardingError
from squirrel_torch.iterstream.stage import Split
from squirrel_torch.iterstream.stages import Piped
from squirrel_torch.sharding import rank_shard
from squirrel_torch.storage import Group, Store, Written, require_store

if TYPE_CHECKING:
    from squirrel_torch.execution import ExecutorLike
    from squirrel_torch.iterstream.base import Composable

__all__ = ["write_stream"]


@dataclass(frozen=True)
class _Write:
    """Writes a group, and sends its number along: the samples stay where they are."""

    write: Callable[[Any], Any]

    def __call__(self, group: Any) -> tuple[int, Any]:
        return (group.first if isinstance(group, Group) else 0), self.write(group)


def write_stream(
    stream: Composable[Any],
    store: Store,
    buffer: int,
    max_workers: int | None,
    executor: ExecutorLike,
    progress: bool,
    resume: str | None,
) -> Written:
    """See `Composable.sink`."""
    require_store("sink", store)
    require_at_least("buffer", buffer, 1)
    if max_workers is not None:
        require_at_least("max_workers", max_workers, 1)
    _check_places(stream, store, executor)
    writing = store._writing(resume)
    if writing.holds is not None:
        # Groups are large: as many as the workers have, and one more each at most.
        max_workers = max_workers or min(4, os.cpu_count() or 1)
        buffer = max_workers * (1 + writing.holds)
    groups = stream.then(Piped(writing.groups))
    # `chunksize` 1 where a group is work enough by itself.
    size: Any = "auto" if writing.holds is None else 1
    written = groups.async_map(_Write(writing.write), buffer, max_workers, executor, chunksize=size)
    run = written.run()
    with _bar(progress, store, writing.resumed) as bar:
        try:
            for first, result in run:
                bar.update(writing.receive(first, result))
        except BaseException:
            run.close()  # waits for what is being written
            writing.abort()
            raise
        return writing.commit()


def _check_places(stream: Composable[Any], store: Store, executor: object) -> None:
    """Raise if what is written would be lost, or written by each rank."""
    from squirrel_torch.iterstream.splits import splits_of

    if not store.shared and executor not in (None, "thread"):
        raise ValueError(
            f"{store!r} is in the memory of this process: what executor={executor!r} writes would be lost; leave it out"
        )
    ranks = rank_shard()
    if store.shared and ranks.count > 1 and not splits_of(stream) & Split.RANK:
        raise ShardingError(
            f"rank {ranks.index} of {ranks.count} would write the whole stream, as all the others: add .split_by_rank()"
        )


class _NoBar:
    def update(self, rows: int) -> None:
        """Nothing."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _bar(progress: bool, store: Store, done: int) -> Any:
    if not progress:
        return _NoBar()
    from tqdm import tqdm

    return tqdm(desc=f"writing {store!r}", unit=" rows", unit_scale=True, initial=done)
