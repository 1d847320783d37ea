"""What the arguments of async_map do, on threads, processes and an event loop."""

import asyncio
import gc
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squirrel_torch import (
    IterableSource,
    MetricsConf,
    StageTimeout,
    TooManyFailuresError,
    WorkerDiedError,
)
from tests.support import run_script

PLACES = ["thread", "process", "coroutine"]


def put(source, callback, place, **options):
    """`async_map` in one of the three kinds of place."""
    if place != "coroutine":
        return source.async_map(callback, executor=place, **options)

    async def coroutine(item):
        return callback(item)

    return source.async_map(coroutine, **options)


def fails_at(*bad):
    def callback(x):
        if x in bad:
            raise ValueError(f"bad {x}")
        return x

    return callback


class TestItIsMap:
    @given(
        items=st.integers(0, 60),
        buffer=st.one_of(st.integers(1, 30), st.just("auto")),
        chunksize=st.one_of(st.integers(1, 30), st.just("auto")),
        workers=st.one_of(st.integers(1, 5), st.just("auto")),
        ordered=st.booleans(),
        place=st.sampled_from(["thread", "coroutine"]),
    )
    def test_for_any_buffer_chunk_and_order(self, items, buffer, chunksize, workers, ordered, place):
        options = {"buffer": buffer, "max_workers": workers, "ordered": ordered}
        if place == "thread":
            options["chunksize"] = chunksize
        given_out = put(IterableSource(range(items)), lambda x: x * x, place, **options).collect()
        assert (given_out if ordered else sorted(given_out)) == [x * x for x in range(items)]

    @settings(max_examples=12)
    @given(items=st.integers(0, 200), buffer=st.integers(1, 100), chunksize=st.integers(1, 60), ordered=st.booleans())
    def test_in_processes(self, items, buffer, chunksize, ordered):
        stream = IterableSource(range(items)).async_map(
            lambda x: -x, buffer, max_workers=2, executor="process", chunksize=chunksize, ordered=ordered
        )
        assert sorted(stream.collect(), reverse=True) == [-x for x in range(items)]
        assert not ordered or stream.collect() == [-x for x in range(items)]

    @given(
        bad=st.sets(st.integers(0, 30)),
        chunksize=st.one_of(st.integers(1, 30), st.just("auto")),
        skip=st.booleans(),
        ordered=st.booleans(),
    )
    def test_with_items_that_fail(self, bad, chunksize, skip, ordered):
        logging.getLogger("squirrel_torch").setLevel(logging.ERROR)
        on_error = "skip" if skip else "raise"
        stream = IterableSource(range(30)).async_map(
            fails_at(*bad), max_workers=3, chunksize=chunksize, on_error=on_error, ordered=ordered
        )
        bad = sorted(bad - {30})
        run, seen = stream.run(), []
        if skip or not bad:
            seen += run
            assert sorted(seen) == [x for x in range(30) if x not in bad]
            assert not ordered or seen == sorted(seen)
            assert run.reports[0].skipped == len(bad)
        else:
            with pytest.raises(ValueError, match="bad") as caught:
                seen.extend(run)
            assert int(str(caught.value).split()[1]) in bad
            if ordered:
                assert seen == list(range(bad[0]))
                assert f"on item {bad[0]}: {bad[0]}" in caught.value.__notes__[0]
            assert len(set(seen)) == len(seen)

    def test_unordered_gives_items_as_they_come(self):
        second = threading.Event()

        def callback(x):
            if x == 0:
                assert second.wait(20)
            return x

        run = iter(IterableSource(range(3)).async_map(callback, max_workers=2, ordered=False))
        assert {next(run), next(run)} == {1, 2}
        second.set()
        assert list(run) == [0]

    def test_a_thousand_coroutines_at_once(self):
        running, together = [0], asyncio.Event()

        async def callback(x):
            running[0] += 1
            if running[0] == 1000:
                together.set()
            await asyncio.wait_for(together.wait(), 20)
            return x

        assert IterableSource(range(1000)).async_map(callback, buffer=1000).collect() == list(range(1000))

    def test_coroutines_are_found(self):
        class Doubling:
            async def __call__(self, x):
                return 2 * x

        async def scaled(x, factor):
            return x * factor

        assert IterableSource([1, 2]).async_map(Doubling()).collect() == [2, 4]
        assert IterableSource([1, 2]).async_map(scaled, factor=3).collect() == [3, 6]
        assert IterableSource([1, 2]).async_map(partial(partial(scaled), factor=3)).collect() == [3, 6]

    def test_max_workers_of_coroutines(self):
        running, most = [0], [0]

        async def callback(x):
            running[0] += 1
            most[0] = max(most[0], running[0])
            await asyncio.sleep(0.001)
            running[0] -= 1

        IterableSource(range(60)).async_map(callback, max_workers=7).join()
        assert most[0] == 7

    def test_two_iterators_take_turns(self):
        stream = IterableSource(range(50)).async_map(lambda x: x, buffer=7, max_workers=2)
        one, other = iter(stream), iter(stream)
        pairs = [(next(one), next(other)) for _ in range(50)]
        assert pairs == [(x, x) for x in range(50)]

    def test_an_executor_that_works_at_once(self):
        class Now(Executor):
            def submit(self, function, /, *args, **kwargs):
                future = Future()
                future.set_result(function(*args, **kwargs))
                return future

        assert IterableSource(range(5000)).async_map(str, executor=Now(), chunksize=1).collect() == list(map(str, range(5000)))


