"""The other side of `places/processes.py`: what runs in a process of its own."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from itertools import takewhile
from multiprocessing import current_process, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from typing import Any, Final

import numpy as np
import torch

from squirrel_torch.execution.call import Call, Outcome
from squirrel_torch.execution.carry import Carried, carry_failures
from squirrel_torch.execution.channel import Channel, ChannelClosed, SharedMemory

__all__ = ["DUMP_SIGNAL", "NO_ITEM", "Control", "die_with", "seed_generators", "serve"]

NO_ITEM: Final = -1
DUMP_SIGNAL: Final = getattr(signal, "SIGUSR1", None)
"""Makes a child write where its threads are, also while it is deep in C code."""

_NICE = 0.05
_GLANCE = 1.0
_STACK_AT: Final = 64
_STACK_ROOM: Final = 65_536


class Control:
    """A page that both sides see: whether to go on, which item is being worked on since when, and a stack."""

    def __init__(self, handle: int | None = None) -> None:
        self.shared = SharedMemory(_STACK_AT + _STACK_ROOM, handle)
        self.mark = memoryview(self.shared.memory)[:24].cast("q")
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

    # as a file for faulthandler

    def take_stacks(self) -> None:
        """Have `faulthandler` write here when the signal comes."""
        if DUMP_SIGNAL is not None and hasattr(faulthandler, "register"):
            os.lseek(self.shared.handle, _STACK_AT, os.SEEK_SET)
            faulthandler.register(DUMP_SIGNAL, file=self.shared.handle, all_threads=True)

    def stack(self) -> str:
        """What `faulthandler` has written, so far."""
        text = os.pread(self.shared.handle, _STACK_ROOM, _STACK_AT).rstrip(bytes(1)).decode(errors="replace")
        lines: list[str] = []
        for thread in text.split("\n\n"):
            if "in _die_with_parent" not in thread:
                # From the callback's own frames outwards come ours, which are the same for all.
                lines += takewhile(lambda line: "execution/call.py" not in line, thread.splitlines())
        return "\n".join(lines)

    def close(self) -> None:
        """Let go of the page."""
        self.mark.release()
        self.shared.close()


def serve(connection: Connection, other: Connection | None, parent: int, start: Any, seed: int) -> None:
    """Work on chunks until there are no more; what runs as the process's main function.

    Args:
        connection: To the parent, which sends the handle of a `Control` first.
        other: The parent's end of it, if this process is a fork and has it too.
        parent: Its process id.
        start: The call, an initializer or None, and the initializer's arguments; or the bytes of these.
        seed: For the global random generators of this process.
    """
    if other is not None:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent sees to it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # callbacks may start processes of their own
    die_with(parent)
    control = Control(recv_handle(connection))
    control.take_stacks()
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
    torch.set_num_threads(1)  # as in the workers of a DataLoader: the processes are beside each other already
    seed_generators(seed)
    call: Call
    call, initializer, initargs = pickle.loads(start) if isinstance(start, bytes) else start  # noqa: S301  # of the parent
    if initializer is not None:
        initializer(*initargs)
    return call


def seed_generators(seed: int) -> None:
    """Seed the global generators of this process, which callbacks use without asking."""
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)


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
    checked = Outcome(seconds=outcome.seconds, fatal=outcome.fatal)
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


def die_with(parent: int, thread: bool = True) -> None:
    """Let this process end when the parent does, however that ends and whatever this one is doing.

    Args:
        parent: Its process id.
        thread: End already when the thread of the parent ends that has started this process.
    """
    watcher = threading.Thread(target=_die_with_parent, name="squirrel_torch_parent", daemon=True)
    watcher.start()
    if thread and sys.platform == "linux" and os.getppid() == parent:  # behind a fork server the watcher has to do
        with suppress(OSError, AttributeError):
            # PR_SET_PDEATHSIG: when the thread ends that started this process, which it does with its last chunk.
            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)


def _die_with_parent() -> None:
    parent, launcher = parent_process(), os.getppid()
    if parent is not None:
        # The sentinel alone is not enough: forks that came later hold its other end too.
        while not wait([parent.sentinel], _GLANCE) and os.getppid() == launcher:
            pass
        os._exit(1)
