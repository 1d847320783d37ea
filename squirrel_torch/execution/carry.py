"""Exceptions on their way between processes: with their traceback as text, and never in a form that can't be read there."""

from __future__ import annotations

import pickle
import traceback
from contextlib import suppress
from typing import Any

from squirrel_torch.errors import PipelineError
from squirrel_torch.execution.call import Outcome

__all__ = ["Carried", "RemoteTraceback", "carry_failures"]


class RemoteTraceback(Exception):  # noqa: N818  # the cause of an error, never raised
    """Where an exception was raised in another process."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


class Carried:
    """Stands for an exception; unpickling it gives the exception, caused by a `RemoteTraceback`."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        kind = type(self._error)
        text = "".join(traceback.format_exception(self._error))
        named = (kind.__module__, kind.__qualname__, id(kind))
        try:
            said = f"{kind.__name__}: {self._error}"
        except Exception:  # noqa: BLE001  # there are such exceptions
            said = kind.__name__
        return _unpacked, (_bytes_of(self._error), named, said, text)


def _bytes_of(error: BaseException) -> bytes | None:
    """`error` as bytes that are known to give an exception again; None if there are none."""
    import cloudpickle

    parts = _Parts(error)
    for dumps, thing in ((pickle.dumps, error), (pickle.dumps, parts), (cloudpickle.dumps, error), (cloudpickle.dumps, parts)):
        try:
            data: bytes = dumps(thing)
            if isinstance(pickle.loads(data), BaseException):  # noqa: S301  # made one line before
                return data
        except Exception:  # noqa: BLE001  # an exception may hold anything, and refuse in any way
            continue
    return None


class _Parts:
    """An exception that is made without its `__init__`, which may want other arguments than its `args`."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        return _put_together, (type(self._error), self._error.args, self._error.__dict__)


def _put_together(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


def _unpacked(data: bytes | None, named: tuple[str, str, int], said: str, text: str) -> BaseException:
    error: BaseException | None = None
    if data is not None:
        try:
            error = pickle.loads(data)  # noqa: S301  # from a process of this job
        except Exception as reason:  # noqa: BLE001  # its class may exist over there only
            said += f" (which can't be read here: {reason!r})"
    if error is None:
        error = PipelineError(f"in another process: {said}")
    elif type(error).__module__ == named[0] and (kind := _own_class(named)) is not None:
        with suppress(TypeError):
            error.__class__ = kind
    error.__cause__ = RemoteTraceback(text)
    return error


def _own_class(named: tuple[str, str, int]) -> type[BaseException] | None:
    """The class of that name in this process, which a class that came by value is a copy of: `except` asks for it."""
    module, name, identity = named
    found: dict[int, type[BaseException]] = {}
    search: list[type[BaseException]] = [BaseException]
    while search:
        for kind in search.pop().__subclasses__():
            search.append(kind)
            if kind.__module__ == module and kind.__qualname__ == name:
                found[id(kind)] = kind
    # In a child that is a fork the class is at the same place. What was made from bytes just now may be there too.
    return found.get(identity)


def carry_failures(outcome: Outcome) -> Outcome:
    """`outcome`, its exceptions ready to be pickled."""
    outcome.failures = [(offset, Carried(error)) for offset, error in outcome.failures]  # type: ignore[misc]  # until it arrives
    if outcome.fatal is not None:
        outcome.fatal = Carried(outcome.fatal)  # type: ignore[assignment]  # until it arrives
    return outcome