class TestFeeder:
    def test_the_stages_before_go_on_while_the_consumer_is_busy(self):
        pulled = threading.Semaphore(0)

        def source():
            for item in range(100):
                yield item
                pulled.release()

        run = iter(IterableSource(source).async_map(lambda x: x, buffer=10, max_workers=1))
        next(run)
        for _ in range(9):
            assert pulled.acquire(timeout=20), "nobody asks for an item, and still they come"
        run.close()

    def test_closing_does_not_wait_for_a_source_that_waits(self):
        go_on, closed = threading.Event(), threading.Event()

        def source():
            try:
                yield 0
                go_on.wait(60)
                yield 1
            finally:
                closed.set()

        run = iter(IterableSource(source).map(str).async_map(lambda x: x))
        assert next(run) == "0"
        start = time.perf_counter()
        run.close()
        assert time.perf_counter() - start < 10, "the source would wait for a minute"
        assert not closed.is_set()
        go_on.set()
        assert closed.wait(20), "it is closed when it comes back"

    @pytest.mark.parametrize("inner", PLACES)
    def test_closing_wakes_the_stages_before(self, inner):
        stream = put(IterableSource(range(1000)), lambda x: time.sleep(0.01) or x, inner, max_workers=2).map(str)
        run = iter(stream.async_map(lambda x: x, buffer=2).batched(2).async_map(lambda x: x))
        assert next(run) == ["0", "1"]
        run.close()

    def test_reports_of_a_monitor_before_it_come_in_the_readers_thread(self):
        threads = set()
        stream = IterableSource(range(50)).monitor(
            lambda report: threads.add(threading.current_thread()), window_size=5, every=0
        )
        for _ in range(2):  # one reader behind the other
            stream = stream.async_map(lambda x: x, max_workers=1, buffer=3)
        stream.join()
        assert threads == {threading.current_thread()}

    def test_an_error_of_such_a_report_names_the_monitor(self):
        def callback(report):
            raise ValueError("logger")

        stream = IterableSource(range(50)).monitor(callback, window_size=5, every=0, metrics_conf=MetricsConf())
        with pytest.raises(ValueError, match="logger") as caught:
            stream.async_map(lambda x: x).collect()
        assert "in stage 1 of 2, Monitored(" in caught.value.__notes__[0]

    def test_an_error_of_the_source_comes_after_the_items_before_it(self):
        def source():
            yield from range(30)
            raise KeyError("source")

        seen = []
        with pytest.raises(KeyError) as caught:
            seen.extend(IterableSource(source).async_map(lambda x: time.sleep(0.001) or x, max_workers=3))
        assert seen == list(range(30))
        assert "in the source" in caught.value.__notes__[0]

    def test_nothing_is_kept_alive_by_a_stream_that_waits(self):
        class Thing:
            pass

        go_on = threading.Event()

        def source():
            yield Thing()
            yield Thing()
            assert go_on.wait(20)

        run = iter(IterableSource(source).async_map(lambda x: x, max_workers=1))
        kept = [weakref.ref(next(run)) for _ in range(2)]
        gc.collect()
        assert kept[0]() is None
        go_on.set()
        assert list(run) == []
        assert kept[1]() is None


