"""A call on its way to processes that somebody else has opened: the callback goes there once, not with each chunk."""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from squirrel_torch.execution.call import Call, Gate, LocalGate, Outcome
from squirrel_torch.execution.carry import carry_failures
from squirrel_torch.execution.watch import attended

__all__ = ["SMALL", "RemoteCall", "by_value", "work_on", "work_on_bytes"]

SMALL: Final = 16_384
"""Pickled calls of so many bytes may go along with each chunk."""

_KEPT: Final = 8

_calls: OrderedDict[str, Call] = OrderedDict()  # by token: those that were used last in this process
_lock = threading.Lock()


class RemoteCall:
    """A call that may be pickled many times and is carried once.

    Pickled, it is a token and the bytes of the call, or the name of a temporary file that holds them if they are many.

    Args:
        call: The call.
        by_name: Whether the other side has the main module of this process, as children of multiprocessing do: what it
            defines goes by its name. A class that goes by value is another class over there.
    """

    def __init__(self, call: Call, *, by_name: bool) -> None:
        self._by_name = by_name
        self.call: Call | None = call
        self.problem: Exception | None = None
        self.arrived = False
        self._token = uuid4().hex
        self._payload: bytes | str | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        with self._lock:
            if self._payload is None:
                data = pickle.dumps(self.call) if self._by_name else by_value(self.call)
                self._payload = data if len(data) <= SMALL else _to_file(data)
        return _arrived, (self._token, self._payload)

    def close(self) -> None:
        """Remove what was written."""
        with self._lock:
            if isinstance(self._payload, str):
                Path(self._payload).unlink(missing_ok=True)


def by_value(call: Call | None) -> bytes:
    """`call` as bytes for processes that do not have the main module of this one."""
    import cloudpickle

    data: bytes = cloudpickle.dumps(None if call is None else _Plain(call))
    return data


class _Plain:
    """A call on its way without what it does itself when it is pickled."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return Call, (self._call.callback, self._call.policy)


def _to_file(data: bytes) -> str:
    with tempfile.NamedTemporaryFile(prefix="squirrel_torch_", suffix=".call", delete=False) as file:
        file.write(data)
    return file.name


def _arrived(token: str, payload: bytes | str) -> RemoteCall:
    remote = RemoteCall.__new__(RemoteCall)
    remote.call, remote.problem, remote.arrived = None, None, True
    try:
        remote.call = _load(token, payload)
    except Exception as error:  # noqa: BLE001  # while a pool's process unpickles, an exception would break the pool
        remote.problem = error
    return remote


def _load(token: str, payload: bytes | str) -> Call:
    with _lock:
        call = _calls.get(token)
        if call is None:
            data = payload if isinstance(payload, bytes) else Path(payload).read_bytes()
            call = _calls[token] = pickle.loads(data)  # noqa: S301  # from the process that submits
            if len(_calls) > _KEPT:
                _calls.popitem(last=False)
        _calls.move_to_end(token)
        return call


def work_on_bytes(token: str, data: bytes, items: list[Any], limit: float) -> Outcome:
    """Have a pickled call work on a chunk; it is loaded once in each process."""
    return work_on(_arrived(token, data), items, LocalGate(), limit)


def work_on(remote: RemoteCall, items: list[Any], gate: Gate, limit: float) -> Outcome:
    """Have the call work on a chunk, in whatever thread or process this is."""
    outcome = Outcome(fatal=remote.problem) if remote.call is None else attended(remote.call, items, gate, limit)
    outcome.worker = _here(remote.arrived)
    return carry_failures(outcome) if remote.arrived else outcome


def _here(arrived: bool) -> str:
    """Which thread this is, and if the call has come a long way of which process."""
    thread = threading.current_thread()
    if not arrived:
        return thread.name
    return f"process {os.getpid()}" if thread is threading.main_thread() else f"process {os.getpid()}, {thread.name}"
