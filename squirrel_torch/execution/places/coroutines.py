"""Coroutines on one event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from contextlib import suppress
from itertools import count
from time import perf_counter
from typing import Any, ClassVar

from squirrel_torch.execution.call import Call, LocalGate, Outcome, belongs_to
from squirrel_torch.execution.work import Chunk, Deliver

__all__ = ["Coroutines"]

_PATIENCE = 0.5
_numbers = count()


class Coroutines:
    """One event loop; each item is a task of it.

    Args:
        call: Its callback is a coroutine function.
        workers: At most this many tasks at a time; None is as many as there are items in flight.
        most_workers: How many items can be in flight.
        gate: Closed when the stream ends.
        deliver: Gets each outcome.
    """

    kind: ClassVar[str] = "coroutine"
    overhead: float = 0.0  # items travel alone: each is a task anyway

    def __init__(self, call: Call, workers: int | None, most_workers: int, gate: LocalGate, deliver: Deliver) -> None:
        self.workers: int = workers or most_workers
        self.most_workers = most_workers
        self._call = call
        self._gate = gate
        self._deliver = deliver
        self.depth = most_workers
        self._waiting: deque[Chunk] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._awake = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=f"squirrel_torch_loop_{next(_numbers)}", daemon=True)
        self._thread.start()

    def running(self) -> list[Any]:
        """The coroutines of the tasks that run. Any thread may ask."""
        return [task.get_coro() for task in list(self._running)]

    def submit(self, chunk: Chunk) -> None:
        """Have the loop work on it."""
        self._waiting.append(chunk)
        if not self._awake:  # one wake for all that come until the loop has looked
            self._awake = True
            with suppress(RuntimeError):  # closed: nobody waits for it
                self._loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._awake = False
        while self._waiting and len(self._running) < self.workers and not self._gate.closed:
            task = self._loop.create_task(self._work(self._waiting.popleft()))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._waiting:
            self._start()

    async def _work(self, chunk: Chunk) -> None:
        outcome, began = Outcome(), perf_counter()
        try:
            outcome.values.append(await self._attempts(chunk.items[0], outcome))
        except BaseException as error:  # raised where the stream is consumed
            if self._gate.closed:
                raise
            outcome.fail(error)
        outcome.began, outcome.worked = began, perf_counter() - began
        self._deliver(chunk, outcome)

    async def _attempts(self, item: Any, outcome: Outcome) -> Any:
        policy = self._call.policy
        used = 0
        while True:
            try:
                if policy.timeout is None:
                    return await self._call.callback(item)
                return await self._within(item, policy.timeout)
            except Exception as error:
                used += 1
                if not policy.tries_again(error, used):
                    raise
                pause = policy.pause(used)
            await asyncio.sleep(pause)
            outcome.retries += 1

    async def _within(self, item: Any, timeout: float) -> Any:  # asyncio's own drops the stack
        task = self._loop.create_task(self._call.callback(item))
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if done:
            return task.result()
        stack = io.StringIO()
        task.print_stack(file=stack)
        task.cancel()
        raise self._call.too_long(item, "its task", stack.getvalue())

    def _serve(self) -> None:
        belongs_to(self._gate)
        asyncio.set_event_loop(self._loop)
        try:
            while not self._gate.closed:
                with suppress(SystemExit, KeyboardInterrupt):  # of a callback; its task knows of it too
                    self._loop.run_forever()
        finally:
            with suppress(Exception):
                self._loop.run_until_complete(self._wind_up())
            self._loop.close()

    async def _wind_up(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_PATIENCE)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    def close(self, *, wait: bool = True) -> None:
        """Cancel all tasks; they get half a second to end. What they run in the loop's own threads is waited for."""
        self._gate.close()
        self._waiting.clear()
        if self._thread.is_alive():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            if wait:
                self._thread.join()
