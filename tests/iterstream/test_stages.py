"""What each stage gives, and what it refuses."""

import copy
import itertools
import random
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch import (
    IterableSamplerSource,
    IterableSource,
    MetricsConf,
    MissingDependencyError,
    Multiplexer,
    MultiplexingStrategy,
    Stage,
)
from squirrel_torch.iterstream import base
from squirrel_torch.iterstream.monitors import monitors_of
from squirrel_torch.seeding import DEFAULT_SEED


class TestMapAndFlatten:
    def test_extra_arguments_go_by_name(self):
        def scaled(x, factor, offset=0):
            return x * factor + offset

        source = IterableSource([1, 2])
        assert source.map(scaled, factor=10).collect() == [10, 20]
        assert source.async_map(scaled, factor=10, offset=1).collect() == [11, 21]
        assert source.flat_map(lambda x, n: [x] * n, n=2).collect() == [1, 1, 2, 2]

    def test_flatten(self):
        assert IterableSource([[1], (2, 3), "ab", []]).flatten().collect() == [1, 2, 3, "a", "b"]
        with pytest.raises(TypeError, match="not iterable"):
            IterableSource([1]).flatten().collect()

    def test_flat_map_takes_generator_functions(self):
        def twice(x):
            yield x
            yield x

        assert IterableSource([1, 2]).flat_map(twice).collect() == [1, 1, 2, 2]

    def test_none_is_an_item(self):
        assert IterableSource([None, 1]).map(lambda x: None).filter(lambda x: True).batched(2).collect() == [[None, None]]

    @pytest.mark.parametrize("method", ["map", "filter", "flat_map", "async_map", "numba_map", "dask_map", "to", "monitor"])
    def test_what_is_called_must_be_callable(self, method):
        with pytest.raises(TypeError, match="must be callable, got 3"):
            getattr(IterableSource([1]), method)(3)


class TestBatched:
    @given(st.integers(0, 40), st.integers(1, 10))
    def test_batch_then_flatten_is_the_identity(self, size, batchsize):
        pipeline = IterableSource(range(size)).batched(batchsize, drop_last_if_not_full=False)
        assert pipeline.flatten().collect() == list(range(size))
        full = IterableSource(range(size)).batched(batchsize).collect()
        assert full == [batch for batch in pipeline.collect() if len(batch) == batchsize]

    def test_collation(self):
        assert IterableSource(range(5)).batched(2, sum).collect() == [1, 5]
        assert IterableSource(range(5)).batched(2, np.stack, False).collect()[-1].tolist() == [4]

    @pytest.mark.parametrize("size", [0, -1, 1.5, "3", None, True])
    def test_wrong_sizes(self, size):
        with pytest.raises((TypeError, ValueError), match="batchsize must be"):
            IterableSource([1]).batched(size)

    def test_numpys_integers_are_integers(self):
        assert IterableSource(range(4)).batched(np.int64(2)).collect() == [[0, 1], [2, 3]]

    def test_wrong_collation(self):
        with pytest.raises(TypeError, match="collation_fn must be callable"):
            IterableSource([1]).batched(2, 3)


class TestSliding:
    @given(st.integers(0, 15), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.booleans())
    def test_against_slices(self, items, size, stride, smallest, drop, fill):
        stride, smallest = min(stride, size), min(smallest, size)
        windows = IterableSource(range(items)).sliding(
            size,
            deepcopy=False,
            stride=stride,
            drop_last_if_not_full=drop,
            min_window_size=smallest,
            fill_nan_on_partial=fill,
        )
        sliced = [list(range(items))[start : start + size] for start in range(0, items, stride)]
        if drop:
            expected = [window for window in sliced if len(window) == size]
        elif fill:
            expected = [window + [None] * (size - len(window)) for window in sliced]
        else:
            expected = [window for window in sliced if len(window) >= smallest]
        assert windows.collect() == expected

    def test_none_is_an_item(self):
        assert len(IterableSource([None] * 6).sliding(2, deepcopy=False).collect()) == 5

    def test_copies(self):
        items = [[0], [1], [2]]
        shared, copied = (IterableSource(copy.deepcopy(items)).sliding(2, deepcopy=deep).collect() for deep in (False, True))
        assert shared[0][1] is shared[1][0]
        assert copied[0][1] is not copied[1][0]
        assert shared == copied

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            ({"window_size": 0}, "window_size"),
            ({"window_size": 2, "stride": 3}, "stride"),
            ({"window_size": 2, "stride": 0}, "stride"),
            ({"window_size": 2, "min_window_size": 3}, "min_window_size"),
            ({"window_size": 2, "min_window_size": 0}, "min_window_size"),
        ],
    )
    def test_wrong_arguments(self, arguments, name):
        with pytest.raises(ValueError, match=f"{name} must be at"):
            IterableSource([1]).sliding(**arguments, deepcopy=False)


