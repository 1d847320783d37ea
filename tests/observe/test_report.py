"""What `StreamLoader.report` tells, of this process and of workers."""

import sys
import threading
from itertools import islice
from time import sleep, thread_time

import pytest

from squirrel_torch import IterableSource, StreamLoader
from tests.support import run_script


def compute(item):
    end = thread_time() + 2e-3
    while thread_time() < end:
        pass
    return item


def odd(number):
    return number % 2


def counts(report):
    return [(stage.name, stage.items) for stage in report.figures.stages]


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)])
def test_a_planned_chain(workers, method):
    chain = IterableSource(range(250)).shuffle(100).map(compute).batched(4, drop_last_if_not_full=False)
    loader = StreamLoader(chain, num_workers=workers, multiprocessing_context=method)
    assert len(list(loader)) == 63
    report = loader.report()
    source = "IterableSource(range of 250)"
    assert counts(report) == [(source, 250), ("shuffle(100)", 250), ("map(compute)", 250), (chain_end(report), 63)]
    assert [stage.planned for stage in report.figures.stages] == [False, True, False, False]
    assert (report.figures.loading.batches, report.figures.loading.samples) == (63, 250)
    assert report.figures.loading.workers == workers
    assert report.figures.makers == max(workers, 1)
    seen = report.figures.stages[2]
    assert seen.cpu == pytest.approx(0.5, rel=0.5)
    assert seen.busy >= 0.8 * seen.cpu
    assert report.figures.warnings == ()


def chain_end(report):
    return report.figures.stages[-1].name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_chain_that_is_not_planned(workers):
    loader = StreamLoader(IterableSource(range(400)).filter(odd).map(str).batched(5), num_workers=workers, streams=4)
    assert sum(map(len, loader)) == 200
    report = loader.report()
    assert counts(report)[-2:] == [("map(str)", 200), ("batched(5)", 40)]
    assert [stage.place for stage in report.figures.stages] == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_chain_that_is_dealt_out(workers):
    chain = IterableSource(range(60)).take(50).split_by_rank().map(str).batched(5)
    loader = StreamLoader(chain, num_workers=workers)
    assert len(list(loader)) == 10
    assert counts(loader.report())[-2:] == [("map(str)", 50), ("batched(5)", 10)]


def test_calls_elsewhere_in_workers():
    loader = StreamLoader(IterableSource(range(100)).async_map(compute, max_workers=2).batched(5), num_workers=2)
    assert len(list(loader)) == 20
    (stage,) = (stage for stage in loader.report().figures.stages if stage.calls is not None)
    assert (stage.name, stage.calls.workers, stage.calls.count) == ("async_map(compute, max_workers=2)", 4, 100)


def test_each_pass_has_its_own_figures():
    loader = StreamLoader(IterableSource(range(40)).batched(4))
    list(loader)
    assert len(list(islice(loader, 3))) == 3
    assert loader.report().figures.items == 3


def test_a_pass_that_was_left_and_one_that_has_not_begun():
    loader = StreamLoader(IterableSource(range(1000)).map(compute).batched(4), num_workers=2)
    assert loader.report().verdict.cause == "unknown"
    for number, _ in enumerate(loader):
        if number == 100:
            break
    report = loader.report()
    assert report.verdict.place == 1
    # Where others use the cores, it waits for its turn.
    assert report.verdict.cause in ("cpu", "cores", "latency")


def test_the_consumer_is_not_the_data():
    loader = StreamLoader(IterableSource(range(40)).batched(1))
    for _ in loader:
        sleep(0.01)
    assert loader.report().verdict.cause == "consumer"
    assert loader.report().figures.loading.wait_share < 0.1


def test_nobody_looks_if_it_is_not_wanted():
    loader = StreamLoader(IterableSource(range(40)).map(str).batched(4), observe=False)
    passing = iter(loader)
    next(passing)
    assert "squirrel_torch_sampler" not in [thread.name for thread in threading.enumerate()]
    list(passing)
    figures = loader.report().figures
    assert [stage.items for stage in figures.stages] == [None, None, None]
    assert figures.loading.batches == 10


def test_threads_switch_as_they_did():
    before = sys.getswitchinterval()
    loader = StreamLoader(IterableSource(range(40)).map(compute).batched(4))
    list(loader)
    assert sys.getswitchinterval() == before


def test_whoever_rests_is_not_looked_at(monkeypatch):
    monkeypatch.setattr("squirrel_torch.observe.sampler._IDLE", 0.1)
    loader = StreamLoader(IterableSource(range(80)).map(compute).batched(4))
    passing = iter(loader)
    next(passing)
    for _ in range(300):
        if all(thread.name != "squirrel_torch_sampler" for thread in threading.enumerate()):
            break
        sleep(0.01)
    else:
        pytest.fail("the thread that looks is still there")
    assert len(list(passing)) == 19
    (stage,) = (stage for stage in loader.report().figures.stages if stage.name == "map(compute)")
    assert stage.items == 80
    assert stage.downstream > 0.2


def test_what_a_source_raises_at_its_end_comes_out():
    def numbers():
        try:
            yield from range(100)
        finally:
            raise OSError("closing failed")

    passing = iter(StreamLoader(IterableSource(numbers).batched(4)))
    next(passing)
    with pytest.raises(OSError, match="closing failed"):
        passing.close()


def test_watching(capsys):
    loader = StreamLoader(IterableSource(range(200)).map(compute).batched(4))
    with loader.watch(every=0.1):
        list(loader)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert "map(compute)" in lines[-1]


RANKS = """
import torch.distributed as dist
from squirrel_torch import IterableSource, StreamLoader
dist.init_process_group("gloo")
loader = StreamLoader(IterableSource(range(100)).map(str).batched(5), num_workers=1)
batches = len(list(loader))
report = loader.report(ranks=True)
figures = report.figures
print(f"{batches} of {figures.items}, {figures.ranks} ranks, {figures.loading.workers} workers\\n", end="", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_figures_of_all_ranks(tmp_path):
    printed = run_script(RANKS, tmp_path, torchrun=2)
    assert printed.count("10 of 20, 2 ranks, 2 workers") == 2
