"""What goes to a process with its first message: pickled once, for all that are started."""

from __future__ import annotations

import pickle
import threading
from multiprocessing.context import BaseContext
from typing import Any

__all__ = ["Luggage", "portable_bytes"]


class Luggage:
    """What new processes are handed; pickled once for all of them."""

    def __init__(self, things: Any, context: BaseContext) -> None:
        self._things = things
        self._copies = context.get_start_method() == "fork"
        self._bytes: bytes | None = None
        self._lock = threading.Lock()

    def pack(self) -> Any:
        """The things where a child is a copy of this process, else their bytes."""
        if self._copies:
            return self._things
        with self._lock:
            if self._bytes is None:
                self._bytes = portable_bytes(self._things)
            return self._bytes

    @staticmethod
    def unpack(packed: Any) -> Any:
        """The things, over there."""
        return pickle.loads(packed) if isinstance(packed, bytes) else packed  # noqa: S301  # from the parent


def portable_bytes(things: Any) -> bytes:
    """By pickle, where it can; else by cloudpickle, which says why if it can't either."""
    try:
        return pickle.dumps(things)
    except Exception:  # noqa: BLE001  # see above
        import cloudpickle

        data: bytes = cloudpickle.dumps(things)
        return data
