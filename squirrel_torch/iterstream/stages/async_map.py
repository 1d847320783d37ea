"""A callback on many items at once."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, TypeVar

from squirrel_torch.checks import require_at_least, require_callable, require_positive_seconds, require_seconds
from squirrel_torch.describe import describe_callable, describe_item
from squirrel_torch.errors import TooManyFailuresError
from squirrel_torch.execution import (
    Call,
    Chunk,
    ExecutorLike,
    Flow,
    Policy,
    Tally,
    Tuner,
    check_executor,
    choose_place,
    portable_executor,
)
from squirrel_torch.iterstream.following import Followed, Progress, Pulled, check_progress
from squirrel_torch.iterstream.keyed import Wanted, wanted_by
from squirrel_torch.iterstream.report import StageReport
from squirrel_torch.iterstream.stage import Context, Following, Id, Stage, Step

__all__ = ["AsyncMap"]

T = TypeVar("T")
U = TypeVar("U")

_log = logging.getLogger(__name__)

_DEALT_WITH = RuntimeError("this failure has been dealt with")


@dataclass(frozen=True)
class AsyncMap(Stage[T, U]):
    """`callback` of each item, many at once. Order: kept, or not. Holds: `buffer` items. State: none."""

    callback: Callable[[T], U]
    buffer: int | Literal["auto"] = 100
    max_workers: int | Literal["auto"] | None = None
    executor: ExecutorLike = None
    ordered: bool = True
    chunksize: int | Literal["auto"] = "auto"
    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[type[Exception], ...] = (Exception,)
    backoff: float = 0.1
    on_error: Literal["raise", "skip"] | Callable[[Exception, T], object] = "raise"
    max_failures: int | Fraction | None = None
    holds: ClassVar[bool] = True
    remembers: ClassVar[Mapping[str, str]] = {
        "since": "count",
        "done": "count",
        "missing": "counts",
        "dealt": "count",
        "skipped": "count",
        "kinds": "tally",
    }
    _home: int = field(default_factory=os.getpid, init=False, repr=False, compare=False)

    @property
    def one_to_one(self) -> bool:
        """Unless results come as they are done, or failures are left out."""
        return self.ordered and self.on_error == "raise"

    def __post_init__(self) -> None:
        require_callable("callback", self.callback)
        self.__dict__["_wanted"] = wanted_by(self.callback)
        for name, value in (("buffer", self.buffer), ("max_workers", self.max_workers), ("chunksize", self.chunksize)):
            if value != "auto" and not (value is None and name == "max_workers"):
                require_at_least(name, value, 1)
        check_executor(self.executor, self.callback, self.max_workers)
        if self.timeout is not None:
            require_positive_seconds("timeout", self.timeout)
        require_at_least("retries", self.retries, 0)
        require_seconds("backoff", self.backoff)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in self.retry_on):
            raise TypeError(f"retry_on must be an exception class or several, got {self.retry_on!r}")
        if self.on_error not in ("raise", "skip") and not callable(self.on_error):
            raise ValueError(f'on_error must be "raise", "skip" or a function of the error and the item, got {self.on_error!r}')
        self._check_max_failures()

    def _check_max_failures(self) -> None:
        most = self.max_failures
        if most is None:
            return
        if self.on_error == "raise":
            raise ValueError('max_failures needs on_error="skip" or a function: with "raise" the first failure ends the stream')
        if isinstance(most, Fraction):
            if not 0 < most < 1:
                raise ValueError(f"max_failures must be between 0 and 1 where it is a Fraction of the items, got {most!r}")
        elif isinstance(most, float):
            raise TypeError(f"max_failures must be a count or a fractions.Fraction of the items, got {most!r} (float)")
        else:
            require_at_least("max_failures", most, 0)

    def apply(self, items: Iterator[T]) -> Iterator[U]:
        return self._results(items, StageReport(self.describe()))

    def start(self, upstream: Iterable[T], context: Context) -> Iterator[U]:
        report = context.report(self)
        return self._results(iter(upstream), report)

    @property
    def wanted(self) -> Wanted | None:
        wanted: Wanted | None = self.__dict__.get("_wanted")
        return wanted

    def follow(self, steps: Iterator[Step], memory: dict[str, Any], following: Following) -> Iterator[Step]:
        keys = None if self.wanted is None else following.keys(self.wanted)
        report = following.context.report(self)
        progress = Progress(memory, following.below, None if self.on_error == "raise" else report)
        pulled: Iterator[Any] = progress.pulled(steps)
        results: Iterator[Any] = self._results(pulled, report, Followed.of(self, keys), progress.passed)
        for number, own, result in results:
            progress.passed_number(number)
            yield own, result

    def check(self, memory: Mapping[str, Any]) -> None:
        check_progress(memory)

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return ids

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        if not ids:
            return []
        strict = replace(self, ordered=True, on_error="raise", max_failures=None)
        strict.__dict__["_home"] = self._home  # the process in which a live executor was given
        steps = zip(ids, following.remake(ids), strict=True)
        # With a report of its own: what is made again was counted before.
        aside = replace(following, below=list, context=Context(following.context.epoch, following.context.path))
        return [item for _, item in strict.follow(steps, {}, aside)]

    def _results(
        self,
        items: Iterator[T],
        report: StageReport,
        callback: Callable[..., Any] | None = None,
        passed: Callable[[Any], object] = id,
    ) -> Iterator[U]:
        """The results.

        Args:
            items: What the callback is called with.
            report: Told what becomes of them.
            callback: Takes the place of the stage's own.
            passed: Told of each item that is left out.
        """
        position, asking = 0, False  # read by messages: results given so far; whether the stages before were asked
        policy = Policy(self.timeout, self.retries, self.retry_on, self.backoff, stops=self.on_error == "raise")
        call = Call(self.callback if callback is None else callback, policy)
        # A callback that takes the place of the stage's own is compiled already, as far as it can be.
        compiled = self.executor == "numba" and callback is not None
        executor, workers = (None, self.max_workers or 1) if compiled else (self.executor, self.max_workers)
        place = choose_place(executor, call, workers, self.buffer, self._home)
        chunksize = None if self.chunksize == "auto" else self.chunksize
        tuner = Tuner.of(self.max_workers, self.buffer, report.chosen)
        report.calls = report.calls or Tally()
        with Flow(
            items,
            place,
            buffer=self.buffer,
            ordered=self.ordered,
            chunksize=chunksize,
            stops=policy.stops,
            tuner=tuner,
            tally=report.calls,
            name=describe_callable(self.callback),
        ) as flow:
            del items
            for chunk in iter(flow.take, None):
                values, failures = chunk.outcome.values, chunk.outcome.failures
                if not failures:
                    report.items += len(values)
                    chunk.items.clear()  # nothing is kept of what may be large
                    if len(values) == 1:
                        yield values.pop()
                        position += 1
                if failures:
                    for value in self._surviving(chunk, report, passed):
                        yield value
                        position += 1
                        del value
                else:
                    left = iter(values)
                    position += len(values) - 1  # of the last one; messages take off what is left
                    yield from left
                    position += 1
                    del left
                if chunk.outcome.fatal is not None:
                    _lost(chunk)
                del chunk, values, failures
            if flow.error is not None:
                asking = True  # noqa: F841  # as said above
                raise flow.error

    def _surviving(self, chunk: Chunk, report: StageReport, passed: Callable[[Any], object]) -> Iterator[U]:
        """The results of a chunk, up to a failure that ends the stream; others are counted on the way."""
        seen, begin = report.items, 0
        for number, (offset, _) in enumerate(chunk.outcome.failures):
            yield from chunk.outcome.values[begin : offset - number]
            begin = offset - number
            report.items = seen + offset + 1
            self._failed(chunk, number, report)
            passed(chunk.items[offset])
        yield from chunk.outcome.values[begin:]
        report.items = seen + chunk.outcome.count

    def _failed(self, chunk: Chunk, number: int, report: StageReport) -> None:
        """Raise a failure, or count it, as `on_error` says."""
        offset, error = chunk.outcome.failures[number]
        chunk.outcome.failures[number] = (offset, _DEALT_WITH)  # the traceback of an error knows the chunk
        item, position = chunk.items[offset], chunk.start + offset  # noqa: F841  # read by messages
        try:
            if self.on_error == "raise" or not isinstance(error, Exception):
                raise error
            report.skipped += 1
            kind = type(error).__name__
            report.kinds[kind] = report.kinds.get(kind, 0) + 1
            if callable(self.on_error):
                self.on_error(error, item.item if isinstance(item, Pulled) else item)
            elif report.kinds[kind] == 1:
                what = f"{kind}: {error}"
                _log.warning("%s skips %s: %s; more of this kind are only counted", report.stage, describe_item(item), what)
            if self._are_too_many(report):
                raise TooManyFailuresError(
                    f"{report.skipped} of {report.items} items failed ({report.what_failed()}), "
                    f"max_failures={self.max_failures!r} allows fewer"
                ) from error
        finally:
            del error

    def _are_too_many(self, report: StageReport) -> bool:
        if self.max_failures is None:
            return False
        if isinstance(self.max_failures, Fraction):
            # Of as many items as one failure is allowed for, at least: the first failure alone is never too many.
            return report.skipped > self.max_failures * max(report.items, math.ceil(1 / self.max_failures))
        return report.skipped > self.max_failures

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["executor"] = portable_executor(self.executor)
        return state


def _lost(chunk: Chunk) -> None:
    """Raise what ended the place: it is not about one item."""
    error, chunk.outcome.fatal = chunk.outcome.fatal, None
    try:
        if error is not None:
            raise error
    finally:
        del error
