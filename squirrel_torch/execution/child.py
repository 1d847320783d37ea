"""The other side of `places/processes.py`: what runs in a process of its own."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Final

from squirrel_torch.execution.call import Call, Outcome
from squirrel_torch.execution.carry import Carried, carry_failures
from squirrel_torch.execution.channel import Channel, ChannelClosed
from squirrel_torch.execution.luggage import Luggage
from squirrel_torch.execution.page import Page
from squirrel_torch.execution.process import seed_generators

__all__ = ["NO_ITEM", "Control", "serve"]

NO_ITEM: Final = -1

_NICE: Final = 0.05


class Control(Page):
    """A page that says whether to go on, and which item is being worked on since when."""

    def __init__(self, handle: int | None = None) -> None:
        super().__init__(handle)
        self.mark: memoryview[int] = memoryview(self.shared.memory)[:24].cast("q")
        if handle is None:
            self.mark[0] = NO_ITEM

    # as a gate

    @property
    def closed(self) -> bool:
        """Whether nothing new may be started."""
        return self.mark[2] != 0

    def close_gate(self) -> None:
        """Let nothing new be started."""
        self.mark[2] = 1

    def begins(self, part: list[Any]) -> None:
        """Nothing: the mark says when to stop."""

    def pause(self, seconds: float) -> bool:
        """Wait, unless the gate is being closed; whether it is still open."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.closed:
                return False
            time.sleep(min(left, _NICE))
        return not self.closed

    # as progress

    def begin(self, outcome: Outcome) -> None:
        """Nothing: what comes of the work is sent when it is done."""

    def close(self) -> None:
        """Let go of the page."""
        self.mark.release()
        super().close()


def serve(connection: Connection, control: Control, parent: int, start: Any, seed: int) -> None:
    """Work on chunks until there are no more; what runs as the process's main function.

    Args:
        connection: To the parent.
        control: What both sides see.
        parent: Its process id.
        start: The call, an initializer or None, and the initializer's arguments; as `Luggage` packs them.
        seed: For the global random generators of this process.
    """
    channel = Channel(connection, parent)
    try:
        call = _prepared(start, seed)
    except BaseException as error:  # noqa: BLE001  # raised where the stream is consumed
        channel.send(Carried(error))
        return
    with suppress(ChannelClosed):  # the parent is gone
        channel.send(None)
        while (outcome := _worked_on(channel, call, control)) is not None:
            _answer(channel, outcome)
            del outcome


def _answer(channel: Channel, outcome: Outcome) -> None:
    try:
        channel.send(outcome)
    except ChannelClosed:
        raise
    except Exception:  # noqa: BLE001  # a result that can't be pickled
        channel.send(_sendable(outcome))


def _prepared(start: Any, seed: int) -> Call:
    seed_generators(seed)
    call: Call
    call, initializer, initargs = Luggage.unpack(start)
    if initializer is not None:
        initializer(*initargs)
    return call


def _worked_on(channel: Channel, call: Call, control: Control) -> Outcome | None:
    """The outcome of the next chunk, ready to be sent; None if there is none."""
    try:
        task = channel.receive()
    except ChannelClosed:
        raise
    except Exception as error:  # noqa: BLE001  # an item that can't be unpickled here
        return carry_failures(Outcome(fatal=error))
    if task is None:
        return None
    items, used, limit = task
    outcome = call.run(items, control, limit, used, control)
    control.mark[0] = NO_ITEM
    return carry_failures(outcome)


def _sendable(outcome: Outcome) -> Outcome:
    """`outcome`, its results that can't be pickled turned into failures."""
    import cloudpickle

    failures = dict(outcome.failures)
    values = iter(outcome.values)
    checked = replace(outcome, values=[], failures=[])
    for offset in range(outcome.count):
        if offset in failures:
            checked.fail(failures[offset])
            continue
        value = next(values)
        try:
            cloudpickle.dumps(value)
        except Exception as error:  # noqa: BLE001  # raised where the stream is consumed
            checked.fail(Carried(TypeError(f"the result can't be pickled: {error}")))  # type: ignore[arg-type]  # until it arrives
        else:
            checked.values.append(value)
    return checked
