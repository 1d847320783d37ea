"""How others have callbacks run elsewhere, each as its documentation says: torchdata.nodes, spdl, grain, torch DataLoader."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from typing import Any

from execution_jobs import CHUNK, PROCESSES, Job, chunks, held, inc_all, warm
from stream_peers import grain_iterator, inc, spdl_items
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchdata.nodes import IterableWrapper, Loader, ParallelMapper

__all__ = [
    "grain_processes",
    "grain_threads",
    "grain_workers",
    "loaded",
    "loaded_chunks",
    "nodes_cheap_threads",
    "nodes_processes",
    "nodes_threads",
    "spdl_cheap_threads",
    "spdl_processes",
    "spdl_threads",
    "spdl_workers",
]

Callback = Callable[[Any], Any]


# -- torchdata.nodes ------------------------------------------------------------------------------------------------------


def nodes_threads(callback: Callback, items: Iterable[Any], workers: int, **options: Any) -> Any:
    """Threads, ordered."""
    return Loader(ParallelMapper(IterableWrapper(items), callback, workers, **options))


def nodes_cheap_threads(n: int, workers: int) -> Any:
    """In chunks."""
    return nodes_threads(inc, range(n), workers, prebatch=CHUNK)


def nodes_processes(callback: Callback, n: int, warm_up: int, **options: Any) -> Job:
    """Processes that have been running for `warm_up` items."""
    common = {"method": "process", "multiprocessing_context": "fork", **options}
    return _running(lambda items: iter(nodes_threads(callback, items, PROCESSES, **common)), n, warm_up)


def _running(begin: Callable[[Iterator[Any]], Any], n: int, warm_up: int) -> Job:
    """A job whose source is held back until the clock starts, as ours is."""
    go = threading.Event()
    results = begin(held(iter(range(-warm_up, n)), warm_up, go))
    for _ in islice(results, warm_up):
        pass

    def start() -> Iterator[Any]:
        go.set()
        return results  # type: ignore[no-any-return]  # an iterator

    return Job(start, n, getattr(results, "close", lambda: None))


# -- spdl -----------------------------------------------------------------------------------------------------------------


def spdl_threads(callback: Callback, items: Iterable[Any], workers: int, order: str = "input") -> Iterator[Any]:
    """Threads; order="completion" is spdl's default."""
    from spdl.pipeline import PipelineBuilder

    return spdl_items(PipelineBuilder().add_source(items).pipe(callback, concurrency=workers, output_order=order), workers)


def spdl_cheap_threads(n: int, workers: int) -> Iterator[int]:
    """In chunks that are made by hand."""
    return chain.from_iterable(spdl_threads(inc_all, chunks(n), workers))


def spdl_workers(callback: Callback, items: Iterable[Any]) -> Iterator[Any]:
    """Processes of an executor of Python's own, which spdl is given, ordered."""
    from spdl.pipeline import PipelineBuilder

    with ProcessPoolExecutor(PROCESSES) as executor:
        warm(executor)
        options: dict[str, Any] = {"executor": executor, "concurrency": PROCESSES, "output_order": "input"}
        yield from spdl_items(PipelineBuilder().add_source(items).pipe(callback, **options), 1)


def spdl_processes(callback: Callback, n: int, warm_up: int) -> Job:
    """Such processes that have been running for `warm_up` items."""
    return _running(lambda items: spdl_workers(callback, items), n, warm_up)


# -- grain ----------------------------------------------------------------------------------------------------------------


def grain_threads(callback: Callback, items: Any, workers: int) -> Any:
    """Threads, ordered, with a buffer of 100 as ours has."""
    import grain.python as grain

    return grain_iterator(grain.MapDataset.source(items).map(callback), workers, 100)


def grain_workers(callback: Callback, numbers: range, buffer: int) -> Iterator[Any]:
    """Processes, ordered."""
    import grain.python as grain

    workers = grain.MultiprocessingOptions(num_workers=PROCESSES, per_worker_buffer_size=buffer)
    dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(callback)
    return iter(grain_iterator(dataset, 1, 1).mp_prefetch(workers))


def grain_processes(callback: Callback, n: int, warm_up: int) -> Job:
    """Processes that have been running for `warm_up` items, and have a result or two ready when the clock starts."""
    results = grain_workers(callback, range(-warm_up, n), 1)
    for _ in islice(results, warm_up):
        pass
    return Job(lambda: results, n)


# -- torch DataLoader -----------------------------------------------------------------------------------------------------


class Held(IterableDataset):  # type: ignore[type-arg]  # anything
    """Results for a DataLoader, dealt out to its workers."""

    def __init__(self, callback: Callback, n: int, warm_up: int, go: Any) -> None:
        self.callback, self.n, self.warm_up, self.go = callback, n, warm_up, go

    def __iter__(self) -> Iterator[Any]:
        info: Any = get_worker_info()
        indices = held(iter(range(-self.warm_up, self.n)), self.warm_up, self.go)
        return map(self.callback, islice(indices, info.id, None, info.num_workers))


def loaded(callback: Callback, n: int, warm_up: int) -> Job:
    """A DataLoader that has been running for `warm_up` items."""
    go = multiprocessing.Event()
    items: Any = iter(DataLoader(Held(callback, n, warm_up, go), None, num_workers=PROCESSES, multiprocessing_context="fork"))
    for _ in islice(items, warm_up):
        pass

    def start() -> Iterator[Any]:
        go.set()
        return items  # type: ignore[no-any-return]  # an iterator

    return Job(start, n, items._shutdown_workers)


def _chunk(number: int) -> list[int]:
    return inc_all(range(number * CHUNK, (number + 1) * CHUNK))


def loaded_chunks(n: int) -> Job:
    """A DataLoader of lists of 1,000 results, after four of them."""
    job = loaded(_chunk, n // CHUNK, 4)
    return Job(lambda: chain.from_iterable(job.start()), n, job.close)
