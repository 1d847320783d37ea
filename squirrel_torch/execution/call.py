"""A callback as it runs in its place: items in, an outcome out."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from math import inf
from time import monotonic_ns, perf_counter, thread_time
from typing import Any, Protocol, TypeAlias

from squirrel_torch.describe import describe_callable, describe_item
from squirrel_torch.errors import StageTimeout
from squirrel_torch.portable import from_portable, to_portable

__all__ = ["Call", "Gate", "LocalGate", "Mark", "Outcome", "Policy", "Progress", "belongs_to", "is_of"]

_jitter = random.SystemRandom()  # draws nothing from the generators that belong to the user, and forks may share it
_LONGEST_PAUSE = 30.0
_PART = 256
_QUICK = 2e-4


@dataclass(frozen=True)
class Policy:
    """What becomes of a call that fails or takes too long.

    Args:
        timeout: Seconds for one attempt; None is no limit.
        retries: Attempts after the first.
        retry_on: The exceptions that are worth another attempt.
        backoff: Seconds before the second attempt. Each further pause may be twice as long; how long it is, is drawn evenly
            between nothing and that ("full jitter", M. Brooker, "Exponential Backoff And Jitter", AWS 2015).
        stops: Whether a failure ends the stream: what stands behind it in its chunk need not run.
    """

    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    backoff: float = 0.1
    stops: bool = True

    def tries_again(self, error: BaseException, used: int) -> bool:
        """Whether there is another attempt after `used` of them."""
        return used <= self.retries and isinstance(error, self.retry_on) and isinstance(error, Exception)

    def pause(self, used: int) -> float:
        """Seconds to wait before the next attempt."""
        return _jitter.uniform(0, min(self.backoff * 2.0 ** (used - 1), _LONGEST_PAUSE))


@dataclass
class Outcome:
    """What became of the first items of a chunk; the others have not been touched.

    Args:
        values: The results, without those that failed.
        failures: Offset in the chunk and exception of each that failed.
        seconds: How long it took, in the eyes of whoever dispatches.
        fatal: The place can't go on: raised whatever `on_error` says.
        worked: How long it took where it ran.
        cpu: Seconds of CPU time of the thread that it ran in; None where that can't be told.
        retries: Attempts after the first.
        began: When work on it began, by `perf_counter` where it ran; 0 where that is not known.
        worker: Who worked on it, in words; empty where that is not known.
    """

    values: list[Any] = field(default_factory=list)
    failures: list[tuple[int, BaseException]] = field(default_factory=list)
    seconds: float = 0.0
    fatal: BaseException | None = None
    worked: float = 0.0
    cpu: float | None = None
    retries: int = 0
    began: float = 0.0
    worker: str = ""

    @property
    def count(self) -> int:
        """How many items it is about."""
        return len(self.values) + len(self.failures)

    def add(self, other: Outcome) -> None:
        """Put the outcome of the items behind these onto it."""
        self.failures += [(self.count + offset, error) for offset, error in other.failures]
        self.values += other.values
        self.fatal = self.fatal or other.fatal
        self.worked += other.worked
        self.cpu = None if self.cpu is None or other.cpu is None else self.cpu + other.cpu
        self.retries += other.retries
        self.began = self.began or other.began

    def fail(self, error: BaseException) -> None:
        """The next item has failed."""
        self.failures.append((self.count, error))


class Gate(Protocol):
    """Whether the work still goes on."""

    @property
    def closed(self) -> bool:
        """Whether nothing new may be started."""

    def begins(self, part: list[Any]) -> None:
        """This thread works on these items now."""

    def pause(self, seconds: float) -> bool:
        """Wait, unless the gate is closed or is being closed; whether it is still open."""


_home = threading.local()


def belongs_to(gate: Gate) -> None:
    """Say that this thread works for whoever has `gate`: it can't wait for itself to end."""
    _home.gate = gate


def is_of(gate: Gate) -> bool:
    """Whether this thread works for whoever has `gate`, or may be about to: a thread that is just being born has no name."""
    return getattr(_home, "gate", None) is gate or isinstance(threading.current_thread(), threading._DummyThread)


class LocalGate:
    """A gate between threads."""

    def __init__(self) -> None:
        self.closed: bool = False
        self._event = threading.Event()
        self._parts: dict[int, list[Any]] = {}

    def begins(self, part: list[Any]) -> None:
        """This thread works on these items now: they are taken away from it when the gate is closed."""
        self._parts[threading.get_ident()] = part
        if self.closed:
            part.clear()

    def close(self) -> None:
        """Let nothing new be started."""
        self.closed = True
        self._event.set()
        for part in list(self._parts.values()):
            part.clear()

    def pause(self, seconds: float) -> bool:
        """Wait, unless the gate is closed or is being closed; whether it is still open."""
        return not self._event.wait(seconds)

    def __reduce__(self) -> Any:
        # In another process nobody can close it.
        return LocalGate, ()


