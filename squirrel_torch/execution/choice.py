"""Which place an executor stands for, in the process where the stream runs."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import current_process
from threading import Thread
from typing import Any, Literal

from squirrel_torch.describe import describe_callable
from squirrel_torch.errors import ExecutorLostError
from squirrel_torch.execution.call import Call, LocalGate
from squirrel_torch.execution.dask import require_dask
from squirrel_torch.execution.numba import compiled, require_numba
from squirrel_torch.execution.places.borrowed import Borrowed
from squirrel_torch.execution.places.coroutines import Coroutines
from squirrel_torch.execution.places.crew import threads
from squirrel_torch.execution.places.processes import processes
from squirrel_torch.execution.tuning import MOST_BUFFER, MOST_WORKERS
from squirrel_torch.execution.work import Deliver, Place

__all__ = ["Recipe", "check_executor", "choose_place", "is_coroutine", "portable_executor"]

_NAMES = ("thread", "process", "numba")
_FIRST_GUESS = 2


@dataclass(frozen=True)
class Recipe:
    """What a live executor becomes where it can't go itself: something of the same kind, opened there and closed with the run.

    Args:
        kind: "thread", "process", the address of a scheduler, or "" if there is nothing to open.
        what: What it was, for messages.
        max_workers: Its number of threads or processes.
        initializer: What each of its processes ran first.
        initargs: Arguments of that.
        start_method: How its processes were started.
    """

    kind: str
    what: str
    max_workers: int | None = None
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    start_method: str | None = None


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_coroutine(callback: Callable[..., Any]) -> bool:
    """Whether `callback` is an `async def`, or an object whose call is one."""
    while isinstance(callback, partial):
        callback = callback.func
    return any(map(inspect.iscoroutinefunction, (callback, getattr(type(callback), "__call__", None))))  # noqa: B004


def _is_dask_client(executor: object) -> bool:
    # Whoever has a client has imported distributed; nobody else should pay for that.
    distributed = sys.modules.get("distributed")
    return distributed is not None and isinstance(executor, distributed.Client)


def _is_address(executor: object) -> bool:
    return isinstance(executor, str) and "://" in executor


def check_executor(executor: Any, callback: Callable[..., Any], max_workers: object) -> None:
    """Raise TypeError or ValueError unless `async_map` knows what to do with `executor` and this callback."""
    if isinstance(executor, str):
        _check_name(executor)
    elif _is_dask_client(executor):
        if executor.asynchronous:
            raise ValueError("executor must be a client that is not asynchronous: make it with Client(..., asynchronous=False)")
    elif executor is not None and not isinstance(executor, Executor | Recipe):
        raise TypeError(
            'executor must be None, "thread", "process", "numba", the address of a dask scheduler, a '
            f"concurrent.futures.Executor or a dask.distributed.Client, got {executor!r} ({type(executor).__name__})"
        )
    if executor is not None and is_coroutine(callback):
        raise ValueError(
            f"{describe_callable(callback)} is a coroutine function: it runs on an event loop of its own, without executor, "
            f"got executor={executor!r}"
        )
    if max_workers == "auto" and executor not in (None, "thread", "process"):
        raise ValueError(f'max_workers="auto" is for threads, processes and coroutines, got executor={executor!r}')


def _check_name(executor: str) -> None:
    if _is_address(executor):
        require_dask(cluster=True)
    elif executor not in _NAMES:
        raise ValueError(
            'executor must be "thread", "process", "numba" or the address of a dask scheduler ("tcp://host:8786") where it is '
            f"a text, got {executor!r}"
        )
    elif executor == "numba":
        require_numba()


def portable_executor(executor: Any) -> Any:
    """What can be pickled in place of `executor`: itself, or the recipe of a live one."""
    return _recipe_of(executor) if isinstance(executor, Executor) or _is_dask_client(executor) else executor


def _recipe_of(executor: Any) -> Recipe:
    what = f"{type(executor).__module__}.{type(executor).__qualname__}"
    if _is_dask_client(executor):
        return Recipe(str(executor.scheduler.address if executor.scheduler is not None else ""), what)
    kind = "thread" if type(executor) is ThreadPoolExecutor else "process" if type(executor) is ProcessPoolExecutor else ""
    workers, initializer, initargs = (getattr(executor, name, None) for name in ("_max_workers", "_initializer", "_initargs"))
    context = getattr(executor, "_mp_context", None)
    return Recipe(kind, what, workers, initializer, initargs or (), context.get_start_method() if context else None)


def _lives_here(executor: Any, home: int) -> bool:
    """Whether a live executor works in this process. After a fork its threads are not there, and everything would wait."""
    if getattr(executor, "_shutdown", False) is True or getattr(executor, "_shutdown_thread", False) is True:
        return True  # it says so itself
    if _is_dask_client(executor):
        helpers = [getattr(getattr(executor, "_loop_runner", None), "_loop_thread", None)]
    elif type(executor) in (ThreadPoolExecutor, ProcessPoolExecutor):
        helpers = [*getattr(executor, "_threads", ()), getattr(executor, "_executor_manager_thread", None)]
    else:
        helpers = []
    if any(isinstance(helper, Thread) and not helper.is_alive() for helper in helpers):
        return False
    if isinstance(executor, ProcessPoolExecutor) and current_process().daemon:
        return False  # it may not start processes here
    return home == os.getpid()


def choose_place(
    executor: Any, call: Call, max_workers: int | Literal["auto"] | None, buffer: int | Literal["auto"], home: int
) -> Callable[[LocalGate, Deliver], Place]:
    """What opens the place where `call` runs, in this process.

    Args:
        executor: As `async_map` was given it, or the recipe that was pickled in its place.
        call: The callback.
        max_workers: The number of workers of a place that is opened here; "auto" starts with few and may be changed.
        buffer: How many items may be in flight.
        home: The process in which the executor was given.

    Raises:
        ExecutorLostError: If it is a live executor of another process that can't be replaced.
    """
    if is_coroutine(call.callback):
        workers = 4 * _FIRST_GUESS if max_workers == "auto" else max_workers
        most = MOST_BUFFER if buffer == "auto" else buffer
        return lambda gate, deliver: Coroutines(call, workers, most, gate, deliver)
    if isinstance(executor, Executor) or _is_dask_client(executor):
        if _lives_here(executor, home):
            return _live(executor, call)
        executor = _recipe_of(executor)
    if isinstance(executor, Recipe):
        return _from_recipe(executor, call)
    if executor == "numba":
        return _own_threads(Call(compiled(call.callback), call.policy), max_workers or 1)
    if executor == "process":
        return _own_processes(call, max_workers)
    if executor is None or executor == "thread":
        return _own_threads(call, max_workers)
    return _cluster(executor, call)


def _own_threads(call: Call, max_workers: int | Literal["auto"] | None, *start: Any) -> Callable[[LocalGate, Deliver], Place]:
    workers = _FIRST_GUESS if max_workers == "auto" else max_workers or min(32, usable_cpus() + 4)  # as Python's own pool
    return lambda gate, deliver: threads(call, workers, MOST_WORKERS, gate, deliver, *start)


def _own_processes(call: Call, max_workers: int | Literal["auto"] | None, *start: Any) -> Callable[[LocalGate, Deliver], Place]:
    cpus = usable_cpus()
    workers = min(_FIRST_GUESS, cpus) if max_workers == "auto" else max_workers or cpus
    return lambda gate, deliver: processes(call, workers, cpus, gate, deliver, *start)


def _cluster(executor: Any, call: Call) -> Callable[[LocalGate, Deliver], Place]:
    from squirrel_torch.execution.places.dask import DaskCluster

    return lambda gate, deliver: DaskCluster(executor, call, gate, deliver)


def _live(executor: Any, call: Call) -> Callable[[LocalGate, Deliver], Place]:
    if _is_dask_client(executor):
        return _cluster(executor, call)
    return lambda gate, deliver: Borrowed(executor, call, gate, deliver)


def _from_recipe(recipe: Recipe, call: Call) -> Callable[[LocalGate, Deliver], Place]:
    if recipe.kind == "thread":
        return _own_threads(call, recipe.max_workers, recipe.initializer, recipe.initargs)
    if recipe.kind == "process":
        return _own_processes(call, recipe.max_workers, recipe.initializer, recipe.initargs, recipe.start_method)
    if recipe.kind:
        return _cluster(recipe.kind, call)
    raise ExecutorLostError(
        f"a live {recipe.what} can't be used in process {os.getpid()}, which is not the one that made it (a worker of a "
        'DataLoader?): write executor="process" or "thread", which is opened where the stream runs'
    )
