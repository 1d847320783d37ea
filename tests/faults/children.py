"""Functions in forked children: what they say, or how they died."""

import json
import os
import resource
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

from squirrel_torch import StoreError


@dataclass(frozen=True)
class Outcome:
    """What has become of a child: `error` is None if it has returned `value`."""

    error: str | None
    value: object = None
    is_store_error: bool = False
    text: str = ""
    seconds: float = 0
    megabytes: float = 0


def start(function, *arguments):
    """The id of a forked child that runs `function`, and where its outcome is read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        begin, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        told = {"error": None}
        try:
            told["value"] = function(*arguments)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the parent judges it
            told = {"error": type(error).__name__, "is_store_error": isinstance(error, StoreError), "text": str(error)}
        told["seconds"] = time.monotonic() - begin
        told["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        with os.fdopen(writing, "w") as file:
            file.write(json.dumps(told))
    finally:
        os._exit(0)


def end(child, seconds=30.0):
    """What has become of a child; one that has not ended after `seconds` is killed."""
    pid, reading = child
    parts, deadline = [], time.monotonic() + seconds
    try:
        while select.select([reading], [], [], max(0, deadline - time.monotonic()))[0]:
            part = os.read(reading, 1 << 16)
            if not part:
                break
            parts.append(part)
        else:
            kill(pid)
            return Outcome("hangs")
    finally:
        os.close(reading)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Outcome(f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    return Outcome(**json.loads(b"".join(parts)))


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def outcome(function, *arguments, seconds=30.0):
    """What becomes of `function` in a forked child."""
    return end(start(function, *arguments), seconds)
