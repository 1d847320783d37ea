"""Whether a stage keeps the promises that all stages make."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.blame import NOTE_PREFIX
from squirrel_torch.iterstream.iterable import IterableSource
from squirrel_torch.iterstream.stage import Stage
from squirrel_torch.testing.promises import require

__all__ = ["check_stage"]

_PATIENCE = 5.0
"""Seconds that threads and processes get to end."""


def check_stage(stage: Stage[Any, Any], items: Sequence[Any], *, read: Callable[[Any], Any] = lambda item: item) -> None:
    """Try whether a stage keeps the promises that all stages make.

    * It is a frozen dataclass and its description shows each argument that has no default.
    * It can be pickled, lambdas included, and the copy does the same.
    * Two runs of one epoch agree, also when they take turns.
    * An empty stream is no error.
    * A run that is abandoned closes its source, and leaves no thread and no process.
    * An error of the source, and of each of its callables at each of their calls, comes out with its own type and one note
      that names the stage; asking for more raises it again.

    Args:
        stage: The stage.
        items: What the streams are made of. The more there are, the more positions are tried.
        read: Makes of what the stage gives something that can be compared, such as the value of a lazy object.

    Raises:
        AssertionError: With the promise that is not kept.

    Example:
        >>> from squirrel_torch.iterstream.stages import Map
        >>> check_stage(Map(lambda x: x + 1), [1, 2, 3])
    """
    items = list(items)
    _check_description(stage)
    expected = [read(item) for item in _pipeline(stage, items).run(epoch=0)]
    _check_copy(stage, items, read, expected)
    _check_runs(stage, items, read, expected)
    list(_pipeline(stage, []))
    _check_abandoned(stage, items)
    _check_source_error(stage, items)
    for field in dataclasses.fields(stage):  # type: ignore[arg-type]  # seen to be one
        if callable(getattr(stage, field.name)):
            _check_callback_errors(stage, field.name, items)


def _pipeline(stage: Stage[Any, Any], items: Iterable[Any] | Callable[[], Iterable[Any]]) -> Composable[Any]:
    return IterableSource(items).then(stage)


def _check_description(stage: Stage[Any, Any]) -> None:
    parameters = getattr(type(stage), "__dataclass_params__", None)
    require(parameters is not None, f"{type(stage).__name__} must be a dataclass: its fields are its arguments")
    require(parameters.frozen, f"{type(stage).__name__} must be frozen: a stage does not change")  # type: ignore[union-attr]  # there, by the line above
    for field in dataclasses.fields(stage):  # type: ignore[arg-type]  # seen to be one
        silent = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        require(silent or f"{field.name}=" in stage.describe(), f"{stage.describe()} must show its argument {field.name}")


def _check_copy(stage: Stage[Any, Any], items: list[Any], read: Callable[[Any], Any], expected: list[Any]) -> None:
    copy = pickle.loads(pickle.dumps(stage))  # noqa: S301  # bytes of our own, made one call before
    given = [read(item) for item in _pipeline(copy, items).run(epoch=0)]
    require(_same(given, expected), f"a pickled copy of {stage.describe()} gives {given!r} instead of {expected!r}")


def _check_runs(stage: Stage[Any, Any], items: list[Any], read: Callable[[Any], Any], expected: list[Any]) -> None:
    pipeline = _pipeline(stage, items)
    again = [read(item) for item in pipeline.run(epoch=0)]
    require(_same(again, expected), f"a second run of {stage.describe()} gives {again!r} instead of {expected!r}")
    first, second = [], []
    with pipeline.run(epoch=0) as one, pipeline.run(epoch=0) as other:
        for item in one:
            first.append(read(item))
            second += [read(item) for item in islice(other, 1)]
        second += [read(item) for item in other]
    require(
        _same(first, expected) and _same(second, expected),
        f"two runs of {stage.describe()} that take turns disturb each other: {first!r} and {second!r} instead of {expected!r}",
    )


def _check_abandoned(stage: Stage[Any, Any], items: list[Any]) -> None:
    closed = threading.Event()

    def source() -> Iterator[Any]:
        try:
            yield from items
        finally:
            closed.set()

    threads, processes = set(threading.enumerate()), set(multiprocessing.active_children())
    run = iter(_pipeline(stage, source))
    given = list(islice(run, 1))
    del run
    require(closed.is_set() or not given, f"a run of {stage.describe()} that was abandoned has not closed its source")
    deadline = time.monotonic() + _PATIENCE
    while left := (set(threading.enumerate()) - threads) | (set(multiprocessing.active_children()) - processes):
        require(time.monotonic() < deadline, f"a run of {stage.describe()} that was abandoned left {left}")
        time.sleep(0.01)


class _PlannedError(Exception):
    """What the checks raise; it carries what a message can't."""

    def __init__(self, code: int, detail: dict[str, int]) -> None:
        super().__init__(code, detail)


def _check_source_error(stage: Stage[Any, Any], items: list[Any]) -> None:
    for position in range(len(items) + 1):
        asked = threading.Event()
        failing = _pipeline(stage, _failing_source(items[:position], asked))
        with failing.run() as run, suppress(_PlannedError):
            list(run)
        if asked.is_set():  # otherwise the stage ends before it comes to this item
            _check_failing(failing, "in the source")


def _failing_source(items: list[Any], asked: threading.Event) -> Callable[[], Iterator[Any]]:
    def source() -> Iterator[Any]:
        yield from items
        asked.set()
        raise _PlannedError(404, {"after": len(items)})

    return source


def _check_callback_errors(stage: Stage[Any, Any], name: str, items: list[Any]) -> None:
    for position in range(len(items)):
        callback = _FailsAt(getattr(stage, name), position)
        failing = dataclasses.replace(stage, **{name: callback})  # type: ignore[type-var]  # seen to be one
        if _calls(failing, items, callback) <= position:
            return  # it is called less often than this, or not by the stage
        callback.calls = 0
        _check_failing(_pipeline(failing, items), f"in stage 1 of 1, {type(stage).__name__}(")


def _calls(stage: Stage[Any, Any], items: list[Any], callback: _FailsAt) -> int:
    with suppress(_PlannedError):
        list(_pipeline(stage, items))
    return callback.calls


class _FailsAt:
    """A callable that fails at one of its calls."""

    def __init__(self, function: Callable[..., Any], position: int) -> None:
        self._function = function
        self._position = position
        self._lock = threading.Lock()
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            call = self.calls
            self.calls += 1
        if call == self._position:
            raise _PlannedError(404, {"call": call})
        return self._function(*args, **kwargs)


def _check_failing(pipeline: Composable[Any], place: str) -> None:
    run = iter(pipeline)
    seen = []
    for _ in range(2):
        try:
            list(run)
        except _PlannedError as error:
            seen.append(error)
            notes = [note for note in getattr(error, "__notes__", []) if note.startswith(NOTE_PREFIX)]
            require(len(notes) == 1 and place in notes[0], f"an error {place}) of {pipeline!r} must say so once, got {notes}")
            require(error.args[0] == 404, f"an error must keep its arguments, got {error.args!r}")
    require(len(seen) == 2, f"{pipeline!r} failed and then ended quietly, or swallowed an error: it raised {seen}")


def _same(one: Any, other: Any) -> bool:
    if hasattr(one, "shape") or hasattr(other, "shape"):
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