@pytest.fixture
def hang():
    """What hangs until the test is over. A process has a copy of its own, which nobody sets."""
    over = threading.Event()
    yield lambda: over.wait(60)
    over.set()


class TestTimeout:
    @pytest.mark.parametrize("place", PLACES)
    def test_an_item_that_hangs(self, place, hang):
        async def hang_on_the_loop(x):
            if x == 5:
                await asyncio.sleep(60)
            return x

        def hang_in_a_worker(x):
            if x == 5:
                hang()
            return x

        callback = hang_on_the_loop if place == "coroutine" else hang_in_a_worker
        options = {} if place == "coroutine" else {"executor": place}
        stream = IterableSource(range(10)).async_map(callback, timeout=0.3, max_workers=2, **options)
        seen = []
        with pytest.raises(StageTimeout, match=r"has not returned within 0\.3 s for the item 5") as caught:
            seen.extend(stream)
        assert seen == [0, 1, 2, 3, 4]
        assert callback.__name__ in caught.value.stack
        assert "call.py" not in caught.value.stack
        assert "on item 5" in caught.value.__notes__[0]

    @pytest.mark.parametrize("place", ["thread", "process"])
    @pytest.mark.parametrize("chunksize", [1, 4, "auto"])
    def test_others_are_neither_lost_nor_repeated(self, place, chunksize, hang):
        def callback(x):
            if x in (5, 11):
                hang()
            return x

        stream = IterableSource(range(20)).async_map(
            callback, executor=place, timeout=0.2, on_error="skip", max_workers=2, chunksize=chunksize
        )
        assert stream.collect() == [x for x in range(20) if x not in (5, 11)]

    @pytest.mark.parametrize("place", ["thread", "process"])
    def test_another_attempt(self, place, tmp_path, hang):
        def callback(x):
            if x == 3 and not (tmp_path / "once").exists():
                (tmp_path / "once").touch()
                hang()
            return x

        stream = IterableSource(range(6)).async_map(callback, executor=place, timeout=0.2, retries=1, backoff=0.01)
        assert stream.collect() == list(range(6))

    def test_the_pause_before_another_attempt_is_no_hang(self):
        calls = Counter()

        def callback(x):
            calls[x] += 1
            if calls[x] < 4:
                raise OSError
            return x

        stream = IterableSource(range(3)).async_map(callback, timeout=0.2, retries=3, backoff=1, max_workers=3)
        assert stream.collect() == [0, 1, 2]
        assert set(calls.values()) == {4}

    def test_a_thread_that_comes_back_late_does_nothing_more(self):
        go_on, called = threading.Event(), []

        def callback(x):
            called.append(x)
            if x == 1:
                go_on.wait(20)
            return x

        stream = IterableSource(range(8)).async_map(callback, timeout=0.2, on_error="skip", max_workers=1, chunksize=8)
        assert stream.collect() == [0, 2, 3, 4, 5, 6, 7]
        go_on.set()
        time.sleep(0.05)
        assert Counter(called) == Counter(range(8))


