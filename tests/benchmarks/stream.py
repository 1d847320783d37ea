"""What the stream itself costs: chain, shuffle, start of a DataLoader, monitor.

Run as ``python tests/benchmarks/stream.py [--rounds N] [--only NAME] [--json FILE]``; see README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
from rig import Claim, Contender, Table, Times, command_line
from stream_peers import (
    BATCH,
    BUFFER,
    core_source,
    even,
    grain_chain,
    grain_shuffle,
    hf_chain,
    hf_shuffle,
    inc,
    loader_chain,
    loader_shuffle,
    nodes_chain,
    spdl_chain,
    torch_source,
    webdataset_chain,
    webdataset_shuffle,
)
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from squirrel_torch import Composable, IterableSource

OURS = "squirrel_torch"
CORE = "squirrel-core"
TORCH = "torch IterDataPipes"
LOADER = "torch DataLoader"
NODES = "torchdata.nodes"
WEBDATASET = "webdataset"
GRAIN = "grain"
SPDL = "spdl"
HF = "HF datasets"
OWN_CLASS = "squirrel_torch, user's Composable subclass"


def at_most(text: str, figure: float, target: float) -> Claim:
    """The claim that `figure` stays within `target`; `text` has a place for the figure."""
    return Claim(f"{text.format(figure)} (target at most {target:g})", figure <= target)


# -- chain ----------------------------------------------------------------------------------------------------------------


def mapped(items: Iterable[int], callback: Callable[[int], int]) -> Iterator[int]:
    """`map` by hand."""
    for item in items:
        yield callback(item)


def filtered(items: Iterable[int], predicate: Callable[[int], bool]) -> Iterator[int]:
    """`filter` by hand."""
    for item in items:
        if predicate(item):
            yield item


def batched(items: Iterator[int], size: int) -> Iterator[list[int]]:
    """`batched` by hand: full batches only."""
    while len(batch := list(islice(items, size))) == size:
        yield batch


class OwnMap(Composable[int]):
    """A stage as users write it: a class with a generator."""

    def __init__(self, callback: Callable[[int], int]) -> None:
        super().__init__()
        self.callback = callback

    def __iter__(self) -> Iterator[int]:
        callback = self.callback
        for item in self.source:
            yield callback(item)


def fused_chain(n: int) -> Iterator[list[int]]:
    """The whole chain in one loop: what is left when nothing is composed."""
    batch = []
    for item in range(n):
        item = inc(item)
        if even(item):
            batch.append(item)
            if len(batch) == BATCH:
                yield batch
                batch = []


def check_chain(contender: Contender, stream: Any, n: int) -> None:
    """All full batches of the even numbers, in order."""
    evens = list(range(2, n + 1, 2))
    expected = [evens[i : i + BATCH] for i in range(0, len(evens) - BATCH + 1, BATCH)]
    assert [list(batch) for batch in stream] == expected, contender.name


def chain() -> Table:
    """map, filter and batch over a million ints."""
    limit = "plain generators"

    def claims(times: Times) -> list[Claim]:
        faster = times.ratio(TORCH, OURS)
        return [
            at_most(f"{OURS} {{:.2f}} x {limit}", times.ratio(OURS, limit), 1.15),
            at_most(f"{OWN_CLASS} {{:.2f}} x the built-in stage", times.ratio(OWN_CLASS, OURS), 1.1),
            Claim(f"{faster:.0f} times less time than {TORCH} (target at least 20)", faster >= 20),
        ]

    return Table(
        "chain",
        "1,000,000 ints through map, filter, batch of 64",
        1_000_000,
        limit,
        [
            Contender("one fused loop", fused_chain),
            Contender(limit, lambda n: batched(filtered(mapped(iter(range(n)), inc), even), BATCH), note="one per stage"),
            Contender(OURS, lambda n: IterableSource(range(n)).map(inc).filter(even).batched(BATCH)),
            Contender(OWN_CLASS, lambda n: IterableSource(range(n)).compose(OwnMap, inc).filter(even).batched(BATCH)),
            Contender(CORE, lambda n: core_source(range(n)).map(inc).filter(even).batched(BATCH), needs="squirrel"),
            Contender(WEBDATASET, webdataset_chain, needs="webdataset"),
            Contender(TORCH, lambda n: torch_source(range(n)).map(inc).filter(even).batch(BATCH, drop_last=True), share=0.1),
            Contender(LOADER, loader_chain, note="IterableDataset of one generator"),
            Contender(NODES, nodes_chain, share=0.2, note="and a node that filters"),
            Contender(GRAIN, grain_chain, share=0.05, needs="grain", note="MapDataset.range, no threads"),
            Contender(SPDL, spdl_chain, share=0.005, needs="spdl", note="a thread"),
            Contender(HF, hf_chain, share=0.05, needs="datasets", note="IterableDataset of dicts"),
        ],
        check_chain,
        claims,
    )


# -- shuffle --------------------------------------------------------------------------------------------------------------


def permuted_blocks(n: int) -> Iterator[int]:
    """Blocks of the stream, each in the order of a permutation by numpy: a weaker shuffle than a buffer's."""
    rng = np.random.default_rng(0)
    items = iter(range(n))
    while block := list(islice(items, BUFFER)):
        for index in rng.permutation(len(block)).tolist():
            yield block[index]


