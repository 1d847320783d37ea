"""What it costs to get a batch from a worker process.

Run as ``python tests/benchmarks/loader.py [--rounds N] [--only NAME] [--json FILE]``; see README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from execution_peers import grain_workers, nodes_threads, spdl_workers
from rig import Claim, Contender, Table, Times, command_line
from stream import GRAIN, NODES, OURS, SPDL
from stream import LOADER as TORCH
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from squirrel_torch.loader.workers import END, Workers

NUMPY = "torch DataLoader, numpy pickled"

WORKERS = 2
BATCH = 64
WIDTH = 128

CYCLE = 32
"""Batches that differ from each other; then they come again."""

Make = Callable[[int, int, int], Iterator[Any]]
"""The batches of a worker: from how many there are of all workers, which worker it is, and of how many."""


def sample(n: int) -> dict[str, Any]:
    """Sample n."""
    return {"x": torch.full((WIDTH,), float(n)), "y": n}


def batch(n: int) -> dict[str, torch.Tensor]:
    """Batch n, made at once."""
    y = torch.arange(n * BATCH, (n + 1) * BATCH)
    return {"x": y.float().repeat_interleave(WIDTH).reshape(BATCH, WIDTH), "y": y}


def ready(total: int, worker: int, count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches that are there already."""
    made = [batch(n) for n in range(CYCLE)]
    for n in range(worker, total, count):
        yield made[n % CYCLE]


def ready_numpy(total: int, worker: int, count: int) -> Iterator[dict[str, Any]]:
    """The same, of arrays."""
    made = [{key: tensor.numpy() for key, tensor in batch(n).items()} for n in range(CYCLE)]
    for n in range(worker, total, count):
        yield made[n % CYCLE]


