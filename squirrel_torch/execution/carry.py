"""Exceptions on their way between processes: with their traceback as text, and never in a form that can't be read there."""

from __future__ import annotations

import pickle
import traceback
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
        text = "".join(traceback.format_exception(self._error))
        said = f"{type(self._error).__name__}: {self._error}"
        return _unpacked, (_bytes_of(self._error), said, text)


def _bytes_of(error: BaseException) -> bytes | None:
    """`error` as bytes that are known to give an exception again; None if there are none."""
    import cloudpickle

    for dumps in (pickle.dumps, cloudpickle.dumps):
        try:
            data: bytes = dumps(error)
            if isinstance(pickle.loads(data), BaseException):  # noqa: S301  # made one line before
                return data
        except Exception:  # noqa: BLE001  # an exception may hold anything, and refuse in any way
            continue
    return None


def _unpacked(data: bytes | None, said: str, text: str) -> BaseException:
    error: BaseException | None = None
    if data is not None:
        try:
            error = pickle.loads(data)  # noqa: S301  # from a process of this job
        except Exception as reason:  # noqa: BLE001  # its class may exist over there only
            said += f" (which can't be read here: {reason!r})"
    if error is None:
        error = PipelineError(f"in another process: {said}")
    error.__cause__ = RemoteTraceback(text)
    return error


def carry_failures(outcome: Outcome) -> Outcome:
    """`outcome`, its exceptions ready to be pickled."""
    outcome.failures = [(offset, Carried(error)) for offset, error in outcome.failures]  # type: ignore[misc]  # until it arrives
    if outcome.fatal is not None:
        outcome.fatal = Carried(outcome.fatal)  # type: ignore[assignment]  # until it arrives
    return outcome