def check_shuffle(contender: Contender, stream: Any, n: int) -> None:
    """Every item once, and hardly any at its old place."""
    items = list(stream)
    assert sorted(items) == list(range(n)), contender.name
    assert sum(place == item for place, item in enumerate(items)) < n / 100, contender.name


def shuffle() -> Table:
    """A shuffle buffer of ten thousand over a million ints."""
    limit = "numpy permutation of blocks"

    def claims(times: Times) -> list[Claim]:
        return [at_most(f"{OURS} {{:.2f}} x {limit}", times.ratio(OURS, limit), 2)]

    return Table(
        "shuffle",
        "shuffle(10_000) over 1,000,000 ints, taken one by one",
        1_000_000,
        limit,
        [
            Contender(limit, permuted_blocks, note="a weaker shuffle"),
            Contender(OURS, lambda n: IterableSource(range(n)).shuffle(BUFFER)),
            Contender(CORE, lambda n: core_source(range(n)).shuffle(BUFFER), needs="squirrel"),
            Contender(WEBDATASET, webdataset_shuffle, needs="webdataset"),
            Contender(TORCH, lambda n: torch_source(range(n)).shuffle(buffer_size=BUFFER), share=0.2),
            Contender(LOADER, loader_shuffle, share=0.1, note="shuffle=True: any permutation"),
            Contender(GRAIN, grain_shuffle, share=0.05, needs="grain", note="MapDataset: any permutation, no threads"),
            Contender(HF, hf_shuffle, share=0.05, needs="datasets", note="IterableDataset of dicts"),
        ],
        check_shuffle,
        claims,
    )


# -- start of a DataLoader ------------------------------------------------------------------------------------------------


class PlainDataset(IterableDataset):
    """The least that a DataLoader can be given: a generator that deals itself out to the workers."""

    def __init__(self, data: list[Any], callback: Callable[[Any], Any]) -> None:
        self.data = data
        self.callback = callback

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        for item in self.data if info is None else islice(self.data, info.id, None, info.num_workers):
            yield self.callback(item)


@cache
def million_dicts() -> list[dict[str, int]]:
    """A dataset in memory."""
    return [{"x": i, "label": i % 10} for i in range(1_000_000)]


def next_x(sample: dict[str, int]) -> dict[str, int]:
    """The callback of the datasets."""
    return {**sample, "x": sample["x"] + 1}


def open_loader(dataset: Callable[[], Any], workers: int) -> Iterator[Any]:
    """What is timed: from the data in hand to the running iterator, workers included."""
    context = "fork" if workers else None
    loader = DataLoader(dataset(), BATCH, num_workers=workers, collate_fn=list, multiprocessing_context=context)
    return iter(loader)


def check_start(contender: Contender, start: Callable[[], Iterator[Any]], n: int) -> None:
    """The first batch holds the first items; of every second item where two workers share."""
    items = next(start())
    step = items[1]["x"] - items[0]["x"]
    assert step in (1, 2), contender.name
    assert items == [next_x(sample) for sample in million_dicts()[: BATCH * step : step]], contender.name


