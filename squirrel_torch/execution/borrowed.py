"""Callbacks on an executor that somebody else opened, and will close."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from squirrel_torch.execution.work import Pending, Submits

__all__ = ["BorrowedWork"]


class BorrowedWork:
    """A live executor of the caller, used and left open.

    Args:
        executor: Has `submit(function, *args, **kwargs)`.
        callback: Called with each item.
        **options: Passed to `submit` with each item.
    """

    def __init__(self, executor: Submits, callback: Callable[[Any], Any], **options: Any) -> None:
        self._executor = executor
        self._callback = callback
        self._options = options

    def submit(self, item: Any) -> Pending:
        """Have the executor work on `item`."""
        pending: Pending = self._executor.submit(self._callback, item, **self._options)
        return pending

    def __enter__(self) -> BorrowedWork:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was opened here."""
