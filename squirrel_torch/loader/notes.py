"""Notes: what something in a worker has to say to the main process, beside the batches.

In the worker anything may call `reporting.home().send(kind, payload)`. In the main process `Workers.handlers[kind]` is called
with the number of the worker and the payload, in the thread that takes batches, when what the worker has sent is read: before
the batch is given that came behind the note, and before the end of the pass.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from squirrel_torch.loader.line import Frame

__all__ = ["Handler", "Handlers", "Notes", "handle"]

Handler: TypeAlias = Callable[[int, Any], object]
"""Called with the number of a worker and what it has sent."""

Handlers: TypeAlias = dict[str, Handler]
"""By kind."""

_log = logging.getLogger(__name__)

_ignored: Final[set[str]] = set()


class Notes:
    """The way home, in a worker: what was sent waits here until the worker speaks anyway."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()

    def send(self, kind: str, payload: Any) -> None:
        """See `reporting.Home`."""
        self._waiting.append(json.dumps([kind, payload]).encode())

    def clear(self) -> None:
        """Drop what belongs to a pass that was left."""
        self._waiting.clear()

    def frames(self, number: int) -> Iterator[Frame]:
        """What waits, as frames of a pass; it does not wait any more."""
        while self._waiting:
            yield Frame(Frame.NOTE, number, body=self._waiting.popleft())


def handle(handlers: Handlers, worker: int, body: bytes | bytearray) -> None:
    """Give a note to whoever handles its kind. One that nobody does is left out, and said once."""
    kind, payload = json.loads(body)
    handler = handlers.get(kind)
    if handler is not None:
        handler(worker, payload)
    elif kind not in _ignored:
        _ignored.add(kind)
        _log.warning("worker %d has sent a note of the kind %r, which nothing in the main process handles", worker, kind)