def collated(total: int, worker: int, count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of samples that are made one by one."""
    for n in range(worker, total, count):
        yield default_collate([sample(n % CYCLE * BATCH + i) for i in range(BATCH)])


def collated_numpy(total: int, worker: int, count: int) -> Iterator[dict[str, Any]]:
    """Batches of samples that are made one by one, by hand."""
    for n in range(worker, total, count):
        first = n % CYCLE * BATCH
        rows = [(np.full(WIDTH, first + i, np.float32), first + i) for i in range(BATCH)]
        yield {"x": np.stack([x for x, _ in rows]), "y": np.array([y for _, y in rows])}


class Batches(IterableDataset):  # type: ignore[type-arg]  # anything
    """The batches as a dataset."""

    def __init__(self, make: Make, total: int) -> None:
        self.make = make
        self.total = total

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        return self.make(self.total, info.id, info.num_workers) if info else self.make(self.total, 0, 1)


def loader(workers: int, make: Make, total: int, convert: Callable[[Any], Any] | None = None) -> Iterator[Any]:
    """Batches by way of a DataLoader. Its workers are there, and have begun, before the clock starts."""
    dataset = Batches(make, total + WORKERS)
    context = "fork" if workers else None
    batches = iter(
        DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=identity, multiprocessing_context=context)
    )
    begin_all(batches)
    return map(convert, batches) if convert else batches


def begin_all(batches: Iterator[Any]) -> None:
    """Take a batch of each worker."""
    for _ in range(WORKERS):
        next(batches)


def identity(made: Any) -> Any:
    """What it was."""
    return made


def to_tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors over the arrays."""
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


class Server:
    """What our workers run."""

    def __init__(self, make: Make) -> None:
        self.make = make

    def __call__(self, total: int, worker: int, count: int) -> Iterator[tuple[int, Any]]:
        return enumerate(self.make(total, worker, count))


def ours(make: Make, total: int) -> Iterator[Any]:
    """Batches from our workers, which also are there, and have begun."""
    workers = Workers(Server(make), WORKERS, start_method="fork")
    workers.start(total + WORKERS, range(WORKERS))
    batches = received(workers)
    begin_all(batches)
    return batches


def received(workers: Workers) -> Iterator[Any]:
    """One batch of each worker after the other."""
    while True:
        for worker in range(len(workers)):
            found = workers.receive(worker)
            if found is END:
                workers.close()
                return
            yield found[1]


# -- peers ----------------------------------------------------------------------------------------------------------------

At = Callable[[int], Any]
"""The batch of a number, as arrays."""


@cache
def _cycle() -> list[Any]:
    return list(islice(ready_numpy(CYCLE, 0, 1), CYCLE))


def ready_at(n: int) -> dict[str, Any]:
    """One that is there already."""
    return dict(_cycle()[n % CYCLE])


def collated_at(n: int) -> dict[str, Any]:
    """One of samples that are made one by one."""
    return next(collated_numpy(n + 1, n, 1))


def handed(begin: Callable[[At, range], Iterator[Any]], at: At, total: int) -> Iterator[Any]:
    """Batches of arrays from a peer's processes, which are there, and have begun. Their end is not in the time."""
    batches = begin(at, range(total + WORKERS))
    begin_all(batches)
    return islice(map(to_tensors, batches), total)


def from_nodes(at: At, numbers: range) -> Iterator[Any]:
    """By torchdata's."""
    return iter(nodes_threads(at, numbers, WORKERS, method="process", multiprocessing_context="fork"))


def from_grain(at: At, numbers: range) -> Iterator[Any]:
    """By grain's, by way of shared memory."""
    for found in grain_workers(at, numbers, 2):
        yield {key: np.asarray(array) for key, array in found.items()}


def check(contender: Contender, batches: Iterable[Any], n: int) -> None:
    """All batches, in order."""
    expected = [batch(k) for k in range(CYCLE)]
    count = 0
    for count, found in enumerate(batches, 1):
        wanted = expected[(count - 1 + WORKERS) % CYCLE]
        assert found.keys() == wanted.keys(), contender.name
        for key, tensor in found.items():
            assert tensor.dtype == wanted[key].dtype, contender.name
            assert torch.equal(tensor, wanted[key]), (contender.name, count, key)
    assert count == n, (contender.name, count)


def hand_over(name: str, title: str, make: Make, make_numpy: Make, at: At, items: int) -> Table:
    """Two workers' batches in the main process."""

    def claims(times: Times) -> list[Claim]:
        ratio = times.ratio(OURS, TORCH)
        return [
            Claim(f"{OURS} {ratio:.3f} x {TORCH} (target at most 0.15)", ratio <= 0.15),
            Claim(f"{times.ratio(OURS, NUMPY):.3f} x {NUMPY}"),
        ]

    return Table(
        name,
        title,
        items,
        TORCH,
        [
            Contender(TORCH, partial(loader, WORKERS, make), share=0.25),
            Contender(NUMPY, partial(loader, WORKERS, make_numpy, convert=to_tensors), note="from_numpy in the main process"),
            Contender(OURS, partial(ours, make)),
            Contender(f"no workers, {TORCH}", partial(loader, 0, make)),
            Contender(NODES, partial(handed, from_nodes, at), share=0.25, note="ParallelMapper, numpy pickled"),
            Contender(GRAIN, partial(handed, from_grain, at), share=0.05, needs="grain", note="mp_prefetch"),
            Contender(SPDL, partial(handed, spdl_workers, at), share=0.1, needs="spdl", note="a ProcessPoolExecutor"),
        ],
        check,
        claims,
        unit=("us/batch", 1e6),
    )


TABLES: dict[str, Callable[[ExitStack], Table]] = {
    "hand-over": lambda _: hand_over(
        "hand-over", "batches of 64 x {float32[128], int} that 2 workers have ready", ready, ready_numpy, ready_at, 20_000
    ),
    "hand-over-made": lambda _: hand_over(
        "hand-over-made", "the same, of samples that the workers make and collate", collated, collated_numpy, collated_at, 4_000
    ),
}


if __name__ == "__main__":
    command_line("What it costs to get a batch from a worker process.", TABLES, rounds=5)