class TestShuffle:
    @given(st.integers(0, 60), st.integers(2, 30), st.integers(1, 40), st.integers(0, 5))
    def test_a_permutation_through_a_bounded_buffer(self, items, size, initial, epoch):
        pipeline = IterableSource(lambda: iter(range(items))).shuffle(size, initial=initial)
        order = list(pipeline.run(epoch=epoch))
        assert sorted(order) == list(range(items))
        # What leaves at place n has come in: items 0 to n + size - 1 have, at most.
        assert all(item < place + size for place, item in enumerate(order))
        source = IterableSource(lambda: iter(range(items)))
        assert order == list(source.shuffle(size, initial=initial).run(epoch=epoch))

    @given(st.integers(0, 60), st.integers(2, 30), st.integers(0, 5))
    def test_what_has_numbers_is_permuted_as_a_whole(self, items, size, epoch):
        pipeline = IterableSource(range(items)).map(lambda x: -x).shuffle(size)
        order = list(pipeline.run(epoch=epoch))
        assert sorted(order) == sorted(-x for x in range(items))
        assert order == [-x for x in IterableSource(list(range(items))).shuffle(size).run(epoch=epoch)]

    def test_the_last_item_can_come_first(self):
        firsts = {next(IterableSource(range(50)).shuffle(2).run(epoch=epoch)) for epoch in range(300)}
        assert len(firsts) == 50

    def test_seeds(self):
        def order(**arguments):
            return list(IterableSource(range(50)).shuffle(50, initial=50, **arguments).run(epoch=0))

        assert order() == order(seed=None) == order(seed=DEFAULT_SEED)
        assert len({tuple(order(seed=seed)) for seed in (0, 1, "0", b"0", 0.5)}) == 5
        assert order(rng=random.Random(42)) == order(rng=random.Random(42)) != order(rng=random.Random(43))
        assert order(seed=np.int64(1)) == order(seed=1)

    def test_a_given_generator_is_not_reseeded(self):
        rng, same = random.Random(1), random.Random(1)
        IterableSource(range(5)).shuffle(5, rng=rng).collect()
        same.getrandbits(64)
        assert rng.random() == same.random()
        random.seed(1)
        expected = random.Random(1)
        expected.getrandbits(64)
        IterableSource(range(5)).shuffle(5, rng=random).collect()
        assert random.random() == expected.random()

    def test_global_generators_are_not_touched(self):
        before = random.getstate(), np.random.get_state()[1].tolist()
        IterableSource(range(50)).shuffle(10).collect()
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before

    def test_sizes(self):
        source = IterableSource(range(5))
        assert source.shuffle(0) is source
        assert source.shuffle(1) is source
        assert source.shuffle(None)._stage.size == 1000

    def test_it_is_uniform_where_all_fits_in_the_buffer(self):
        places = np.zeros((8, 8))
        pipeline = IterableSource(range(8)).shuffle(8, initial=8)
        for epoch in range(4000):
            for place, item in enumerate(pipeline.run(epoch=epoch)):
                places[place, item] += 1
        # 500 expected everywhere; chi-square with 49 degrees of freedom is below 95 with probability 0.9999.
        assert ((places - 500) ** 2 / 500).sum() < 95

    def test_the_first_item_does_not_wait_for_the_whole_buffer(self):
        pulled = []
        run = iter(IterableSource(range(1000)).map(lambda x: pulled.append(x) or x).shuffle(500, initial=10))
        next(run)
        assert len(pulled) <= 12

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"size": -1}, ValueError),
            ({"size": 2.5}, TypeError),
            ({"initial": 0}, ValueError),
            ({"seed": [1]}, TypeError),
            ({"rng": 3}, TypeError),
            ({"rng": random.Random(), "seed": 1}, ValueError),
        ],
    )
    def test_wrong_arguments(self, arguments, error):
        with pytest.raises(error):
            IterableSource([1]).shuffle(**arguments)