class TestRetries:
    @pytest.mark.parametrize("place", ["thread", "coroutine"])
    def test_until_it_works(self, place):
        calls = Counter()

        def callback(x):
            calls[x] += 1
            if calls[x] <= x % 3:
                raise OSError(x)
            return x

        stream = put(IterableSource(range(9)), callback, place, retries=2, retry_on=OSError, backoff=0.001)
        assert stream.collect() == list(range(9))
        assert calls == {x: x % 3 + 1 for x in range(9)}

    @pytest.mark.parametrize("place", ["thread", "coroutine"])
    def test_not_more_often_and_not_for_others(self, place):
        calls = Counter()

        def callback(kind):
            calls[kind] += 1
            raise kind("no")

        for kind, expected in ((OSError, 3), (ConnectionError, 3), (KeyError, 1)):
            stream = put(IterableSource([kind]), callback, place, retries=2, retry_on=(OSError, ValueError), backoff=0)
            with pytest.raises(kind):
                stream.collect()
            assert calls[kind] == expected

    def test_in_processes(self, tmp_path):
        def callback(x):
            file = tmp_path / str(x)
            file.write_text(file.read_text() + "." if file.exists() else ".")
            if len(file.read_text()) < 3:
                raise OSError
            return x

        stream = IterableSource(range(4)).async_map(callback, executor="process", retries=2, backoff=0.001)
        assert stream.collect() == list(range(4))
        assert {file.read_text() for file in tmp_path.iterdir()} == {"..."}

    def test_pauses_grow_and_are_random(self):
        from squirrel_torch.execution.call import Policy

        policy = Policy(retries=20, backoff=0.1)
        for used, longest in ((1, 0.1), (2, 0.2), (4, 0.8), (15, 30.0)):
            pauses = [policy.pause(used) for _ in range(200)]
            assert 0 <= min(pauses) < longest / 4
            assert 3 * longest / 4 < max(pauses) <= longest

    def test_closing_does_not_wait_for_a_pause(self):
        tried = threading.Event()

        def callback(x):
            if x:
                tried.set()
                raise OSError
            return x

        run = iter(IterableSource(range(2)).async_map(callback, retries=1, backoff=1000, max_workers=2))
        next(run)
        assert tried.wait(20)
        start = time.perf_counter()
        run.close()
        assert time.perf_counter() - start < 10


class TestOnError:
    @pytest.mark.parametrize("place", PLACES)
    def test_skip_counts_and_logs_once_for_each_kind(self, place, caplog):
        def callback(x):
            if x % 5 == 0:
                raise ValueError(x)
            if x % 7 == 0:
                raise KeyError(x)
            return x

        run = put(IterableSource(range(40)), callback, place, on_error="skip").run()
        assert list(run) == [x for x in range(40) if x % 5 and x % 7]
        (report,) = run.reports
        assert (report.items, report.skipped, report.kinds) == (40, 12, {"ValueError": 8, "KeyError": 4})
        assert "40 items, 12 skipped (ValueError 8, KeyError 4)" in str(report)
        logged = [record.getMessage() for record in caplog.records if "skips" in record.getMessage()]
        assert len(logged) == 2
        assert "skips 0: ValueError: 0" in logged[0]

    def test_a_function_is_told(self):
        told = []
        stream = IterableSource(range(6)).async_map(
            fails_at(2, 4), on_error=lambda error, item: told.append((str(error), item))
        )
        assert stream.collect() == [0, 1, 3, 5]
        assert told == [("bad 2", 2), ("bad 4", 4)]

    def test_a_function_may_end_the_stream(self):
        def on_error(error, item):
            raise RuntimeError("enough") from error

        with pytest.raises(RuntimeError, match="enough") as caught:
            IterableSource(range(6)).async_map(fails_at(2), on_error=on_error).collect()
        assert "on item 2" in caught.value.__notes__[0]

    @pytest.mark.parametrize(
        ("most", "bad", "ends_at"),
        [
            (0, [4], 4),
            (2, [1, 2, 3], 3),
            (2, [1, 2], None),
            (Fraction(1, 10), [0, 30], None),
            (Fraction(1, 10), [0, 5], 5),
            (Fraction(1, 2), list(range(1, 40, 2)), None),
        ],
    )
    def test_max_failures(self, most, bad, ends_at):
        stream = IterableSource(range(40)).async_map(
            fails_at(*bad), on_error=lambda error, item: None, max_failures=most, chunksize=1
        )
        if ends_at is None:
            assert stream.collect() == [x for x in range(40) if x not in bad]
            return
        with pytest.raises(TooManyFailuresError, match="items failed") as caught:
            stream.collect()
        assert f"on item {ends_at}" in caught.value.__notes__[0]
        assert isinstance(caught.value.__cause__, ValueError)

    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_what_is_no_exception_is_never_skipped(self, kind):
        def callback(x):
            raise kind

        for place in ("thread", "process"):
            with pytest.raises(kind):
                IterableSource([1]).async_map(callback, executor=place, on_error="skip", retries=3).collect()


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"buffer": 2.5}, TypeError, "buffer must be an integer"),
            ({"buffer": "many"}, TypeError, "buffer must be an integer"),
            ({"chunksize": 0}, ValueError, "chunksize must be at least 1, got 0"),
            ({"chunksize": None}, TypeError, "chunksize must be an integer"),
            ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds"),
            ({"timeout": "1"}, TypeError, "timeout must be a number of seconds"),
            ({"retries": -1}, ValueError, "retries must be at least 0"),
            ({"backoff": -1}, ValueError, "backoff must be at least 0"),
            ({"retry_on": "OSError"}, TypeError, "retry_on must be an exception class"),
            ({"retry_on": (OSError, SystemExit)}, TypeError, "retry_on must be an exception class"),
            ({"on_error": "ignore"}, ValueError, 'on_error must be "raise", "skip" or a function'),
            ({"max_failures": 3}, ValueError, "max_failures needs on_error"),
            ({"on_error": "skip", "max_failures": 0.1}, TypeError, "fractions.Fraction"),
            ({"on_error": "skip", "max_failures": Fraction(3, 2)}, ValueError, "between 0 and 1"),
            ({"on_error": "skip", "max_failures": -1}, ValueError, "at least 0"),
            ({"max_workers": "auto", "executor": "numba"}, ValueError, 'max_workers="auto" is for threads'),
            ({"executor": "tcp:8786"}, ValueError, "the address of a dask scheduler"),
        ],
    )
    def test_wrong_ones_fail_where_they_are_written(self, arguments, error, message):
        with pytest.raises(error, match=message):
            IterableSource([1]).async_map(str, **arguments)

    @pytest.mark.parametrize("executor", ["thread", "process", "numba"])
    def test_a_coroutine_function_takes_no_executor(self, executor):
        async def fetch(x):
            return x

        with pytest.raises(ValueError, match=r"fetch at test_async_map\.py:[0-9]+ is a coroutine function"):
            IterableSource([1]).async_map(fetch, executor=executor)


