"""Callbacks in processes that belong to the stage: each has a thread here that talks to it, watches it and replaces it."""

from __future__ import annotations

import math
import multiprocessing
import os
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from multiprocessing.connection import wait
from time import monotonic, monotonic_ns
from typing import Any

import torch

from squirrel_torch.describe import describe_callable, describe_item
from squirrel_torch.errors import PipelineError, WorkerDiedError
from squirrel_torch.execution.call import Call, LocalGate, Outcome
from squirrel_torch.execution.channel import Channel, ChannelClosed
from squirrel_torch.execution.child import NO_ITEM, Control, serve
from squirrel_torch.execution.luggage import Luggage
from squirrel_torch.execution.page import PATIENCE
from squirrel_torch.execution.places.crew import AtWork, Crew
from squirrel_torch.execution.process import GivenUp, OwnProcess
from squirrel_torch.execution.watch import Lost, attend
from squirrel_torch.execution.work import Deliver

__all__ = ["processes"]

_numbers = count()

_LOOK = 1.0
"""Seconds after which a silent process is looked at: a pipe tells of a death only if nobody else holds its other end."""

_OURS = "execution/call.py"
_IDLE_DEATHS = 3
_NOT_READY = (
    "a process for async_map ended before it was ready ({}): see what it wrote to stderr (start method {!r}; with "
    'any but "fork" a script needs `if __name__ == "__main__":` around its own code)'
)


def processes(
    call: Call,
    workers: int,
    most_workers: int,
    gate: LocalGate,
    deliver: Deliver,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    start_method: str | None = None,
) -> Crew:
    """The callback in processes, one for each thread of a crew; each calls `initializer` first, if there is one."""
    recipe = _Recipe(call, initializer, initargs, start_method)
    return Crew(lambda: _ProcessRunner(recipe, gate), workers, most_workers, "process", 200e-6, gate, deliver)


class _Recipe:
    """What a new process needs to know; pickled once for all of them."""

    def __init__(
        self, call: Call, initializer: Callable[..., object] | None, initargs: tuple[Any, ...], start_method: str | None
    ) -> None:
        self.call = call
        self.context = multiprocessing.get_context(start_method)
        self.start = Luggage((call, initializer, initargs), self.context)
        # Children that are forked would draw the same random numbers, each of them.
        self.seed = torch.initial_seed() & 0xFFFF_FFFF_FFFF


class _ProcessRunner:
    """One process after the other: when one is lost, what comes next gets a new one."""

    def __init__(self, recipe: _Recipe, gate: LocalGate) -> None:
        self._recipe = recipe
        self._gate = gate
        self._vessel = _ProcessVessel(recipe, gate)

    def run(self, items: list[Any], limit: float) -> Outcome:
        began = monotonic()
        outcome = attend(self._vessel, items, self._recipe.call.policy, self._gate, limit)
        outcome.seconds = monotonic() - began  # with the way there and back: large results should travel in small chunks
        outcome.worker = self._vessel.name
        return outcome

    def stop(self) -> None:
        self._vessel.stop()

    def close(self) -> None:
        self._vessel.close()

    def at_work(self) -> AtWork | None:
        return self._vessel.at_work()


