"""A batch that does not come is told of: where it hangs."""

import asyncio
import logging
import threading
import time

import pytest

from squirrel_torch import IterableSource, StreamLoader

pytestmark = pytest.mark.slow


def hang(x):
    if x == 5:
        time.sleep(1)
    return x


async def hang_async(x):
    if x == 5:
        await asyncio.sleep(1)
    return x


def source():
    for x in range(8):
        yield hang(x)


def told(caplog, loader):
    with caplog.at_level(logging.WARNING, "squirrel_torch"):
        batches = list(loader)
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7]]
    first = next(record.getMessage() for record in caplog.records)
    return first.splitlines()[0], first


def test_a_map(caplog):
    head, report = told(caplog, StreamLoader(IterableSource(range(8)).map(hang).batched(2), report_after=0.2))
    assert "rank 0 waits for step 2 of epoch 0, which hangs in stage 1 of 2, Map(callback=hang at test_hanging.py:" in head
    assert "written at " in head
    assert head.endswith(", on item: 5")
    assert report.splitlines()[-1].strip() == "time.sleep(1)"


def test_a_source(caplog):
    head, report = told(caplog, StreamLoader(IterableSource(source).batched(2), report_after=0.2))
    assert "hangs in the source, IterableSource(source)" in head
    assert "in hang\n" in report


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker(method, caplog):
    chain = IterableSource(range(8)).map(hang).batched(2)
    loader = StreamLoader(chain, num_workers=1, multiprocessing_context=method, persistent_workers=True, report_after=0.2)
    with caplog.at_level(logging.WARNING, "squirrel_torch"):
        assert list(loader) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    loader.close()
    reports = [record.getMessage() for record in caplog.records]
    assert any("which worker 0 (pid " in report and "in hang\n" in report for report in reports), reports


@pytest.mark.parametrize(
    ("callback", "executor", "kind"), [(hang, None, "thread"), (hang, "process", "process"), (hang_async, None, "coroutine")]
)
def test_an_async_map(callback, executor, kind, caplog):
    chain = IterableSource(range(8)).async_map(callback, executor=executor, max_workers=None if kind == "coroutine" else 2)
    loader = StreamLoader(chain.batched(2), report_after=0.2)
    with caplog.at_level(logging.WARNING, "squirrel_torch"):
        assert list(loader) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    reports = [record.getMessage() for record in caplog.records]
    assert any(
        "hangs in stage 1 of 2, AsyncMap(" in report
        and ", on the item 5" in report
        and f"async_map ({kind})" in report
        and f"in {callback.__name__}\n" in f"{report}\n"
        for report in reports
    ), "\n".join(reports)


def test_no_thread_where_it_is_off_and_none_left():
    chain = IterableSource(range(8)).batched(2)
    before = threading.active_count()
    batches = iter(StreamLoader(chain, report_after=0, observe=False))
    next(batches)
    assert threading.active_count() == before
    watched = iter(StreamLoader(chain, observe=False))
    next(watched)
    assert threading.active_count() == before + 1
    del watched
    assert threading.active_count() == before
