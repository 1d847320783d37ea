"""Processes of ours: how one is started, watched and ended, and what it does first."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Final, Generic, Protocol, TypeVar
from weakref import WeakSet

import numpy as np
import torch

from squirrel_torch.execution.page import Page

__all__ = ["Closable", "GivenUp", "OwnProcess", "one_at_a_time", "seed_generators"]

_GLANCE: Final = 1.0


def seed_generators(seed: int) -> None:
    """Seed the generators that callbacks use without asking."""
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)


# -- the side of the parent --------------------------------------------------------------------------------------------

_starting = threading.Lock()
_processes: WeakSet[OwnProcess[Any]] = WeakSet()


def _forget() -> None:
    """In a process that was forked meanwhile: keep nothing open that belongs to the children of the other."""
    global _starting
    _starting = threading.Lock()  # the other may have been starting one
    for process in list(_processes):
        with suppress(Exception):
            process.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class GivenUp(Exception):  # noqa: N818  # an event
    """Nobody waits any more for what was to be started."""


def _never() -> bool:
    return False


@contextmanager
def one_at_a_time(given_up: Callable[[], bool] = _never) -> Iterator[None]:
    """Start one process at a time, so that none inherits what belongs to another that is being started.

    Raises:
        GivenUp: If `given_up` says so.
    """
    lock = _starting
    while not lock.acquire(timeout=_GLANCE / 20):
        if given_up():
            raise GivenUp
    try:
        yield
    finally:
        lock.release()


class Closable(Protocol):
    """What can be let go of."""

    def close(self) -> None:
        """Let go of it."""


P = TypeVar("P", bound=Page)


class OwnProcess(Generic[P]):
    """A process that runs a function of ours; it ends with this one, however that ends.

    Args:
        context: Of `multiprocessing`.
        main: The function; it has to be found by its name.
        arguments: For it, beside the connection and the page.
        page: What both sides see; closed with the rest.
        name: Of the process.
        tied: Whether it ends with the thread that starts it, too.
        owned: What else is closed with it, and in forks of this process.
        given_up: Whether nobody waits for it any more.

    Raises:
        GivenUp: If `given_up` says so before it was started.
        Exception: Whatever pickling the arguments, or the system, raises.
    """

    def __init__(
        self,
        context: BaseContext,
        main: Callable[..., object],
        arguments: tuple[Any, ...],
        page: P,
        name: str,
        *,
        tied: bool,
        owned: Sequence[Closable] = (),
        given_up: Callable[[], bool] = _never,
    ) -> None:
        self.page = page
        self._owned: list[Closable] = [page, *owned]
        try:
            with one_at_a_time(given_up):
                self._start(context, main, arguments, name, tied)
        except BaseException:
            self.let_go()
            raise

    def _start(
        self, context: BaseContext, main: Callable[..., object], arguments: tuple[Any, ...], name: str, tied: bool
    ) -> None:
        self.connection, there = context.Pipe()
        self.owns(self.connection)
        # A fork has all of this too.
        inherited = tuple(self._owned) if context.get_start_method() == "fork" else ()
        self.process: BaseProcess = context.Process(  # type: ignore[attr-defined]  # every start method's context has it
            target=_run, args=(main, there, inherited, os.getpid(), tied, type(self.page), arguments), name=name, daemon=True
        )
        try:
            _start(self.process, interrupted=context.get_start_method() == "forkserver")
        finally:
            there.close()
        self.pid: int = self.process.pid or 0
        _processes.add(self)
        with suppress(OSError):  # it has ended already: whoever talks to it will see
            send_handle(self.connection, self.page.shared.handle, self.pid)

    def owns(self, thing: Closable) -> None:
        """Let `thing`, which is made later, be closed with it as well."""
        self._owned.append(thing)

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return bool(self.process.is_alive())

    def stack(self, ours: str) -> str:
        """Where its threads are; empty if it does not say. See `Page.ask_stack`."""
        return self.page.ask_stack(self.pid, ours) if self.is_alive() else ""

    def kill(self) -> str:
        """End it at once, if it still lives; how it ended."""
        _processes.discard(self)  # first: a fork in between must not close these numbers, which may be others' by then
        with suppress(ValueError, AttributeError):
            self.process.kill()
        self.process.join()
        code = self.process.exitcode
        with suppress(ValueError):  # somebody else has waited for it, so nobody can say that it has ended
            self.process.close()  # its descriptors would else wait for the garbage collector
        self.let_go()
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"signal {signal.Signals(-code).name}"
        return f"exit code {code}"

    def end(self, until: float) -> str:
        """Wait for its end until `time.monotonic()` is `until`, then end it; how it ended."""
        self.process.join(max(until - time.monotonic(), 0))
        return self.kill()

    def let_go(self) -> None:
        """Close what is shared with it."""
        _processes.discard(self)
        for thing in self._owned:
            thing.close()

    def disown(self) -> None:
        """In a fork of the parent: close all that has to do with it."""
        self.let_go()
        # Those in which a parent sees the end of its child, and the child that of its parent.
        finalizer = getattr(getattr(self.process, "_popen", None), "finalizer", None)
        for handle in getattr(finalizer, "_args", None) or ():
            os.close(handle)


def _start(process: Any, *, interrupted: bool) -> None:
    """Start a process also where multiprocessing would not let one: in a worker of a DataLoader, which is a daemon itself.

    It forbids that because such children may outlive their parent; ours see to it that they don't.

    Args:
        process: The process.
        interrupted: Whether Ctrl-C may come through while it starts.
    """
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # private
    daemon = config.get("daemon")
    config["daemon"] = False
    try:
        with warnings.catch_warnings(), nullcontext() if interrupted else _uninterrupted():
            # From 3.12 on Python warns of every fork in a process with threads. The child touches none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    finally:
        config["daemon"] = daemon


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C from a child until it has said that it does not care: it would print a traceback from deep in an import.

    What is kept from this thread is kept from its children too. (A fork server would keep it from those of others.)
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- the side of the child ---------------------------------------------------------------------------------------------


def _run(
    main: Callable[..., object],
    connection: Connection,
    inherited: Sequence[Closable],
    parent: int,
    tied: bool,
    page: type[Page],
    arguments: tuple[Any, ...],
) -> None:
    """What a process of ours does first.

    Args:
        main: What it does then.
        connection: To the parent, which sends the handle of a page first.
        inherited: What this process has of the parent's, being a fork.
        parent: Its process id.
        tied: Whether to end with the thread that started it, too.
        page: The class of the page.
        arguments: For `main`.
    """
    for thing in inherited:
        thing.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent sees to it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it may have children
    _die_with(parent, tied)
    try:
        shared = page(recv_handle(connection))
    except (OSError, EOFError, RuntimeError):  # the parent is gone
        return
    shared.take_stacks()
    torch.set_num_threads(1)  # as in the workers of a DataLoader: the processes are beside each other already
    main(connection, shared, *arguments)


def _die_with(parent: int, tied: bool) -> None:
    """Let this process end when the parent does, however that ends and whatever this one is doing."""
    watcher = threading.Thread(target=_die_with_parent, name="squirrel_torch_parent", daemon=True)
    watcher.start()
    if sys.platform == "linux" and os.getppid() == parent:  # behind a fork server the watcher has to do
        if tied:
            with suppress(OSError, AttributeError):
                # PR_SET_PDEATHSIG: when the thread ends that started this process.
                ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)


def _die_with_parent() -> None:
    parent, launcher = multiprocessing.parent_process(), os.getppid()
    if parent is not None:
        # The sentinel alone is not enough: forks that came later hold its other end too.
        while not wait([parent.sentinel], _GLANCE) and os.getppid() == launcher:
            pass
        os._exit(1)
