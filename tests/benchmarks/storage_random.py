"""Reading some samples by their numbers, and what checksums cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rig import Claim, Contender, Table, Times, exhaust
from storage_jobs import Datasets, Options, at_least, check_in_order, permutation, touch
from storage_peers import (
    HF,
    arrow_rows,
    hf_dataset,
    open_batches,
)
from storage_samples import ARRAYS, SMALL, Kind
from stream import OURS

from squirrel_torch import IterableSource
from squirrel_torch.storage import ShardStore

# -- verification ---------------------------------------------------------------------------------------------------------


def verify(kind: Kind, options: Options, resources: ExitStack) -> Table:
    """What checksums cost."""
    data = Datasets(options, resources)
    items = options.rows if kind is SMALL else options.images

    def claims(times: Times) -> list[Claim]:
        return [Claim(f"{name!r} takes {times.ratio(name, 'never'):.2f} x 'never' (no target)") for name in ("block", "shard")]

    return Table(
        f"verify-{kind.name}",
        f"{items:,} samples ({kind.name}) in order, by what is verified",
        items,
        "never",
        [
            Contender(how, lambda n, how=how: IterableSource(data.own(kind, n, verify=how)), base="never" * (how != "never"))
            for how in ("never", "block", "shard")
        ],
        check_in_order(kind),
        claims,
        work=touch if kind is ARRAYS else exhaust,
        unit=("us/sample", 1e6),
    )


# -- random access --------------------------------------------------------------------------------------------------------


def lazily(make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """What `make` gives, made when its first item is asked for."""
    return chain.from_iterable(make() for _ in range(1))


def warm(store: ShardStore) -> ShardStore:
    """A store whose shards have been opened, and verified."""
    list(store.select(np.linspace(0, len(store) - 1, 50).astype(int)))
    return store


def taken(kind: Kind, paths: list[Path], chosen: Any) -> Iterator[Any]:
    """Rows by `take`, all at once."""
    table = pa.Table.from_batches(open_batches(paths))
    return lazily(lambda: arrow_rows(kind, table.take(chosen).combine_chunks().to_batches()))


def gathered(kind: Kind, paths: list[Path], chosen: Any) -> Iterator[Any]:
    """Rows of which each is a slice of its batch."""
    batches = list(open_batches(paths))
    starts = np.cumsum([0, *map(len, batches)])
    places = np.searchsorted(starts, chosen, side="right") - 1
    slices = (batches[place].slice(row, 1) for place, row in zip(places, (chosen - starts[places]).tolist(), strict=True))
    return arrow_rows(kind, slices)


def at_random(kind: Kind, options: Options, resources: ExitStack) -> Table:
    """Some rows by their numbers."""
    data = Datasets(options, resources)
    total, count = (options.rows, 2000) if kind is SMALL else (options.images, 1000)
    chosen = permutation(total)[:count]
    limit, row, select = "pyarrow take by hand", f"{OURS}, row(i)", f"{OURS}, select"

    def rows_of(store: ShardStore) -> Iterator[Any]:
        return map(store.row, chosen.tolist())

    def selected(store: ShardStore) -> Iterator[Any]:
        return lazily(lambda: store.select(chosen))

    def of_hf() -> Any:
        return hf_dataset(data.of(HF, kind, total))

    def claims(times: Times) -> list[Claim]:
        fast, slow = times.ratio(limit, select), times.ratio(limit, row)
        found = [Claim(f"{select} {fast:.2f} x the throughput of {limit}, row(i) {slow:.2f} x")]
        if HF.name not in times:
            return found
        return [*found, at_least(f"row(i) {{:.1f}} x {HF.name}", times.ratio(HF.name, row), 1)]

    return Table(
        f"random-{kind.name}",
        f"{count:,} of {total:,} samples ({kind.name}) by their numbers, at random",
        count,
        limit,
        [
            Contender(limit, lambda n: taken(kind, data.shards(kind, total), chosen), note="all at once, copies"),
            Contender("pyarrow slices by hand", lambda n: gathered(kind, data.shards(kind, total), chosen), note="one by one"),
            Contender(row, lambda n: rows_of(warm(data.own(kind, total))), note="open store"),
            Contender(select, lambda n: selected(warm(data.own(kind, total))), note="open store"),
            Contender(f"{row}, new store", lambda n: rows_of(data.own(kind, total)), note="verifies whole shards first"),
            Contender(f"{row}, new store, verify='block'", lambda n: rows_of(data.own(kind, total, verify="block"))),
            Contender(HF.name, lambda n: map(of_hf().__getitem__, chosen.tolist()), needs=HF.needs, note="dataset[i]"),
            Contender(f"{HF.name}, select", lambda n: iter(of_hf().select(chosen)), needs=HF.needs),
        ],
        lambda contender, stream, n: kind.check(stream, chosen.tolist(), contender.name),
        claims,
        work=touch if kind is ARRAYS else exhaust,
        unit=("us/sample", 1e6),
    )
