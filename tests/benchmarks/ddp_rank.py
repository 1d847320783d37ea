"""One rank of a launch of `ddp.py`, under torchrun: it trains for some steps, or goes through an epoch without training.

Run as ``torchrun ddp_rank.py ORDER``; `Order` says what is in it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import clock_gettime, perf_counter
from typing import Any, Self

import torch
import torch.distributed as dist
from ddp_files import Files, Place
from ddp_ways import WAYS
from storage_samples import SMALL, TOKENS
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

__all__ = ["WARM_UP", "Order", "Report"]

WARM_UP = 20
"""Steps before the clock starts."""


@dataclass(frozen=True)
class Order:
    """What a rank is told, and where it reports.

    Args:
        way: A name in `WAYS`.
        rows: How many samples there are.
        folder: Where they are, in all formats.
        reports: Where each rank writes its report.
        steps: How many are measured; 0 is an epoch without training.
    """

    way: str
    rows: int
    folder: str
    reports: str
    steps: int

    @classmethod
    def read(cls, text: str) -> Self:
        """From JSON."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Report:
    """What a rank has seen.

    Args:
        first: Seconds from `iter(loader)` to the first batch.
        steps: How many were measured.
        seconds: Of these.
        waited: Of the seconds, how many went into the loader.
        cpu: Seconds that the processors worked on these steps, here and in the workers.
        ids: Of the samples of an epoch, in their order.
    """

    first: float = 0
    steps: int = 0
    seconds: float = 0
    waited: float = 0
    cpu: float = 0
    ids: Sequence[int] = ()


def main() -> None:
    """Do as told, and write the report."""
    order = Order.read(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    place = Place(dist.get_rank(), dist.get_world_size())
    report = _trained(order, place) if order.steps else _passed(order, place)
    (Path(order.reports) / str(place.rank)).write_text(json.dumps(asdict(report)))
    dist.barrier()
    dist.destroy_process_group()


def _loader(order: Order, place: Place) -> Iterable[Any]:
    return WAYS[order.way].open(Files(order.rows, Path(order.folder)), place)


def _trained(order: Order, place: Place) -> Report:
    model = DistributedDataParallel(torch.nn.Linear(TOKENS, 10))
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)

    def step(batch: Any) -> None:
        loss = cross_entropy(model(batch["tokens"].float()), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    loader = _loader(order, place)
    dist.barrier()
    begin = perf_counter()
    batches = iter(loader)
    batch = next(batches)
    first = perf_counter() - begin
    step(batch)
    for _ in range(WARM_UP - 1):
        step(next(batches))
    processes = [os.getpid(), *_children()]
    waited, worked, start = 0.0, _worked(processes), perf_counter()
    for _ in range(order.steps):
        before = perf_counter()
        batch = next(batches)
        waited += perf_counter() - before
        assert len(batch["label"]) == len(batch["tokens"])
        step(batch)
    seconds = perf_counter() - start
    return Report(first, order.steps, seconds, waited, _worked(processes) - worked)


def _children() -> list[int]:
    """The pids of the workers."""
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def _worked(processes: Sequence[int]) -> float:
    """Seconds of processors that all threads of some processes have taken so far."""
    return sum(clock_gettime(~pid << 3 | 2) for pid in processes)  # clock_getcpuclockid(3), which Python has not


def _passed(order: Order, place: Place) -> Report:
    ids: list[int] = []
    for batch in _loader(order, place):
        numbers, labels = batch["id"].tolist(), batch["label"].tolist()
        for number, tokens, label in zip(numbers, batch["tokens"].numpy(), labels, strict=True):
            assert SMALL.same({"id": number, "tokens": tokens, "label": label}, number), (order.way, number)
        ids += numbers
    return Report(ids=ids)


if __name__ == "__main__":
    main()
