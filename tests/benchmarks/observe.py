"""What it costs to look at a stream while it flows.

Run as ``python tests/benchmarks/observe.py [--rounds N] [--only NAME] [--json FILE]``; see README.md.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rig import Claim, Contender, Table, Times, command_line, exhaust

from squirrel_torch import IterableSource, StreamLoader
from squirrel_torch.observe import tracing

OFF = "nobody looks"
TRACE = "trace"
WRITTEN = "trace, and its file"
FIGURES = "figures of the stages"

BATCH = 64
BATCHES = 3000
TARGET = 1.02

Look = Callable[[], AbstractContextManager[Any]]


@dataclass
class Job:
    """A stream that is gone through once more when the clock runs, and who looks at it meanwhile."""

    stream: Any
    look: Look
    close: Callable[[], object]
    path: Path | None

    def __iter__(self) -> Iterator[Any]:
        with self.look():
            yield from self.stream


def flow(job: Job, *, all_of_it: bool) -> float:
    """Seconds in which the items came, or until whoever looked is done with it."""
    start = perf_counter()
    with job.look():
        exhaust(job.stream)
        seconds = perf_counter() - start
    return perf_counter() - start if all_of_it else seconds


def sample(number: int) -> tuple[np.ndarray[Any, Any], int]:
    """A small one, as a table has them: 32 numbers, and a label."""
    return np.full(32, number, np.float32), number % 10


def loader_job(workers: int, look: Look, path: Path | None, n: int) -> Job:
    """Batches of a loader whose workers are there already."""
    loader = StreamLoader(
        IterableSource(range(n)).map(sample), batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )
    exhaust(zip(range(4), loader, strict=False))
    return Job(loader, look, loader.close, path)


def claims(what: str, times: Times) -> list[Claim]:
    """It takes next to nothing."""
    ratio = times.ratio(what, OFF)
    return [Claim(f"{ratio:.3f} x of what it takes without (target {TARGET})", ratio <= TARGET)]


def cheap(number: int) -> int:
    """Next to nothing, so that whatever looks weighs as much as it can."""
    return number + 1


def figures(name: str, title: str, n: int, workers: int, _: ExitStack) -> Table:
    """With figures of the stages, which are on by default, and without."""

    def make(observe: bool) -> Callable[[int], tuple[Job, bool]]:
        def of(n: int) -> tuple[Job, bool]:
            chain = IterableSource(range(n)).map(cheap).map(cheap).map(cheap).batched(BATCH)
            loader = StreamLoader(chain, num_workers=workers, persistent_workers=workers > 0, observe=observe)
            exhaust(zip(range(4), loader, strict=False))
            return Job(loader, nullcontext, loader.close, None), False

        return of

    return Table(
        name=name,
        title=title,
        items=n,
        limit=OFF,
        contenders=[Contender(OFF, make(False)), Contender(FIGURES, make(True), base=OFF)],
        check=check_figures,
        claims=partial(claims, FIGURES),
        work=lambda made: flow(made[0], all_of_it=False),
        took=float,
        close=lambda made: made[0].close(),
    )


def check_figures(contender: Contender, made: tuple[Job, bool], n: int) -> None:
    """All items come, and the figures tell of all."""
    loader = made[0].stream
    assert sum(map(len, made[0])) == n // BATCH * BATCH
    seen = loader.report().figures
    assert seen.loading.batches == n // BATCH
    if contender.name == FIGURES:
        assert seen.items == n // BATCH, seen
        assert sum(stage.busy for stage in seen.stages) > 0


def chunks_job(look: Look, path: Path | None, n: int) -> Job:
    """Items that travel in chunks through threads."""
    return Job(IterableSource(range(n)).async_map(sample, max_workers=2), look, lambda: None, path)


def check(contender: Contender, made: tuple[Job, bool], n: int) -> None:
    """All items come, and the trace tells of all."""
    job, _ = made
    seen = sum(len(item[0]) if isinstance(item, list) else 1 for item in job)
    assert seen == n, (contender.name, seen, n)
    if contender.name == TRACE:
        assert job.path is not None
        events = json.loads(job.path.read_text())["traceEvents"]
        steps = [event["args"]["step"] for event in events if event.get("cat") == "step"]
        items = sum(event["args"]["items"] for event in events if event.get("cat") == "chunk")
        assert items == n or steps == [*range(-(-n // BATCH))], (len(steps), items)


def table(name: str, title: str, n: int, make: Callable[[Look, Path | None, int], Job], stack: ExitStack) -> Table:
    """Without anybody, and with a trace: while the stream flows, and until the file is written."""
    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "trace.json"
    traced = partial(make, partial(tracing, path, most_bytes=1 << 30), path)

    return Table(
        name=name,
        title=title,
        items=n,
        limit=OFF,
        contenders=[
            Contender(OFF, lambda n: (make(nullcontext, None, n), False)),
            Contender(TRACE, lambda n: (traced(n), False), base=OFF),
            Contender(WRITTEN, lambda n: (traced(n), True), base=OFF),
        ],
        check=check,
        claims=partial(claims, TRACE),
        work=lambda made: flow(made[0], all_of_it=made[1]),
        took=float,
        close=lambda made: made[0].close(),
    )


TABLES: dict[str, Callable[[ExitStack], Table]] = {
    "trace-workers": partial(
        table,
        "trace-workers",
        f"batches of {BATCH} small samples, made by 2 workers, taken at once",
        BATCH * BATCHES,
        partial(loader_job, 2),
    ),
    "trace-inline": partial(
        table,
        "trace-inline",
        f"batches of {BATCH} small samples, made by the process that takes them",
        BATCH * BATCHES,
        partial(loader_job, 0),
    ),
    "figures-inline": partial(
        figures, "figures-inline", "three cheap maps and batches of 64, in the process that takes them", 64 * 100_000, 0
    ),
    "figures-workers": partial(figures, "figures-workers", "the same by 2 workers", 64 * 100_000, 2),
    "trace-chunks": partial(
        table, "trace-chunks", "small samples made by 2 threads of async_map, in chunks", 200_000, chunks_job
    ),
}


if __name__ == "__main__":
    command_line(__doc__ or "", TABLES, rounds=7)
