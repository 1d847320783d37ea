"""A real scheduler and real workers, as processes."""

import threading

import pytest

from tests.support import run_script

pytestmark = pytest.mark.slow

CLUSTER = """
import os, signal, subprocess, sys, time, warnings
import numpy as np
from squirrel_torch import ExecutorLostError, IterableSource, WorkerDiedError

def start():
    file = "scheduler.json"
    def launch(kind, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", file, "--no-dashboard", *arguments]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)
    scheduler = launch("scheduler", "--port", "0")
    workers = [launch("worker", "--nthreads", "1") for _ in range(2)]
    import json
    while not os.path.exists(file):
        time.sleep(0.05)
    address = json.load(open(file))["address"]
    from distributed import Client
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    return address, scheduler, workers

def main():
    address, scheduler, workers = start()
    try:
        check(address, scheduler)
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()
    print("ok")

def slow(x):
    time.sleep(0.02)
    return x
"""

MAIN = """
if __name__ == "__main__":
    main()
"""


def passes(check, folder):
    assert run_script(CLUSTER + check + MAIN, folder).endswith("ok\n")


def test_large_things_and_equal_calls(tmp_path):
    passes(
        """
def check(address, scheduler):
    from distributed import Client
    big = np.ones(3_000_000)
    with Client(address) as client:
        for executor in (client, address):
            stream = IterableSource(range(60)).async_map(lambda x: float(x + big[0]), executor=executor)
            assert stream.collect() == [float(x + 1) for x in range(60)]
        items = [np.full(500_000, n) for n in range(6)]
        received = IterableSource(items).async_map(lambda x: x + 1, executor=client).collect()
        assert [(x[0], len(x)) for x in received] == [(n + 1, 500_000) for n in range(6)]
        # Equal calls are two calls.
        drawn = IterableSource([0] * 50).async_map(lambda _: os.urandom(8), executor=client).collect()
        assert len(set(drawn)) == 50
        # The client is left open, and nothing of ours is left on the cluster.
        assert client.submit(lambda: 1).result() == 1
        time.sleep(1)
        names = [key for keys in client.has_what().values() for key in keys]
        assert not [key for key in names if "work_on" in str(key)], names
""",
        tmp_path,
    )


def test_shards_are_written_on_the_cluster(tmp_path):
    passes(
        """
def check(address, scheduler):
    from squirrel_torch import ShardStore
    folder = os.path.abspath("data")
    source = IterableSource(range(1000)).map(lambda n: {"n": n, "x": np.full(10, n)})
    written = source.sink(ShardStore(folder, shard_rows=100), executor=address)
    assert (written.rows, len(written.shards)) == (1000, 10)
    store = ShardStore(folder)
    assert [(sample["n"], sample["x"][9]) for sample in store] == [(n, n) for n in range(1000)]
    again = IterableSource(store.keys()).async_map(store.get, executor=address).map(lambda sample: sample["n"])
    assert again.collect() == list(range(1000))
    # Large shards are data for the scheduler, no part of a task: dask would warn of that.
    warnings.simplefilter("error")
    large = IterableSource(range(3)).map(lambda n: {"x": np.full(1_500_000, n)})
    large.sink(ShardStore(folder, mode="overwrite", shard_rows=1), executor=address)
    assert [sample["x"][-1] for sample in ShardStore(folder)] == [0, 1, 2]
""",
        tmp_path,
    )


def test_an_item_that_takes_workers_with_it_is_named(tmp_path):
    passes(
        """
def check(address, scheduler):
    def callback(x):
        if x == 7:
            os.kill(os.getpid(), 9)
        return x
    seen = []
    try:
        seen.extend(IterableSource(range(12)).async_map(callback, executor=address))
    except WorkerDiedError as error:
        assert "on the item 7" in str(error), error
        assert "on item 7: 7" in error.__notes__[0], error.__notes__
    assert seen == list(range(7)), seen
""",
        tmp_path,
    )


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_scheduler_that_is_lost(how, tmp_path):
    passes(
        f"""
def check(address, scheduler):
    from squirrel_torch.execution.places import dask
    dask._SILENCE = 2.0
    run = iter(IterableSource(range(100_000)).async_map(slow, executor=address))
    assert next(run) == 0
    scheduler.send_signal(signal.{how})
    start = time.monotonic()
    try:
        for _ in run:
            pass
    except ExecutorLostError as error:
        assert address in str(error), error
    else:
        raise AssertionError
    assert time.monotonic() - start < 10, "twice the silence, whatever came back meanwhile"
""",
        tmp_path,
    )


def test_leaving_a_run_whose_scheduler_is_lost(tmp_path):
    passes(
        """
def check(address, scheduler):
    for left in (1, 60):
        run = iter(IterableSource(range(100_000)).async_map(slow, executor=address))
        for _ in range(left):
            next(run)
        scheduler.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        run.close()
        assert time.monotonic() - start < 4
        scheduler.send_signal(signal.SIGCONT)
""",
        tmp_path,
    )


@pytest.mark.parametrize("request_of", ["gather", "scatter"])
def test_a_scheduler_that_is_lost_while_it_is_asked(request_of, tmp_path):
    passes(
        f"""
def check(address, scheduler):
    from distributed import Client
    from squirrel_torch.execution.places import dask
    original = Client.{request_of}
    def stopped(self, *arguments, **options):
        scheduler.send_signal(signal.SIGSTOP)
        return original(self, *arguments, **options)
    items = [np.zeros(300_000) for _ in range(100)]
    run = iter(IterableSource(items).async_map(slow, executor=address, buffer=4))
    next(run)  # with the usual patience: a busy machine may be slow to begin
    dask._SILENCE = 1.0
    Client.{request_of} = stopped
    start = time.monotonic()
    try:
        list(run)
    except ExecutorLostError as error:
        assert address in str(error), error
    else:
        raise AssertionError
    assert time.monotonic() - start < 20
""",
        tmp_path,
    )


@pytest.mark.keeps_threads
def test_no_scheduler(monkeypatch):
    from squirrel_torch import ExecutorLostError, IterableSource
    from squirrel_torch.execution.places import dask

    monkeypatch.setattr(dask, "_CONNECT", 0.5)
    stream = IterableSource([1]).async_map(lambda x: x, executor="tcp://127.0.0.1:9")
    with pytest.raises(ExecutorLostError, match="no dask scheduler answers at"):
        stream.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("squirrel_torch")]