class TestProcesses:
    def test_it_is_several_and_they_end(self):
        from multiprocessing import active_children

        run = iter(
            IterableSource(range(40)).async_map(lambda x: time.sleep(0.01) or os.getpid(), max_workers=2, executor="process")
        )
        pids = {next(run)}
        assert {child.pid for child in active_children()} >= pids
        pids |= set(run)
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert not {child.pid for child in active_children()} & pids

    @pytest.mark.parametrize("chunksize", [1, 5, "auto"])
    def test_one_that_dies_is_replaced(self, chunksize, tmp_path):
        def callback(x):
            if x in (7, 20) and not (tmp_path / str(x)).exists():
                (tmp_path / str(x)).touch()
                os.kill(os.getpid(), 9)
            return x

        stream = IterableSource(range(30)).async_map(callback, executor="process", max_workers=2, chunksize=chunksize)
        assert stream.collect() == list(range(30))

    @pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit code 3"])
    def test_an_item_that_takes_two_with_it_is_named(self, how, tmp_path):
        def callback(x):
            if x == 7:
                (tmp_path / str(os.getpid())).touch()
                if how == "exit code 3":
                    os._exit(3)
                import signal

                os.kill(os.getpid(), getattr(signal, how))
            return x

        seen = []
        with pytest.raises(WorkerDiedError, match=rf"took two processes with it \(.*{how}\) on the item 7") as caught:
            seen.extend(IterableSource(range(12)).async_map(callback, executor="process", max_workers=2, chunksize=4))
        assert seen == list(range(7))
        assert "on item 7: 7" in caught.value.__notes__[0]
        assert len(list(tmp_path.iterdir())) == 2

    def test_such_an_item_can_be_skipped(self):
        def callback(x):
            if x == 7:
                os._exit(1)
            return x

        run = IterableSource(range(12)).async_map(callback, executor="process", max_workers=2, on_error="skip").run()
        assert list(run) == [x for x in range(12) if x != 7]
        assert run.reports[0].kinds == {"WorkerDiedError": 1}

    def test_a_large_closure_goes_there_once(self, tmp_path):
        (tmp_path / "script.py").write_text(_CLOSURE)
        assert run_script(_CLOSURE, tmp_path) == "ok\n"

    def test_each_draws_its_own_random_numbers(self):
        import torch

        def draw(x):
            time.sleep(0.02)
            return os.getpid(), random.random(), float(np.random.rand()), float(torch.rand(()))

        drawn = IterableSource(range(20)).async_map(draw, executor="process", max_workers=2, chunksize=1).collect()
        assert len({pid for pid, *_ in drawn}) == 2
        for generator in (1, 2, 3):
            assert len({numbers[generator] for numbers in drawn}) == 20

    def test_exceptions_keep_their_type(self):
        class OddError(Exception):
            def __init__(self, code, detail):
                super().__init__(f"{code}: {detail}")
                self.code = code

        def callback(x):
            raise OddError(404, "not here")

        with pytest.raises(OddError, match="404: not here") as caught:
            IterableSource([1]).async_map(callback, executor="process").collect()
        assert caught.value.code == 404
        assert "in callback" in str(caught.value.__cause__), "the traceback of the other process"

    def test_what_can_not_be_pickled_is_named(self):
        lock = threading.Lock()
        with pytest.raises(TypeError, match="result can't be pickled") as caught:
            IterableSource(range(4)).async_map(lambda x: threading.Lock() if x == 2 else x, executor="process").collect()
        assert "on item 2: 2" in caught.value.__notes__[0]
        with pytest.raises(TypeError, match="pickle") as caught:
            IterableSource([0, 1, lock, 3]).async_map(lambda x: x, executor="process").collect()
        assert "on item 2: <unlocked" in caught.value.__notes__[0]

    def test_a_pool_given_lambdas(self):
        factor = np.full(10_000, 3)
        with ProcessPoolExecutor(2) as pool:
            stream = IterableSource(range(50)).async_map(lambda x: int(x * factor[0]), executor=pool)
            assert stream.collect() == [3 * x for x in range(50)]
            assert stream.async_map(lambda x: x + 1, executor=pool).collect() == [3 * x + 1 for x in range(50)]

    def test_threads_given(self):
        with ThreadPoolExecutor(2) as pool:
            names = IterableSource(range(50)).async_map(lambda x: threading.current_thread().name, executor=pool).collect()
        assert all(name.startswith("ThreadPoolExecutor") for name in names)


