"""Callbacks on the workers of a dask cluster."""

from __future__ import annotations

import asyncio
import sys
import threading
from asyncio import CancelledError as AsyncCancelledError
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import uuid4

from squirrel_torch.describe import describe_callable, describe_item
from squirrel_torch.errors import ExecutorLostError, WorkerDiedError
from squirrel_torch.execution.call import Call, LocalGate, Outcome, belongs_to
from squirrel_torch.execution.remote import SMALL, by_value, work_on_bytes
from squirrel_torch.execution.work import Chunk, Deliver
from squirrel_torch.metrics import size_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from distributed import Future as DaskFuture

    Future = DaskFuture[Any]

__all__ = ["DaskCluster"]

_CONNECT: Final = 10.0
"""Seconds in which a scheduler must answer when a client is opened for it."""

_SILENCE: Final = 10.0
"""Seconds without any result after which the scheduler is asked whether it is there; it has as long again to answer."""

_LARGE: Final = 1 << 20
"""A chunk of so many bytes is scattered: it is data for the scheduler then, no part of a task."""

_LOSSES: Final = 5
"""How often a chunk is sent again when the cluster lost it."""

_LOOK: Final = 0.25
_AT_ONCE: Final = 64
_numbers = count()


class DaskCluster:
    """A dask cluster, by a client or the address of a scheduler. A client that is given is left open.

    A callback of more than 16 kB is scattered to all workers once; each unpickles it once. A worker that is lost is not
    noticed: dask, or this place, has another do its work. A scheduler that is lost raises at once if its connection breaks,
    else within 20 s.

    Args:
        executor: A client that works in this process, or an address.
        call: The callback.
        gate: Closed when the stream ends.
        deliver: Gets each outcome.

    Raises:
        ExecutorLostError: If no scheduler answers at the address within 10 s.
    """

    kind: ClassVar[str] = "dask"
    overhead: float = 5e-3

    def __init__(self, executor: Any, call: Call, gate: LocalGate, deliver: Deliver) -> None:
        self._own = isinstance(executor, str)
        self._client: Any = _connected(executor) if self._own else executor
        self._call = call
        self._gate = gate
        self._deliver = deliver
        self._token = uuid4().hex
        self._bytes = by_value(call)
        self._payload: Any = self._bytes
        self._sent: dict[Future, Chunk] = {}
        self._losses: dict[int, int] = {}  # by the chunk's first item
        self._back: SimpleQueue[Future] = SimpleQueue()
        self.workers: int = max(1, sum(self._client.nthreads().values()))
        self.most_workers: int = self.workers
        self.depth: int = 3 * self.workers
        self._scatter_call()
        self._thread = threading.Thread(target=self._collect, name=f"squirrel_torch_dask_{next(_numbers)}", daemon=True)
        self._thread.start()

    def _scatter_call(self) -> None:
        if len(self._bytes) > SMALL:
            # To all workers, so that losing one does not lose it.
            self._payload = self._answer(self._client.scatter(self._bytes, broadcast=True, hash=False, asynchronous=True))

    def submit(self, chunk: Chunk) -> None:
        """Have a worker work on it."""
        try:
            items: Any = chunk.items
            if sum(map(size_of, items)) > _LARGE:
                items = self._answer(self._client.scatter([items], hash=False, asynchronous=True))[0]
            # Two equal calls are two calls: dask would otherwise make them one, whatever the callback does.
            future = self._client.submit(work_on_bytes, self._token, self._payload, items, chunk.limit, pure=False)
        except Exception as error:  # noqa: BLE001  # raised where the stream is consumed
            self._deliver(chunk, Outcome(fatal=self._is_lost() or error))
            return
        self._sent[future] = chunk
        chunk.leaves(self.workers, len(self._sent))
        future.add_done_callback(self._back.put)

    # -- in the thread that collects ----------------------------------------------------------------------------------

    def _collect(self) -> None:
        belongs_to(self._gate)
        try:
            self._collect_all()
        except BaseException as error:  # noqa: BLE001  # raised where the stream is consumed: nobody else would tell it
            self._give_up(error)

    def _collect_all(self) -> None:
        heard = monotonic()
        while not self._gate.closed:
            done = self._done()
            if done:
                self._gather(done)
            elif self._sent and (lost := self._is_lost() or (monotonic() - heard > _SILENCE and self._is_silent())):
                self._give_up(lost)
            else:
                heard = heard if self._sent and monotonic() - heard <= _SILENCE else monotonic()
                continue
            heard = monotonic()

    def _done(self) -> list[Future]:
        """What came back, as much as there is."""
        futures: list[Future] = []
        with suppress(Empty):
            futures.append(self._back.get(timeout=_LOOK))
            while len(futures) < _AT_ONCE:
                futures.append(self._back.get_nowait())
        return [future for future in futures if future in self._sent]

    def _gather(self, futures: list[Future]) -> None:
        """Deliver what came back. Raises ExecutorLostError, with nothing of it delivered, where nobody answers."""
        finished = [future for future in futures if future.status == "finished"]
        try:
            outcomes = self._answer(self._client.gather(finished, asynchronous=True))
        except ExecutorLostError:
            raise
        except Exception:  # noqa: BLE001  # one of them was lost meanwhile: which, shows when they are asked one by one
            outcomes = [None] * len(finished)
        gathered = dict(zip(finished, outcomes, strict=True))
        for future in futures:
            outcome = gathered.get(future)
            if outcome is None:
                self._ask_again(future)
            else:
                self._arrived(future, outcome)

    def _arrived(self, future: Future, outcome: Outcome) -> None:
        chunk = self._sent.pop(future, None)
        if chunk is not None:  # else the stream was closed meanwhile
            outcome.seconds = max(outcome.seconds, chunk.turnaround())
            self._deliver(chunk, outcome)

    def _ask_again(self, future: Future) -> None:
        """A chunk whose result is not there: lost with its worker, or it takes workers with it."""
        chunk = self._sent.get(future)
        if chunk is None or self._gate.closed:
            return
        try:
            (outcome,) = self._answer(self._client.gather([future], asynchronous=True))
        except ExecutorLostError:
            raise
        except (Exception, CancelledError, AsyncCancelledError) as reason:  # noqa: BLE001  # sent again, or raised where the stream is consumed
            error = reason
        else:
            self._arrived(future, outcome)
            return
        if (lost := self._is_lost()) is not None:
            raise lost
        losses = self._losses[chunk.start] = self._losses.get(chunk.start, 0) + 1
        again = isinstance(error, CancelledError | AsyncCancelledError | TimeoutError) and losses <= _LOSSES
        if again:
            self._scatter_call()  # it may have been lost with the last worker that had it
        self._sent.pop(future, None)
        if again:
            self.submit(chunk)
        else:
            killed = type(error).__name__ == "KilledWorker"
            self._deliver(chunk, self._poisoned(chunk, error) if killed else Outcome(fatal=error))

    def _poisoned(self, chunk: Chunk, error: BaseException) -> Outcome:
        if len(chunk.items) > 1:
            return Outcome()  # they come back one by one, and show which one it is
        what = (
            f"{describe_callable(self._call.callback)} took several workers with it on the item {describe_item(chunk.items[0])}"
        )
        outcome = Outcome()
        outcome.fail(WorkerDiedError(f"{what}: {error}"))
        return outcome

    def _answer(self, request: Coroutine[Any, Any, Any]) -> Any:
        """What the cluster answers, however long it takes: a scheduler that is there is waited for, one that is not raises."""
        future = asyncio.run_coroutine_threadsafe(request, self._client.loop.asyncio_loop)
        while True:
            try:
                return future.result(_SILENCE)
            except TimeoutError:
                if future.done():
                    raise
                lost = self._is_lost() or self._is_silent()
                if lost is not None or self._gate.closed:
                    future.cancel()
                    raise lost or ExecutorLostError("the stream was closed") from None

    def _is_lost(self) -> ExecutorLostError | None:
        if self._client.status == "running":
            return None
        return ExecutorLostError(
            f"the connection to the dask scheduler {self._address()} is lost (client {self._client.status})"
        )

    def _is_silent(self) -> ExecutorLostError | None:
        """Ask the scheduler, which has not been heard of, whether it is there."""
        try:
            self._client.sync(self._client.scheduler.identity, callback_timeout=_SILENCE)
        except Exception as error:  # noqa: BLE001  # whatever it is, no answer came
            return ExecutorLostError(f"the dask scheduler {self._address()} does not answer within {_SILENCE:g} s: {error!r}")
        return None

    def _address(self) -> str:
        return str(getattr(self._client.scheduler, "address", "")) or "(unknown)"

    def _give_up(self, error: BaseException) -> None:
        for future in list(self._sent):
            if (chunk := self._sent.pop(future, None)) is not None:
                self._deliver(chunk, Outcome(fatal=error))

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self, *, wait: bool = True) -> None:
        """Cancel what is queued. What runs on workers can't be stopped, and is not waited for."""
        self._gate.close()
        if wait:
            self._thread.join(2 * _LOOK)
        alive = not sys.is_finalizing() and self._client.status == "running"
        if alive and self._sent:
            with suppress(Exception):
                self._client.cancel(list(self._sent))
        self._sent.clear()
        self._payload = None
        if self._own:
            with suppress(Exception):
                self._client.close(timeout=_LOOK)


def _connected(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=_CONNECT, set_as_default=False)  # type: ignore[no-untyped-call]  # dask's
    except (OSError, TimeoutError, ValueError) as error:
        raise ExecutorLostError(f"no dask scheduler answers at {address!r} within {_CONNECT:g} s: {error}") from error