class TestOrder:
    @given(st.integers(0, 20), st.integers(0, 25), st.integers(0, 25))
    def test_take_and_skip_are_slices(self, items, n, m):
        assert IterableSource(range(items)).skip(n).take(m).collect() == list(range(items))[n : n + m]

    def test_take_asks_for_no_more(self):
        pulled = []
        IterableSource(range(10)).map(pulled.append).take(3).join()
        assert len(pulled) == 3
        IterableSource(range(10)).map(pulled.append).take(0).join()
        assert len(pulled) == 3

    def test_take_all(self):
        source = IterableSource([1])
        assert source.take(None) is source

    @pytest.mark.parametrize("method", ["take", "skip", "loop"])
    @pytest.mark.parametrize("n", [-1, 1.5, "2"])
    def test_wrong_counts(self, method, n):
        with pytest.raises((TypeError, ValueError), match="n must be"):
            getattr(IterableSource([1]), method)(n)

    def test_loop(self):
        assert IterableSource([1, 2]).loop(2).collect() == [1, 2, 1, 2]
        assert IterableSource([1, 2]).loop(0).collect() == []
        assert IterableSource([1, 2]).loop().take(5).collect() == [1, 2, 1, 2, 1]
        assert IterableSource([]).loop().collect() == []
        assert IterableSource([1]).map(threading.Lock().acquire).loop(1).collect() == [True], "nothing is copied"

    def test_a_loop_of_a_loop(self):
        nested = IterableSource(range(20)).shuffle(20).loop(2).loop(2).collect()
        passes = [tuple(nested[start : start + 20]) for start in range(0, 80, 20)]
        assert len(set(passes)) == 4

    def test_a_long_loop_keeps_nothing(self):
        run = iter(IterableSource([1]).map(str).loop())
        for _ in range(5000):
            next(run)
        assert len(run._lifetime._opened) < 1100

    def test_zip_index(self):
        assert IterableSource("ab").zip_index().collect() == [(0, "a"), (1, "b")]
        assert IterableSource("ab").zip_index(pad_length=3).collect() == [("000", "a"), ("001", "b")]
        pipeline = IterableSource("ab").zip_index()
        assert pipeline.collect() == pipeline.collect()


class TestAsyncMap:
    @given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 4))
    def test_it_is_map(self, items, buffer, workers):
        pipeline = IterableSource(range(items)).async_map(lambda x: x * x, buffer=buffer, max_workers=workers)
        assert pipeline.collect() == [x * x for x in range(items)]

    @pytest.mark.parametrize("buffer", [1, 2, 5])
    def test_no_more_than_buffer_are_in_flight(self, buffer):
        pulled, given_out = [0], [0]

        def pull(x):
            pulled[0] += 1
            assert pulled[0] - given_out[0] <= buffer
            return x

        for _ in IterableSource(range(50)).map(pull).async_map(lambda x: x, buffer=buffer, max_workers=2):
            given_out[0] += 1

    def test_the_buffer_fills_up_while_callbacks_run(self):
        busy = threading.Semaphore(0)

        def callback(x):
            busy.release()
            if x == 0:
                for _ in range(5):
                    assert busy.acquire(timeout=20)  # until five have been started
            return x

        assert IterableSource(range(5)).async_map(callback, buffer=5, max_workers=5).collect() == list(range(5))

    @pytest.mark.parametrize("size", ["auto", 1, 7, 50])
    def test_items_do_not_wait_for_a_full_buffer_or_chunk(self, size):
        go_on = threading.Event()

        def source():
            yield from range(20)
            assert go_on.wait(20)
            yield from range(20, 40)

        run = iter(IterableSource(source).async_map(str, buffer=100, chunksize=size))
        assert [next(run) for _ in range(20)] == [str(x) for x in range(20)]
        go_on.set()
        assert list(run) == [str(x) for x in range(20, 40)]

    def test_threads_work_at_the_same_time(self):
        together = threading.Barrier(20, timeout=20)
        IterableSource(range(40)).async_map(lambda x: together.wait(), max_workers=20).join()

    def test_a_pool_of_processes(self):
        with ProcessPoolExecutor(2) as pool:
            pipeline = IterableSource(range(10)).async_map(abs, executor=pool)
            assert pipeline.collect() == list(range(10))
            assert pipeline.collect() == list(range(10))

    def test_leaving_early_leaves_the_callers_executor_open_and_idle(self):
        called = []
        full, go_on = threading.Event(), threading.Event()

        def source():
            for item in range(100):
                if item == 30:
                    full.set()
                yield item

        def callback(x):
            called.append(x)
            assert (full if x == 0 else go_on).wait(20)
            return x

        with ThreadPoolExecutor(1) as pool:
            run = iter(IterableSource(source).async_map(callback, buffer=40, executor=pool))
            next(run)
            run.close()  # item 1 may be running, some thirty others are queued
            go_on.set()
            assert pool.submit(int).result() == 0
            assert called in ([0], [0, 1]), "what was queued is never called"

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"buffer": 0}, ValueError, "buffer must be at least 1, got 0"),
            ({"max_workers": 0}, ValueError, "max_workers must be at least 1"),
            ({"executor": "threads"}, ValueError, 'must be "thread", "process", "numba" or the address'),
            ({"executor": 3}, TypeError, "executor must be None"),
        ],
    )
    def test_wrong_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            IterableSource([1]).async_map(str, **arguments)

    def test_in_a_forked_worker_after_the_parent_has_used_it(self):
        import torch.utils.data as tud

        pipeline = IterableSource(range(20)).async_map(lambda x: x + 1, max_workers=2)
        run = iter(pipeline)
        next(run)  # threads of the parent are alive while it forks
        loader = tud.DataLoader(pipeline.to_torch_iterable(), batch_size=None, num_workers=2, timeout=60)
        assert sorted(loader) == list(range(1, 21))
        run.close()


