"""Ways to break async_map that were once found, each seen to break it."""

import gc
import os
import queue
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from squirrel_torch import ClosedRunError, IterableSource, PipelineError
from tests.support import run_script


@pytest.fixture
def restless():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class TestItemsArrive:
    def test_behind_a_burst(self):
        arriving = queue.Queue()

        def source():
            yield from range(100)
            yield from iter(arriving.get, None)

        run = iter(IterableSource(source).async_map(lambda x: time.sleep(0.002) or x, buffer=1000, max_workers=4))
        assert [next(run) for _ in range(100)] == list(range(100))
        for item in range(100, 110):  # each only when the one before has come
            arriving.put(item)
            assert next(run) == item
        arriving.put(None)
        assert list(run) == []

    def test_the_last_ones_too(self, restless):
        stream = IterableSource(range(20)).async_map(lambda x: x, max_workers=1, chunksize=1)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert stream.collect() == list(range(20))


class TestLiveExecutors:
    def test_shut_down_in_the_middle(self):
        pool = ThreadPoolExecutor(2)
        run = iter(IterableSource(range(1000)).async_map(lambda x: time.sleep(0.01) or x, executor=pool))
        next(run)
        pool.shutdown(wait=False, cancel_futures=True)
        with pytest.raises((CancelledError, RuntimeError)):
            list(run)

    @pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
    def test_shut_down_before(self, kind):
        pool = kind(1)
        pool.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            IterableSource([1]).async_map(str, executor=pool).collect()

    def test_what_can_not_be_pickled_is_one_item(self):
        lock = threading.Lock()
        with ProcessPoolExecutor(2) as pool:
            for items, callback in (([0, 1, lock, 3], lambda x: 1), (range(4), lambda x: threading.Lock() if x == 2 else 1)):
                stream = IterableSource(items)
                for chunksize in (1, 4):
                    options = {"executor": pool, "chunksize": chunksize}
                    assert stream.async_map(callback, on_error="skip", **options).collect() == [1, 1, 1]
                    with pytest.raises(TypeError) as caught:
                        stream.async_map(callback, **options).collect()
                    assert "on item 2" in caught.value.__notes__[0]

    def test_an_executor_with_attributes_of_its_own(self):
        class Odd(Executor):
            _threads = 4

            def submit(self, function, /, *args, **kwargs):
                return pool.submit(function, *args, **kwargs)

        with ThreadPoolExecutor(1) as pool:
            assert IterableSource(range(5)).async_map(str, executor=Odd()).collect() == list("01234")


_CLASSES = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from squirrel_torch import IterableSource

@dataclass
class Item:
    x: int

@dataclass
class Result:
    x: int

def made(item):
    assert isinstance(item, Item)
    return Result(item.x)

def main():
    for method in ("fork", "spawn"):
        multiprocessing.set_start_method(method, force=True)
        with ProcessPoolExecutor(1) as pool:
            for executor in ("process", pool):
                anonymous = lambda item: Result(item.x) if isinstance(item, Item) else None
                for callback in (made, lambda item: made(item), anonymous):
                    stream = IterableSource([Item(1), Item(2)]).async_map(callback, executor=executor, max_workers=1)
                    assert [type(result) is Result and result.x for result in stream] == [1, 2], (method, executor)
    print("ok")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_classes_of_the_script_are_the_same_over_there(tmp_path):
    assert run_script(_CLASSES, tmp_path) == "ok\n"


class Unreadable:
    """Can be pickled, and not read again."""

    def __init__(self, error=ValueError):
        self.array = np.zeros(20_000, np.uint8)
        self.error = error

    def __setstate__(self, state):
        raise state["error"]("can't be read")


class Unwritable:
    """Can't be pickled, with an error that looks like that of a broken pipe."""

    def __reduce__(self):
        raise OSError("truncated")


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class TestOwnProcesses:
    def test_in_each_other(self):
        def inner(n):
            return IterableSource(range(n)).async_map(lambda x: x + 1, executor="process", max_workers=1).collect()

        stream = IterableSource([1, 2, 3]).async_map(inner, executor="process", max_workers=1, timeout=60)
        assert stream.collect() == [[1], [1, 2], [1, 2, 3]]

    def test_that_use_multiprocessing_themselves(self):
        def callback(x):
            import multiprocessing

            with multiprocessing.get_context("fork").Pool(1) as pool:
                return pool.apply(abs, (x,))

        assert IterableSource([-1, -2]).async_map(callback, executor="process", max_workers=1).collect() == [1, 2]

    @pytest.mark.parametrize("error", [ValueError, OSError, EOFError, FileNotFoundError])
    def test_items_and_results_that_can_not_be_read(self, error):
        large = [np.full(4 << 20, n, np.uint8) for n in range(1, 4)]
        for callback, items in ((lambda x: int(x[0]), [Unreadable(error), *large]), (lambda x: x, [1, Unreadable(error), 3])):
            for chunksize in (1, 4):
                stream = IterableSource(items).async_map(
                    callback, executor="process", max_workers=1, chunksize=chunksize, on_error="skip"
                )
                run = stream.run()
                assert len(list(run)) == len(items) - 1
                assert run.reports[0].kinds == {error.__name__: 1}

    def test_items_and_results_that_can_not_be_written(self):
        for items, callback in (([1, Unwritable(), 3], lambda x: 0), ([1, 2, 3], lambda x: Unwritable() if x == 2 else 0)):
            run = IterableSource(items).async_map(callback, executor="process", max_workers=1, on_error="skip").run()
            assert list(run) == [0, 0]
            assert "WorkerDiedError" not in run.reports[0].kinds

    def test_an_error_without_words(self):
        def callback(x):
            raise SilentError

        with pytest.raises(SilentError):
            IterableSource([1]).async_map(callback, executor="process").collect()

    def test_fast_items_are_not_blamed_for_slow_ones(self):
        def callback(x):
            time.sleep(0.25 if x % 10 == 7 else 0)
            return x

        run = (
            IterableSource(range(40)).async_map(callback, executor="process", timeout=0.2, on_error="skip", max_workers=2).run()
        )
        assert list(run) == [x for x in range(40) if x % 10 != 7]