Mark: TypeAlias = "MutableSequence[int] | memoryview[int]"
"""The offset of the item that is being worked on; since when by `time.monotonic_ns`, after a pause that is in the future, kept
up only where there is a time limit; and 1 when no further item may be started."""


class Progress(Protocol):
    """How far a chunk is, for whoever watches."""

    @property
    def mark(self) -> Mark:
        """Kept up by whoever works."""

    def begin(self, outcome: Outcome) -> None:
        """Work begins; what comes of it will be put onto `outcome`."""


def _extended(values: list[Any], results: Iterator[Any]) -> BaseException | None:
    """Put results onto `values` until there are no more, or one raises: what it raised. Those before it stay."""
    try:
        values.extend(results)
    except BaseException as error:  # noqa: BLE001  # raised again where the stream is read
        return error
    return None


class Call:
    """A callback under a policy. It can be pickled if cloudpickle can carry the callback.

    Args:
        callback: Called with each item.
        policy: What becomes of calls that fail or hang.
    """

    def __init__(self, callback: Callable[[Any], Any], policy: Policy) -> None:
        self.callback = callback
        self.policy = policy

    def __getstate__(self) -> dict[str, Any]:
        return to_portable(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(from_portable(state))

    def run(
        self, items: Sequence[Any], gate: Gate, limit: float = inf, used: int = 0, progress: Progress | None = None
    ) -> Outcome:
        """Call it with each item, here and now.

        Args:
            items: The chunk.
            gate: Closed when the stream ends: items that have not been started then stay so.
            limit: Seconds after which the rest of the chunk is given back untouched.
            used: Attempts that have been made for the first item.
            progress: Told how far it is.
        """
        outcome = Outcome()
        if progress is not None:
            progress.begin(outcome)
        began, cpu = now, _ = perf_counter(), thread_time()
        part = 1
        while (count := outcome.count) < len(items) and not gate.closed:
            # The clock is looked at after each item, or after several while these take no time.
            since = now
            self._work(items, min(count + part, len(items)), outcome, gate, used, progress)
            now = perf_counter()
            if now - began > limit or (outcome.failures and self.policy.stops):
                break
            part, used = min(2 * part, _PART) if now - since < _QUICK else 1, 0
        gate.begins([])
        outcome.began = began
        outcome.seconds = outcome.worked = now - began
        outcome.cpu = thread_time() - cpu
        return outcome

    def _work(self, items: Sequence[Any], end: int, outcome: Outcome, gate: Gate, used: int, progress: Progress | None) -> None:
        """Put the outcome of the items up to `end` onto `outcome`; where a failure ends the stream, up to that."""
        while (start := outcome.count) < end:
            part = list(items[start:end])
            gate.begins(part)
            results = map(self.callback, part) if progress is None else self._marked(part, start, progress.mark)
            error = _extended(outcome.values, results)
            done = outcome.count
            if error is None and (done == end or gate.closed or (progress is not None and progress.mark[2])):
                return
            if error is None:
                error = RuntimeError("the callback raised StopIteration")  # which ends a map quietly
            self._again(items[done], error, 0 if done > start else used, outcome, gate, progress)
            del error
            if outcome.failures and self.policy.stops:
                return
            used = 0

    def _marked(self, items: Sequence[Any], offset: int, mark: Mark) -> Iterator[Any]:
        """The results, each item marked before it is worked on."""
        callback, timed = self.callback, self.policy.timeout is not None
        for number, item in enumerate(items, offset):
            if mark[2]:
                return
            if timed:
                mark[1] = monotonic_ns()  # first: an old item with a new time is no harm
            mark[0] = number
            yield callback(item)

    def _again(
        self, item: Any, error: BaseException, used: int, outcome: Outcome, gate: Gate, progress: Progress | None
    ) -> None:
        """Try until it works or may not be tried again."""
        while True:
            used += 1
            if gate.closed or not self.policy.tries_again(error, used):
                outcome.failures.append((outcome.count, error))
                break
            pause = self.policy.pause(used)
            if progress is not None:
                progress.mark[1] = monotonic_ns() + int(pause * 1e9)
                progress.mark[0] = outcome.count
            if not gate.pause(pause):
                continue
            outcome.retries += 1
            try:
                outcome.values.append(self.callback(item))
                break
            except BaseException as another:  # noqa: BLE001  # raised again where the stream is read
                error = another
        del error

    def too_long(self, item: Any, where: str, stack: str) -> StageTimeout:
        """The error for an item that hangs."""
        return StageTimeout(
            f"{describe_callable(self.callback)} has not returned within {self.policy.timeout:g} s for the item "
            f"{describe_item(item)}; {where} was in:\n{stack.rstrip() or '(no stack could be had)'}",
            stack,
        )
