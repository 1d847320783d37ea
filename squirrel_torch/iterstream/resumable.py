"""Passes of one process that tell how far they have come, for torchdata's StatefulDataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from squirrel_torch.errors import FingerprintMismatch, StateError
from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.layout import require_same_chain, signature
from squirrel_torch.iterstream.planned import Numbered, Planned, planned_prefix, position_blocks
from squirrel_torch.iterstream.run import Run
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.iterstream.stages import Batched
from squirrel_torch.iterstream.tracking import check_state, track
from squirrel_torch.plan.state import seal, unseal, whole
from squirrel_torch.sharding import Shard

__all__ = ["ResumableRun"]


class ResumableRun(Iterator[Any]):
    """One pass over a process's share. Nothing is opened before its first item is asked for.

    Args:
        links: The chain, divided.
        claim_epoch: Gives the number of the epoch.
        passed: Told the epoch of a pass that was loaded, so that the next one is another.
        rank: Of this process.
        worker: Its place among the workers of its loader.
    """

    def __init__(
        self,
        links: Sequence[Composable[Any]],
        claim_epoch: Callable[[], int],
        passed: Callable[[int], None],
        rank: Shard,
        worker: Shard,
    ) -> None:
        self._links = links
        self._claim_epoch = claim_epoch
        self._passed = passed
        self._place = [[rank.index, rank.count], [worker.index, worker.count]]
        self._known_epoch: int | None = None
        self._given = 0
        self._saved: list[Any] | None = None
        self._run: Any = None
        self._is_planned = _batch_size(links) is not None

    @property
    def _epoch(self) -> int:
        if self._known_epoch is None:
            self._known_epoch = self._claim_epoch()
        return self._known_epoch

    def __next__(self) -> Any:
        if self._run is None:
            self._run = self._open()
        item = next(self._run)
        self._given += 1
        return item if self._is_planned else item[1]

    def _open(self) -> Any:
        if not self._is_planned:
            return track(self._links, self._epoch, self._saved)
        epoch, size = self._epoch, _batch_size(self._links)
        planned = planned_prefix(self._links, Context(epoch))
        if planned is None or size is None:
            raise AssertionError("a planned chain is planned in each epoch")
        draws = sum(link._draws for link in planned.ordering)
        blocks = position_blocks(planned.order, start=self._given * size)
        links = [Numbered(self._links[0], planned, draws, blocks), *planned.data, *self._links[planned.count :]]
        return Run(links, lambda: epoch)

    def close(self) -> None:
        """End the pass."""
        if self._run is not None:
            self._run.close()

    def state_dict(self) -> dict[str, Any]:
        """How far the pass has come: plain JSON types, a fresh copy."""
        tracked = None if self._is_planned else self._saved if self._run is None else self._run.snapshot()
        place = {"epoch": self._epoch, "given": self._given, "place": self._place, "state": tracked}
        return seal({**place, **self._fingerprints})

    @cached_property
    def _fingerprints(self) -> dict[str, Any]:
        planned = planned_prefix(self._links, Context())
        return {"chain": signature(self._links), "data": None if planned is None else planned.rows.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin where a pass was that `state_dict` told of.

        Raises:
            StateError: If the state is damaged, or that of another rank or worker.
            FingerprintMismatch: If it is that of another chain or dataset.
        """
        told = unseal(state)
        epoch, given, own = whole(told, "epoch"), whole(told, "given"), self._fingerprints
        if told.get("place") != self._place:
            raise StateError(
                f"the state was saved by [rank, ranks], [worker, workers] = {told.get('place')!r:.80}, this is {self._place}: "
                "a StatefulDataLoader goes on with as many ranks and workers; squirrel_torch.StreamLoader does with any"
            )
        require_same_chain(told.get("chain"), own["chain"])
        if told.get("data") != own["data"]:
            raise FingerprintMismatch(
                f"the dataset is another one: it was {told.get('data')!r:.200}, it is {own['data']}"[:600]
            )
        if not self._is_planned and told.get("state") is not None:
            check_state(self._links, told["state"])
        self._known_epoch, self._given, self._saved = epoch, given, told.get("state")
        self._passed(epoch)


def _batch_size(links: Sequence[Composable[Any]]) -> int | None:
    """How many samples make one item of a chain whose order is arithmetic; None for other chains."""
    planned: Planned | None = planned_prefix(links, Context())
    if planned is None:
        return None
    size = 1
    for link in links[planned.count :]:
        stage = None if link._custom else link._stage
        if isinstance(stage, Batched) and size == 1:
            size = stage.size
        elif stage is None or not stage.one_to_one:
            return None
    return size