def start(workers: int) -> Table:
    """`iter(DataLoader(...))` over a million dicts in memory."""
    limit = "plain IterableDataset"
    data = million_dicts()
    datasets = {
        limit: lambda: PlainDataset(data, next_x),
        OURS: lambda: IterableSource(data).map(next_x).to_torch_iterable(),
        TORCH: lambda: torch_source(data).map(next_x),
    }

    def claims(times: Times) -> list[Claim]:
        less = times.ratio(TORCH, OURS)
        return [
            at_most(f"{OURS} {{:.1f}} ms", times.median(OURS) * 1e3, 50),
            Claim(f"{less:.0f} times less time than {TORCH}"),
        ]

    return Table(
        f"start-{workers}",
        f"iter(DataLoader(...)) with num_workers={workers} over 1,000,000 dicts in memory",
        1,
        limit,
        [Contender(name, lambda _, make=make: partial(open_loader, make, workers)) for name, make in datasets.items()],
        check_start,
        claims,
        work=lambda start: start(),
        unit=("ms", 1e3),
    )


# -- monitor --------------------------------------------------------------------------------------------------------------

SAMPLES = 200_000


def noop(metrics: dict[str, Any]) -> None:
    """A logger that logs nowhere."""


def kilobytes() -> list[Any]:
    """Samples that are one array of 1 kB."""
    return [np.full(250, i, np.float32) for i in range(SAMPLES)]


def labelled_kilobytes() -> list[Any]:
    """Samples as they are trained on: a dict with an array of 1 kB, a number and a text."""
    return [{"x": x, "label": i % 10, "name": f"sample {i:06d}"} for i, x in enumerate(kilobytes())]


def bytes_of(sample: Any) -> int:
    """The size of a sample of one of the two kinds above."""
    return sample.nbytes if isinstance(sample, np.ndarray) else sample["x"].nbytes + 8 + len(sample["name"])


def counted(samples: Iterable[Any]) -> Iterator[Any]:
    """A monitor by hand, that knows its samples: counts items and bytes, reports once a second."""
    count, size, since = 0, 0, perf_counter()
    for sample in samples:
        count += 1
        size += bytes_of(sample)
        if (now := perf_counter()) - since >= 1:
            noop({"items/s": count / (now - since), "bytes/s": size / (now - since)})
            count, size, since = 0, 0, now
        yield sample


def monitor(name: str, title: str, make_samples: Callable[[], list[Any]]) -> Table:
    """What watching a stream costs."""
    limit, watched, core_watched = f"{OURS}, not monitored", f"{OURS}.monitor(noop)", f"{CORE}.monitor(noop)"
    core_limit = f"{CORE}, not monitored"
    samples = make_samples()

    def check(contender: Contender, stream: Any, n: int) -> None:
        assert all(given is sample for given, sample in zip(stream, samples[:n], strict=True)), contender.name

    def claims(times: Times) -> list[Claim]:
        found = [at_most(f"{OURS}'s monitor {{:.2f}} us per item", times.cost(watched, limit) * 1e6, 1)]
        if core_watched in times:
            found.append(Claim(f"{CORE}'s {times.cost(core_watched, core_limit) * 1e6:.2f} us"))
        return found

    return Table(
        name,
        title,
        SAMPLES,
        limit,
        [
            Contender(limit, lambda n: IterableSource(samples[:n])),
            Contender(
                "by hand: counters", lambda n: IterableSource(samples[:n]).to(counted), base=limit, note="knows its samples"
            ),
            Contender(watched, lambda n: IterableSource(samples[:n]).monitor(noop), base=limit, note="a report a second"),
            Contender(core_limit, lambda n: core_source(samples[:n]), needs="squirrel"),
            Contender(
                core_watched,
                lambda n: core_source(samples[:n]).monitor(noop),
                needs="squirrel",
                base=core_limit,
                note="a report an item",
            ),
        ],
        check,
        claims,
        unit=("us/item", 1e6),
    )


# -- command line ---------------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[], Table]] = {
    "chain": chain,
    "shuffle": shuffle,
    "start-0": partial(start, 0),
    "start-2": partial(start, 2),
    "monitor-arrays": partial(monitor, "monitor-arrays", "200,000 arrays of 1 kB", kilobytes),
    "monitor-dicts": partial(monitor, "monitor-dicts", "200,000 dicts {x: 1 kB, label, name}", labelled_kilobytes),
}


if __name__ == "__main__":
    tables = {name: lambda _, make=make: make() for name, make in TABLES.items()}
    command_line("What the stream itself costs, next to plain Python and to peers.", tables, rounds=7)
