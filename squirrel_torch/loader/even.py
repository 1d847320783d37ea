"""The same number of steps on all ranks, where nobody knows beforehand how many there are."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Final, Generic, TypeVar

from squirrel_torch.loader.council import Council, Question
from squirrel_torch.loader.course import END
from squirrel_torch.loader.padding import masked
from squirrel_torch.loader.spans import inside

__all__ = ["Even"]

P = TypeVar("P")

_AHEAD: Final = 4
"""Batches that a rank has made before it promises them: they are held in memory."""

_log = logging.getLogger(__name__)


class Even(Generic[P]):
    """The batches of a rank, cut off or filled up so that all ranks give equally many.

    Each rank promises a few batches that it has already; all give as many as the rank gives that has the fewest ("drop") or the
    most ("pad"). What is asked for one block of batches is on its way while the one before is worked on.

    Args:
        delivered: The batches of this rank, each with the place behind it; `END` with the last place.
        council: Of all ranks that share the stream.
        pads: Fill up, instead of cutting off. The batches have masks then.
        over: What the place is when the epoch is over, from any place in it.
        lane: Of the loader, in a recording.
    """

    def __init__(
        self,
        delivered: Iterator[tuple[P, Any]],
        council: Council,
        *,
        pads: bool,
        over: Callable[[P], P],
        lane: str = "loader",
    ) -> None:
        self._lane = lane
        self._delivered = delivered
        self._council = council
        self._pads = pads
        self._over = over
        self._ahead: deque[tuple[P, Any]] = deque()
        self._last: P | None = None  # the place at the end, once it was reached
        self._example: Any = None

    def batches(self, begin: P) -> Iterator[tuple[P, Any]]:
        """The batches, and `END`. All ranks have to take all of them."""
        place, block, step = begin, 1, 0
        agreed, goes_on = 0, True
        question: Question | None = None
        number = self._council.begin()
        while True:
            # Only steps decide when it is asked: the ranks have to ask in one order, whatever each of them has ahead.
            asks = goes_on and question is None and (agreed == 0 or (agreed == 1 and block == _AHEAD))
            self._take(agreed + block if asks else min(agreed + block, len(self._ahead) + 1))
            if asks:
                count = min(max(0, len(self._ahead) - agreed), block)
                question = self._council.ask(number, step, count, able=not self._pads or self._example is not None)
            if agreed == 0:
                if question is None:
                    break
                agreed = self._steps(question)
                question, goes_on, block = None, agreed == block, min(2 * block, _AHEAD)
                if agreed == 0:
                    break
                continue
            agreed -= 1
            step += 1
            place, batch = self._next(place)
            yield place, batch
        left = len(self._ahead)
        if left or self._last is None:
            _log.warning(
                "a rank had no more batches behind step %s of epoch %s, so this one leaves out %d that it had made, and all "
                "that would come (tail='drop'); tail='pad' leaves out nothing",
                getattr(place, "step", "?"),
                getattr(place, "epoch", "?"),
                left,
            )
        yield self._over(place if self._last is None else self._last), END

    def _take(self, count: int) -> None:
        """Have `count` batches ahead, or all that are left."""
        while self._last is None and len(self._ahead) < count:
            place, batch = next(self._delivered)
            if batch is END:
                self._last = place
            else:
                self._ahead.append((place, batch))
                if self._pads and self._example is None:
                    self._example = deepcopy(batch)  # what is given may be changed, such as its mask taken out

    def _steps(self, question: Question) -> int:
        with inside(self._lane, "ranks", "wait for the other ranks"):
            least, most, able = self._council.outcome(question)
        if not self._pads:
            return least
        if most and not able:
            self._example = self._council.shared(self._example)
        return most

    def _next(self, place: P) -> tuple[P, Any]:
        if self._ahead:
            return self._ahead.popleft()
        return place if self._last is None else self._last, masked(deepcopy(self._example))