class TestNumbaAndDask:
    def test_numba_map(self):
        def total(x):
            result = 0.0
            for value in x:
                result += value
            return result

        assert IterableSource([np.arange(4.0), np.ones(3)]).numba_map(total).collect() == [6.0, 3.0]

    def test_numba_falls_back_once_and_says_why(self, caplog):
        pipeline = IterableSource([{"x": 1}, {"x": 2}, {"x": 3}]).numba_map(lambda sample: sample["x"])
        assert pipeline.collect() == [1, 2, 3]
        (record,) = [record for record in caplog.records if record.name.startswith("squirrel_torch")]
        assert "it runs as plain Python" in record.getMessage()

    def test_an_error_of_the_callback_is_not_a_reason_to_fall_back(self, caplog):
        with pytest.raises(ZeroDivisionError):
            IterableSource([1, 0]).numba_map(lambda x: 1 // x).collect()
        assert "plain Python" not in caplog.text

    @pytest.mark.keeps_threads
    def test_dask(self):
        pipeline = IterableSource(range(5)).dask_map(lambda x, y: x + y, y=1).dask_map(lambda x: x * 2)
        assert pipeline.materialize_dask(buffer=2, max_workers=1).collect() == [2, 4, 6, 8, 10]

    def test_what_is_not_installed_is_named_where_it_is_written(self, monkeypatch):
        monkeypatch.setattr("squirrel_torch.execution.numba.find_spec", lambda name: None)
        monkeypatch.setattr("squirrel_torch.execution.dask.find_spec", lambda name: None)
        source = IterableSource([1])
        for extra, write in (
            ("numba", lambda: source.numba_map(abs)),
            ("numba", lambda: source.async_map(abs, executor="numba")),
            ("dask", lambda: source.dask_map(abs)),
            ("dask", lambda: source.materialize_dask()),
        ):
            with pytest.raises(MissingDependencyError, match=rf"pip install 'squirrel_torch\[{extra}\]'"):
                write()


class TestWatching:
    def test_tqdm(self, capsys):
        assert IterableSource(range(3)).tqdm(total=3, desc="reading").collect() == [0, 1, 2]
        assert "reading: 100%" in capsys.readouterr().err

    def report(self, items, **arguments):
        reports = []
        IterableSource(items).monitor(reports.append, **arguments).join()
        return reports

    def test_a_short_stream_reports_once(self):
        assert len(self.report(range(1))) == 1
        assert len(self.report(range(1000))) == 1

    def test_an_empty_stream_reports_nothing(self):
        assert self.report([]) == []

    def test_reports_are_limited_in_rate(self):
        def slow():
            for item in range(30):
                time.sleep(0.01)
                yield item

        start = time.perf_counter()
        reports = self.report(slow, every=0.1)
        # One more than there is room for: the last report comes with the end.
        assert 2 <= len(reports) <= (time.perf_counter() - start) / 0.1 + 1
        assert all(report["IOPS number/s"] <= 100 for report in reports[:-1])

    def test_without_a_limit_each_window_reports(self):
        assert len(self.report(range(100), every=0, window_size=10)) == 10
        assert len(self.report(range(7), every=0, window_size=1)) == 7

    def test_the_rate_has_no_bias(self):
        def known():
            start = time.perf_counter()
            for item in range(1, 101):
                while time.perf_counter() - start < item * 0.002:
                    pass
                yield item

        start = time.perf_counter()
        (report,) = self.report(known, every=60, window_size=100)
        true_rate = 100 / (time.perf_counter() - start)
        assert report["IOPS number/s"] == pytest.approx(true_rate, rel=0.03)

    def test_throughput(self):
        (report,) = self.report([bytes(1024)] * 50, metrics_conf=MetricsConf(throughput_unit="KB"))
        assert report["throughput KB/s"] == pytest.approx(report["IOPS number/s"], rel=1e-3)

    def test_metrics_that_are_off(self):
        assert self.report([1], metrics_conf=MetricsConf(iops=False, throughput=False)) == []
        (report,) = self.report([1] * 9, metrics_conf=MetricsConf(throughput=False))
        assert report["throughput MB/s"] == 0
        assert report["IOPS number/s"] > 0

    def test_arguments_for_the_callback(self):
        seen = []
        IterableSource([1]).monitor(lambda metrics, step: seen.append(step), step=7).join()
        assert seen == [7]

    @pytest.mark.parametrize(("items", "counts"), [(30, [10, 10, 10]), (31, [10, 10, 10, 1]), (9, [9])])
    def test_every_so_many_items(self, items, counts):
        seen, reported = [0], []
        chain = IterableSource(range(items)).map(lambda x: seen.__setitem__(0, seen[0] + 1))
        chain.monitor(lambda report: reported.append(seen[0]), every_items=10, window_size=3, every=60).join()
        assert [after - before for before, after in itertools.pairwise([0, *reported])] == counts

    def test_monitors_with_one_callback_are_told_apart(self):
        reports = {}
        chain = IterableSource(range(9)).monitor(reports.update).map(str).monitor(reports.update, "raw ")
        chain.monitor(reports.update).monitor(reports.update).monitor(reports.update, prefix="raw ").join()
        assert list(reports) == [
            f"{prefix}{name}"
            for prefix in ("", "raw ", "monitor 2 ", "monitor 3 ", "raw monitor 2 ")  # they end in this order
            for name in ("IOPS number/s", "throughput MB/s")
        ]

    def test_monitors_with_other_callbacks_keep_their_names(self):
        first, second, reports = [], [], {}
        chain = IterableSource(range(9)).monitor(first.append, "p ").monitor(second.append, "p ")
        chain.monitor(lambda report: reports.update(report), "p ").join()
        assert first[0].keys() == second[0].keys() == reports.keys() == {"p IOPS number/s", "p throughput MB/s"}

    def test_monitors_in_the_streams_of_a_mix_are_told_apart(self):
        reports = {}
        branch = IterableSource(range(9)).monitor(reports.update)
        inner = IterableSamplerSource([branch, IterableSource(range(9)).monitor(reports.update, "b ")])
        mix = Multiplexer([branch.map(str), inner, branch], MultiplexingStrategy.ROUND_ROBIN)
        assert len(mix.monitor(reports.update).collect()) == 36
        prefixes = ("", "b ", "monitor 2 ", "monitor 3 ", "monitor 4 ")
        assert set(reports) == {f"{prefix}{name}" for prefix in prefixes for name in ("IOPS number/s", "throughput MB/s")}
        assert [stage.prefix for stage in monitors_of(inner._links())] == ["", "b "], "what was mixed is as it was"

    def test_an_error_is_not_reported_as_an_end(self):
        reports = []
        with pytest.raises(ZeroDivisionError):
            IterableSource([1, 0]).map(lambda x: 1 // x).monitor(reports.append).join()
        assert reports == []

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [({"window_size": 0}, "window_size"), ({"every": -1}, "every"), ({"every_items": 0}, "every_items")],
    )
    def test_wrong_arguments(self, arguments, name):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            IterableSource([1]).monitor(print, **arguments)


class TestPiping:
    def test_to_with_arguments(self):
        assert IterableSource("ab").to(enumerate, 5).collect() == [(5, "a"), (6, "b")]

    def test_to_needs_an_iterator(self):
        with pytest.raises(TypeError, match="must return an iterator, it returned list"):
            IterableSource("ab").to(list).collect()

    def test_then_needs_a_stage(self):
        with pytest.raises(TypeError, match="functions go through map or to"):
            IterableSource("ab").then(str)

    def test_stages_are_equal_by_value(self):
        assert IterableSource([1]).batched(3)._stage == IterableSource([2]).batched(3)._stage

    def test_every_public_method_is_documented(self):
        for name, member in vars(base.Composable).items():
            if not name.startswith("_") and name != "needs_whole":
                assert member.__doc__, name
        assert Stage.__doc__