_CLOSURE = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import numpy as np
from squirrel_torch import IterableSource

class Big:
    pickled = 0
    def __init__(self):
        self.data = np.ones(3_000_000)
    def __reduce__(self):
        Big.pickled += 1
        return Big, ()

def main():
    big = Big()
    for method in ("fork", "spawn"):
        multiprocessing.set_start_method(method, force=True)
        Big.pickled = 0
        stream = IterableSource(range(200)).async_map(lambda x: x + big.data[0], executor="process", max_workers=2, chunksize=1)
        assert stream.collect() == [x + 1 for x in range(200)]
        assert Big.pickled == (0 if method == "fork" else 1), Big.pickled
    multiprocessing.set_start_method("fork", force=True)
    with ProcessPoolExecutor(2) as pool:
        Big.pickled = 0
        stream = IterableSource(range(200)).async_map(lambda x: x + big.data[0], executor=pool, chunksize=1)
        assert stream.collect() == [x + 1 for x in range(200)]
        assert Big.pickled == 1, Big.pickled
    print("ok")

if __name__ == "__main__":
    main()
"""


@pytest.mark.timeout(20)
def test_results_of_many_threads_at_once():
    # Threads take turns within what each of them learns from its chunk.
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(60):
            assert IterableSource(range(3000)).async_map(lambda x: x, max_workers=8).collect() == list(range(3000))
    finally:
        sys.setswitchinterval(before)
