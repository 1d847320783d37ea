"""The items of a mix under their numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import numpy as np

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.digest import digest_of
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.storage import Ids, Located, Rows

if TYPE_CHECKING:
    from squirrel_torch.iterstream.planned import Planned

__all__ = ["MixedRows", "PlannedBranch"]

_TOLD: Final = 3
"""Of so many streams of a mix the fingerprint is told, not only a sum of all."""


class PlannedBranch(NamedTuple):
    """A stream of a mix that is planned: its places, its plan, and the context it is opened in first."""

    links: list[Composable[Any]]
    planned: Planned
    context: Context


class MixedRows(Rows):
    """The items of several planned streams: those of each are counted on from those of the stream before it.

    Args:
        branches: The streams.
    """

    scattered: ClassVar[bool] = False

    def __init__(self, branches: Sequence[PlannedBranch]) -> None:
        self._branches = branches
        self._starts = np.cumsum([0, *(len(branch.planned.rows) for branch in branches)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def open(self, numbers: Iterator[Ids], lifetime: Lifetime) -> Iterator[Any]:
        """The items of some numbers. Each stream makes its own one after the other, perhaps ahead of the others."""
        turns = _Turns(numbers, self._starts)
        streams = [
            branch.planned.open(branch.links, branch.context, lifetime.child(f"branch {index}"), turns.numbers(index))
            for index, branch in enumerate(self._branches)
        ]
        for index in turns:
            for item in streams[index]:
                yield item
                break

    def locate(self, ids: Ids) -> list[Located]:
        streams = np.searchsorted(self._starts, ids, side="right") - 1
        found: list[Located | None] = [None] * len(ids)
        for stream in np.unique(streams).tolist():
            own = np.flatnonzero(streams == stream)
            located = self._branches[stream].planned.locate(ids[own] - self._starts[stream])
            for place, one in zip(own.tolist(), located, strict=True):
                found[place] = replace(one, stream=(stream, *one.stream))
        return [one for one in found if one is not None]

    def fingerprint(self) -> dict[str, Any]:
        parts = [branch.planned.rows.fingerprint() for branch in self._branches]
        return {"rows": len(self), "streams": len(parts), "parts": parts[:_TOLD], "sum": digest_of(parts)}

    def difference(self, fingerprint: dict[str, Any]) -> str:
        told = fingerprint.get("parts")
        for index, (branch, part) in enumerate(zip(self._branches, told if isinstance(told, list) else [], strict=False)):
            if isinstance(part, dict) and part != branch.planned.rows.fingerprint():
                return f"in stream {index} of the mix, {branch.planned.rows.difference(part)}"
        return super().difference(fingerprint)


class _Turns(Iterator[int]):
    """Whose turn it is in a mix, and the numbers that each stream is to give. Streams may ask from threads of their own."""

    def __init__(self, numbers: Iterator[Ids], starts: Ids) -> None:
        self._numbers = numbers
        self._starts = starts
        self._lock = Lock()
        self._turns: deque[int] = deque()
        self._own: list[deque[Ids]] = [deque() for _ in starts[:-1]]

    def __next__(self) -> int:
        with self._lock:
            while not self._turns:
                if not self._more():
                    raise StopIteration
            return self._turns.popleft()

    def numbers(self, stream: int) -> Iterator[Ids]:
        """Those of one stream, block by block."""
        while True:
            with self._lock:
                while not self._own[stream]:
                    if not self._more():
                        return
                block = self._own[stream].popleft()
            yield block

    def _more(self) -> bool:
        block = next(self._numbers, None)
        if block is None:
            return False
        streams = np.searchsorted(self._starts, block, side="right") - 1
        self._turns.extend(streams.tolist())
        for stream in np.unique(streams).tolist():
            self._own[stream].append(block[streams == stream] - self._starts[stream])
        return True