class _ProcessVessel:
    """A process that is killed when it hangs, and started again."""

    def __init__(self, recipe: _Recipe, gate: LocalGate) -> None:
        self._recipe = recipe
        self._gate = gate
        self._child: _Child | None = None

    @property
    def name(self) -> str:
        """Which process it is; empty if it is none now."""
        return "" if self._child is None else self._child.name

    def run(self, items: Sequence[Any], used: int, limit: float) -> Outcome:
        """Work on `items`. Raises Lost when one takes longer than the time limit, or the process dies."""
        child = self._given(items, used, limit)
        if child is None or self._gate.closed:
            return Outcome()
        if isinstance(child, Exception):
            return self._alone(items, used, limit, child)
        call = self._recipe.call
        try:
            outcome: Outcome = child.reply(call.policy.timeout)
        except _Hangs as hangs:
            stack = child.process.stack(_OURS)
            self.drop()
            raise Lost(hangs.offset, call.too_long(items[hangs.offset], "its process", stack)) from None
        except ChannelClosed:
            offset = max(child.control.mark[0], 0)
            how = self.drop()
            what = describe_callable(call.callback)
            died = WorkerDiedError(f"{what} took two processes with it ({how}) on the item {describe_item(items[offset])}")
            raise Lost(offset, died, killed=True) from None
        except Exception as error:  # noqa: BLE001  # a result that can't be unpickled here
            return self._alone(items, used, limit, error)
        if outcome.fatal is not None:  # an item that can't be unpickled over there
            return self._alone(items, used, limit, outcome.fatal)
        return outcome

    def _given(self, items: Sequence[Any], used: int, limit: float) -> _Child | Exception | None:
        """A process that has been given the items; or what pickling them raised; None when the stream is closed."""
        for _ in range(_IDLE_DEATHS):
            if self._gate.closed:
                return None
            child = self._child = self._child or _Child(self._recipe, self._gate)
            try:
                child.channel.send((items, used, limit))
            except ChannelClosed:  # it died while it had nothing to do
                self.drop()
            except Exception as error:  # noqa: BLE001  # raised where the stream is consumed
                return error
            else:
                return child
        raise WorkerDiedError(f"{_IDLE_DEATHS} processes died with nothing to do: see what they wrote to stderr")

    def _alone(self, items: Sequence[Any], used: int, limit: float, error: BaseException) -> Outcome:
        """The outcome where something could not be pickled: which item it is, shows when they go one by one."""
        if len(items) > 1:
            return self.run(items[:1], used, limit)  # the others will come back
        outcome = Outcome()
        outcome.fail(error.with_traceback(None))
        return outcome

    def drop(self) -> str:
        """Kill the process, if it still lives; how it ended."""
        child, self._child = self._child, None
        return "" if child is None else child.process.kill()

    def at_work(self) -> AtWork | None:
        """See `Runner`."""
        child = self._child
        offset = NO_ITEM if child is None else child.control.mark[0]
        return None if child is None or offset == NO_ITEM else AtWork(child.process, offset)

    def stop(self) -> None:
        """Start no further item."""
        child = self._child
        if child is not None:
            with suppress(ValueError):  # closed meanwhile
                child.control.close_gate()

    def close(self) -> None:
        """End the process, which has nothing to do any more."""
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Hangs(Exception):  # noqa: N818  # an event
    """A process has been at one item for too long."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class _Child:
    """A process, started; the way to talk to it, and to see what it does.

    Raises:
        WorkerDiedError: If it dies before it is ready.
        Exception: Whatever loading the callback, or the initializer, raises there.
    """

    def __init__(self, recipe: _Recipe, gate: LocalGate) -> None:
        context = recipe.context
        number = next(_numbers)
        try:
            self.control = Control()
        except OSError as error:
            raise PipelineError(f"a process for async_map needs a page of memory to share, and has none: {error}") from None
        arguments = os.getpid(), recipe.start.pack(), recipe.seed + number
        name = f"squirrel_torch_process_{number}"
        try:
            # It ends with the thread that starts it, which does with its last chunk.
            self.process = OwnProcess(context, serve, arguments, self.control, name, tied=True, given_up=lambda: gate.closed)
        except GivenUp:
            raise ChannelClosed from None
        self.name = f"process {self.process.pid}"
        self._connection = self.process.connection
        self.channel = Channel(self._connection, self.process.pid)
        self.process.owns(self.channel)
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(self._connection.fileno(), select.POLLIN)
        try:
            said = self.reply(None, gate)
        except (ChannelClosed, OSError):
            how = self.process.kill()
            raise WorkerDiedError(_NOT_READY.format(how, context.get_start_method())) from None
        if said is not None:
            self.process.kill()
            raise said
        if gate.closed:
            self.control.close_gate()

    def reply(self, timeout: float | None, gate: LocalGate | None = None) -> Any:
        """What it says next.

        Raises:
            _Hangs: If it has been at one item for more than `timeout` seconds.
            ChannelClosed: If it has died, or `gate` is closed.
            Exception: Whatever unpickling raises.
        """
        while True:
            offset, since, _ = self.control.mark
            spent = 0.0 if offset == NO_ITEM else (monotonic_ns() - since) / 1e9
            if timeout is not None and spent >= timeout:
                raise _Hangs(offset)
            look = _LOOK if gate is None else _LOOK / 20
            if self._ready(look if timeout is None else min(look, timeout - spent)):
                return self.channel.receive()
            if (not self.process.is_alive() and not self._ready(0)) or (gate is not None and gate.closed):
                raise ChannelClosed

    def _ready(self, seconds: float) -> bool:
        if self._poll is None:
            return bool(wait([self._connection], seconds))
        return bool(self._poll.poll(math.ceil(seconds * 1000)))

    def end(self) -> None:
        """Let it end."""
        with suppress(ChannelClosed):
            self.channel.send(None)
        self.process.end(monotonic() + PATIENCE)