class TestThreadsThatCanNotBeStarted:
    @pytest.fixture
    def few(self, monkeypatch):
        start = threading.Thread.start

        def refuse(thread):
            if "_feeder" not in thread.name:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)

    def test_it_is_an_error(self, few):
        with pytest.raises(RuntimeError, match="can't start new thread"):
            IterableSource(range(100)).async_map(lambda x: x).collect()


class TestClosing:
    def close(self, run):
        start = time.monotonic()
        run.close()
        return time.monotonic() - start

    def test_does_not_wait_for_processes_that_are_not_ready_yet(self):
        stream = IterableSource(range(1000)).async_map(
            lambda x: time.sleep(0.2) or x, executor="process", max_workers=8, chunksize=20, ordered=False
        )
        run = iter(stream)
        next(run)
        assert self.close(run) < 3, "a chunk takes four seconds"

    @pytest.mark.parametrize("place", ["thread", "process"])
    def test_does_not_wait_for_the_rest_of_a_chunk(self, place):
        def callback(x):
            time.sleep(0.1 if x >= 170 else 0)
            return x

        run = iter(IterableSource(range(1000)).async_map(callback, executor=place, max_workers=1, chunksize=100))
        next(run)
        time.sleep(0.5)  # the second chunk has come to its slow part
        assert self.close(run) < 2, "which takes three seconds"

    def test_makes_no_further_attempts(self):
        calls, failed = [], threading.Event()

        def callback(x):
            calls.append(x)
            if x:
                failed.set()
                raise OSError
            return x

        run = iter(IterableSource(range(2)).async_map(callback, retries=5, backoff=1000, max_workers=1, chunksize=1))
        next(run)
        assert failed.wait(20)
        run.close()
        assert calls == [0, 1]

    def test_waits_for_callbacks_of_the_stage_before(self):
        running = []

        def slow(x):
            running.append(x)
            time.sleep(1.2)
            running.remove(x)
            return x

        run = iter(IterableSource(range(100)).async_map(slow, max_workers=2).async_map(lambda x: x))
        next(run)
        run.close()
        assert running == []

    def test_of_another_run_is_no_quiet_end(self):
        class Shared:
            run = None

            def __call__(self):
                if self.run is None:
                    self.run = iter(IterableSource(range(100_000)).async_map(lambda x: x))
                return iter(self.run)

        shared = Shared()
        first = iter(IterableSource(shared).async_map(lambda x: x))
        seen = [next(first) for _ in range(3)]
        first.close()
        try:
            seen += IterableSource(shared).async_map(lambda x: x)
        except ClosedRunError:
            return
        assert len(seen) > 99_000, "all but those that were in flight"

    def test_while_threads_are_born(self, restless):
        """Runs in cycles are closed by the garbage collector, in any thread."""

        class Holder:
            pass

        threshold = gc.get_threshold()
        gc.set_threshold(200, 10, 10)
        try:
            for _ in range(15):
                holder = Holder()
                holder.me = holder
                holder.run = iter(
                    IterableSource(range(10**6)).map(lambda x: [x]).async_map(lambda x: [x], max_workers=4, chunksize=1)
                )
                next(holder.run)
                last = weakref.ref(holder)
                del holder
                gc.collect()
            while last() is not None:  # nothing is collected while another thread does so
                gc.collect()
        finally:
            gc.set_threshold(*threshold)


def test_a_run_in_a_fork():
    run = iter(IterableSource(range(100)).async_map(lambda x: x))
    next(run)
    pid = os.fork()
    if not pid:
        try:
            list(run)
        except PipelineError as error:
            os._exit(7 if "this is a fork of it" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert list(run) == list(range(1, 100))


def test_attributes_of_tensors():
    import torch

    tensor = torch.ones(100)
    tensor.label = 3
    (received,) = IterableSource([tensor]).async_map(lambda x: x, executor="process").collect()
    assert received.label == 3


def test_as_many_coroutines_as_are_in_flight():
    import asyncio

    async def callback(x):
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.2)
        running[0] -= 1

    running, most = [0], [0]
    IterableSource(range(3000)).async_map(callback, buffer=3000).join()
    assert most[0] > 1500
