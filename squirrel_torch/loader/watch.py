"""Which rank the others wait for: each tells how far it is, and asks the others when nothing moves.

The ranks leave word in the store by which torch.distributed has brought them together, over a connection of their own: it
answers also while a collective hangs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from time import monotonic, time
from typing import Any, ClassVar, Final

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from squirrel_torch.loader.progress import LEFT, Progress
from squirrel_torch.sharding import can_gather
from squirrel_torch.threads import end_thread

__all__ = ["Names", "Watch"]

_MOST_NAMED: Final = 8

_SLOWEST: Final = 30.0
"""Seconds between two looks, at most."""

_log = logging.getLogger(__name__)


class Names:
    """What the ranks call the passes of a loader, each by itself: the same on all of them.

    They may not all make the same loaders, as one may evaluate by itself. So a loader is known by its chain and by its number
    among those over such a chain that have begun a pass together, and a pass by its epoch and its number among those of it.
    They can't tell from that what one rank alone takes its share of, if the chain is equal to one of theirs.

    Args:
        chain: A text for each of its places.
    """

    _loaders: ClassVar[Counter[str]] = Counter()

    def __init__(self, chain: Sequence[str]) -> None:
        self._chain = hashlib.blake2b("\n".join(chain).encode(), digest_size=8).hexdigest()
        self._loader = 0
        self._passes: Counter[int] = Counter()

    def of_next(self, epoch: int) -> str:
        """The name of a pass that begins now."""
        if not self._loader:
            self._loaders[self._chain] += 1
            self._loader = self._loaders[self._chain]
        self._passes[epoch] += 1
        return f"{self._chain}/{self._loader}/{epoch}/{self._passes[epoch]}"


class Watch:
    """Looks after one pass, in a thread that ends with it.

    Args:
        owner: The pass; when it is gone the watch ends.
        progress: Of the pass.
        name: The same for this pass on all ranks.
        ranks: Those that share the stream, by their numbers among all processes.
        patience: Seconds without progress after which it is said who is waited for.
    """

    def __init__(self, owner: object, progress: Progress, name: str, ranks: list[int], patience: float) -> None:
        self._progress = progress
        self._ranks = ranks
        self._rank = dist.get_rank()
        self._patience = patience
        # The store of torchrun stays when all ranks are started again.
        self._prefix = f"squirrel_torch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
        self._posts = 0
        self._heard: dict[int, tuple[int, float]] = {}
        self._told = patience
        self._done = threading.Event()
        self._store = _own_store()
        self._thread = threading.Thread(target=self._look, name="squirrel_torch_watch", daemon=True)
        # It may be let go of without a word. A thread that is in torch's code when Python ends would abort the process.
        weakref.finalize(owner, end_thread, self._done, self._thread)
        self._thread.start()

    @classmethod
    def over(cls, owner: object, progress: Progress, name: str, ranks: list[int], patience: float) -> Watch | None:
        """A watch, if there are others and somewhere to leave word."""
        if patience == 0 or len(ranks) < 2 or not can_gather():
            return None
        try:
            return cls(owner, progress, name, ranks, patience)
        except (AttributeError, RuntimeError) as error:  # what torch does not promise
            _log.warning("there will be no report of ranks that others wait for (report_after): %s", error)
            return None

    def close(self) -> None:
        """End the thread, and say that the pass has ended."""
        end_thread(self._done, self._thread)

    def _look(self) -> None:
        interval = min(self._patience / 4, _SLOWEST)
        try:
            self._post()
            while not self._done.wait(interval):
                self._post()
                waited = monotonic() - self._progress.since
                if waited < self._patience:
                    self._told = self._patience
                elif waited >= self._told:
                    _log.warning("%s", self.report())
                    self._told *= 2
                elif waited >= self._patience / 2:
                    self._others()  # to know later who has said nothing since
            if not self._progress.ending:  # it was let go of
                self._progress.end(LEFT)
            self._post()
        except Exception as error:  # noqa: BLE001  # a watch that fails must not end the training
            if not self._done.is_set():
                _log.warning("rank %d can't ask the others how far they are any more: %s", self._rank, error)

    def _post(self) -> None:
        progress, self._posts = self._progress, self._posts + 1
        waited = monotonic() - progress.since
        word = {
            "post": self._posts,
            "epoch": progress.epoch,
            "step": progress.step,
            "seconds": waited,
            "inside": progress.inside,
            "agrees": progress.agrees(),
            "line": progress.line(),
            # To look takes milliseconds, and is worth it only if something is slow.
            "doing": progress.doing() if waited > self._patience / 4 or progress.ending else "is on its way",
            "ended": bool(progress.ending),
            "time": time(),
            "process": f"pid {os.getpid()} on {socket.gethostname()}",
        }
        self._store.set(f"{self._prefix}/{self._rank}", json.dumps(word))

    def _others(self) -> dict[int, dict[str, Any] | None]:
        """What the other ranks have left, and None of those that have never come here."""
        words: dict[int, dict[str, Any] | None] = {}
        for rank in self._ranks:
            if rank == self._rank:
                continue
            key = f"{self._prefix}/{rank}"
            word: dict[str, Any] | None = json.loads(self._store.get(key)) if self._store.check([key]) else None
            words[rank] = word
            if word is not None and self._heard.get(rank, (0, 0.0))[0] != word["post"]:
                self._heard[rank] = word["post"], monotonic()
        return words

    def report(self) -> str:
        """Who is waited for, in words."""
        progress, own = self._progress, []
        for rank, word in sorted(self._others().items(), key=lambda item: -1 if item[1] is None else item[1]["step"]):
            told = self._of_other(rank, word)
            if told:
                own.append(told)
        more = f"; and {len(own) - _MOST_NAMED} more" if len(own) > _MOST_NAMED else ""
        behind = "; ".join(own[:_MOST_NAMED]) + more or "no other rank is behind it"
        return (
            f"rank {self._rank} has been at step {progress.step} of epoch {progress.epoch} for "
            f"{monotonic() - progress.since:.0f} s: it {progress.doing()}. {behind}"
        )

    def _of_other(self, rank: int, word: dict[str, Any] | None) -> str:
        """What holds up the others, if this one does."""
        if word is None:
            return f"rank {rank} has not begun this pass"
        at = f"rank {rank} is at step {word['step']} of epoch {word['epoch']}"
        silent = monotonic() - self._heard[rank][1]
        if silent > 2 * min(self._patience / 4, _SLOWEST) + 1 and not word["ended"]:
            return f"{at} and has not been heard of for {silent:.0f} s: its process ({word['process']}) has died, or is stopped"
        progress = self._progress
        # Behind its end it says nothing more. The clocks of two machines may differ a little.
        seconds = word["seconds"] + (max(silent, time() - word["time"]) if word["ended"] else 0)
        slow = seconds > self._patience / 2 and not word["agrees"]
        # At the same step one waits for the other if they agree on something, or if the other is somewhere else.
        elsewhere = not progress.inside and (word["inside"] or word["ended"] or word["line"] != progress.line())
        holds_up = slow and (progress.agrees() or elsewhere)
        if word["step"] < progress.step or (word["step"] == progress.step and holds_up):
            return f"{at} and {word['doing']}, for {seconds:.0f} s"
        return ""


def _own_store() -> Any:
    """The store of the job, over a connection that nobody else waits on."""
    store: Any = c10d._get_default_store()
    prefixed: Any = dist.PrefixStore  # type: ignore[attr-defined]  # torch has it there without saying so
    by_network: Any = dist.TCPStore  # type: ignore[attr-defined]
    while isinstance(store, prefixed):
        store = store.underlying_store
    if isinstance(store, by_network):
        return by_network(store.host, store.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))
    return store
