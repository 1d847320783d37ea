"""Whether a chain can be gone on with from everywhere."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from itertools import accumulate
from multiprocessing.connection import Connection
from typing import Any

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.digest import digest_of
from squirrel_torch.iterstream.tracking import track

__all__ = ["check_resume"]


def check_resume(*pipelines: Composable[Any], epoch: int = 0) -> None:
    """Check that chains can be resumed from before each of their items, in another process.

    Each is run once, and its state saved before each item and behind the last. Another process, which knows the chains and
    nothing else, goes on from each of these states, to the end: it must give all the items that are left, in their order.
    Numbers, text, bytes, arrays, tensors, and dicts, lists and tuples of these are compared by what is in them, other
    objects by their type. That process is the same for all chains: to try several at once takes little longer than one.

    Args:
        pipelines: The chains, such as ``IterableSource(range(20)).then(MyStage())``. All tails of each are run, so it should
            give some dozens of items.
        epoch: In which epoch.

    Raises:
        AssertionError: If a state gives other items, with the first that differs.
        TypeError: If there is no chain, or something that is none.
        Exception: Whatever the chain raises.

    Example:
        >>> from squirrel_torch import IterableSource
        >>> check_resume(IterableSource(range(9)).filter(lambda x: x % 2).shuffle(3))
    """
    if not pipelines or not all(isinstance(pipeline, Composable) for pipeline in pipelines):
        raise TypeError(f"pipelines must be chains, at least one, got {pipelines!r}; the epoch is given by its name")
    passed = [_passed(pipeline, epoch) for pipeline in pipelines]
    jobs = [(pipeline, states) for pipeline, (states, _) in zip(pipelines, passed, strict=True)]
    tails = _tails_elsewhere(jobs, epoch)
    for (pipeline, states), (_, digests) in zip(jobs, passed, strict=True):
        for number in range(len(states)):
            tail = next(tails)
            if isinstance(tail, str):
                raise AssertionError(f"{pipeline!r} can't be gone on with behind {number} items: {tail}")  # noqa: TRY004  # it failed
            _require_same(pipeline, f"the state behind {number} items", digests[number:], tail)


def _passed(pipeline: Composable[Any], epoch: int) -> tuple[list[str], list[int]]:
    """The states between its items, and what these are."""
    run = track(pipeline._links(), epoch)
    states, digests = [run.snapshot()], []
    for _, item in run:
        digests.append(digest_of(item))
        states.append(run.snapshot())
    plain = [digest_of(item) for item in pipeline.run(epoch=epoch)]
    _require_same(pipeline, "a run that keeps track", plain, digests)
    return [json.dumps(state) for state in states], digests


def _require_same(pipeline: Composable[Any], what: str, expected: list[int], given: list[int]) -> None:
    if given == expected:
        return
    pairs = enumerate(zip(expected, given, strict=False))
    first = next((number for number, (one, other) in pairs if one != other), min(len(expected), len(given)))
    raise AssertionError(
        f"{what} of {pipeline!r} gives {len(given)} items, {len(expected)} were left; item {first} of them is the first "
        "that differs"
    )


def _tails_elsewhere(jobs: list[tuple[Composable[Any], list[str]]], epoch: int) -> Iterator[Any]:
    """What comes behind each state of each chain: digests, or the text of an error."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_go_on, args=(there, jobs, epoch))
    process.start()
    there.close()
    tails: list[Any] = []
    try:
        for _, states in jobs:
            tails += [here.recv() for _ in states]
    except EOFError:
        ends = accumulate(len(states) for _, states in jobs)
        pipeline = next(pipeline for (pipeline, _), end in zip(jobs, ends, strict=True) if len(tails) < end)
        raise AssertionError(f"the process that was to go on with {pipeline!r} died: see what it wrote to stderr") from None
    finally:
        here.close()
        process.join()
    return iter(tails)


def _go_on(connection: Connection, jobs: list[tuple[Composable[Any], list[str]]], epoch: int) -> None:
    for pipeline, states in jobs:
        for state in states:
            try:
                tail: Any = [digest_of(item) for _, item in track(pipeline._links(), epoch, json.loads(state))]
            except Exception as error:  # noqa: BLE001  # raised where it was asked for
                tail = f"{type(error).__name__}: {error}"
            connection.send(tail)
