"""What strangers broke once: each of these lost items, hid an error or hung."""

import copy
import functools
import multiprocessing
import os
import pickle
import threading
import time
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
import torch.utils.data as tud
from torch.utils.data.datapipes.iter import IterableWrapper

from squirrel_torch import (
    Composable,
    ExhaustedSourceError,
    IterableSamplerSource,
    IterableSource,
    MemoryStore,
    Multiplexer,
    MultiplexingStrategy,
    PipelineError,
    Shard,
    ShardingError,
    SplitByWorker,
)
from squirrel_torch.iterstream.run import Run
from tests.support import error_of, run_script


def one_rank(rank, dataset, queue, workers):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    time.sleep(rank * 0.3)  # one rank starts later than the other
    loader = tud.DataLoader(dataset, batch_size=None, num_workers=workers)
    queue.put([[int(item) for item in loader] for _ in range(2)])


class TestItemsAreNotLost:
    @pytest.mark.slow
    @pytest.mark.parametrize(("start", "workers"), [("fork", 0), ("fork", 1), ("spawn", 0)])
    def test_ranks_that_inherit_one_dataset(self, start, workers):
        context = multiprocessing.get_context(start)
        dataset, queue = IterableSource(range(12)).shuffle(12).to_torch_iterable(), context.Queue()
        ranks = [context.Process(target=one_rank, args=(rank, dataset, queue, workers)) for rank in range(2)]
        for process in ranks:
            process.start()
        passes = zip(*(queue.get(timeout=60) for _ in ranks), strict=True)
        for process in ranks:
            process.join()
        queue.close()
        queue.join_thread()
        orders = [sorted(one + other) for one, other in passes]
        assert orders == [list(range(12))] * 2

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda dataset: pickle.loads(pickle.dumps(dataset))])
    def test_a_copied_dataset_counts_epochs_too(self, copied):
        dataset = copied(IterableSource(range(30)).shuffle(30).to_torch_iterable())
        loader = tud.DataLoader(dataset, batch_size=None, num_workers=1)
        assert len({tuple(map(int, loader)) for _ in range(3)}) == 3

    def test_a_dataset_of_ours_as_a_source_is_its_chain(self):
        whole = IterableSource(range(20)).to_torch_iterable()
        split = IterableSource(range(20)).split_by_worker().to_torch_iterable()
        for inner in (whole, split):
            loader = tud.DataLoader(IterableSource(inner).map(int).to_torch_iterable(), batch_size=None, num_workers=2)
            assert sorted(loader) == list(range(20))
        mix = IterableSamplerSource([whole, IterableSource([20, 21])])
        assert sorted(tud.DataLoader(mix.to_torch_iterable(), batch_size=None, num_workers=2)) == list(range(22))

    def test_a_chain_that_a_function_makes(self):
        stream = IterableSource(lambda: IterableSource(range(30)).shuffle(30)).map(int)
        assert stream.collect() != stream.collect(), "it is in the epoch of the run"
        loader = tud.DataLoader(stream.to_torch_iterable(), batch_size=None, num_workers=2)
        assert sorted(loader) == list(range(30))
        with pytest.raises(ShardingError, match="split behind the source"):
            IterableSource(lambda: IterableSource(range(20)).split_by_worker()).collect()

    def test_a_foreign_dataset_may_divide_itself(self):
        class Divided(tud.IterableDataset):
            def __iter__(self):
                worker = tud.get_worker_info()
                return iter(range(20) if worker is None else range(worker.id, 20, worker.num_workers))

        source = IterableSource(Divided()).map(int)
        assert isinstance(error_of(tud.DataLoader(source.to_torch_iterable(), num_workers=2)), ShardingError)
        loader = tud.DataLoader(source.to_torch_iterable(False, False), batch_size=None, num_workers=2)
        assert sorted(loader) == list(range(20))
        assert len(source.to_torch_iterable().collect()) == 20

    def test_a_shuffle_of_torch_is_the_same_everywhere(self):
        foreign = IterableSource(IterableWrapper(range(20)).shuffle())
        dataset = foreign.to_torch_iterable()
        passes = [list(tud.DataLoader(dataset, batch_size=None, num_workers=2)) for _ in range(2)]
        assert [sorted(one) for one in passes] == [list(range(20))] * 2
        assert passes[0] != passes[1]
        torch.manual_seed(1)
        one = list(foreign.run(epoch=3))
        torch.manual_seed(2)
        assert list(foreign.run(epoch=3)) == one

    def test_a_stage_of_torch_behind_ours_in_workers(self):
        pipe = IterableSource(range(6)).shuffle(6).batch(2)
        assert sorted(item for batch in tud.DataLoader(pipe, batch_size=None) for item in batch) == list(range(6))
        error = error_of(tud.DataLoader(pipe, batch_size=None, num_workers=2))
        assert isinstance(error, PipelineError)

    def test_two_passes_at_a_time_over_a_mix(self):
        class Pairs(Composable):
            def __iter__(self):
                yield from zip(self.source, self.source, strict=True)

        for mix in (
            IterableSamplerSource([IterableSource(range(5)).map(int), range(10, 15)]),
            Multiplexer([IterableSource(range(5)).map(int), range(10, 15)], MultiplexingStrategy.ROUND_ROBIN),
        ):
            pairs = mix.compose(Pairs).collect()
            for side in zip(*pairs, strict=True):
                assert Counter(side) == Counter([*range(5), *range(10, 15)])

    def test_a_pass_of_a_loop_does_not_depend_on_what_draws_nothing(self):
        plain = IterableSource(range(30)).shuffle(30).loop(3)
        more = IterableSource(range(30)).map(int).shuffle(30).monitor(lambda m: None).loop(3)
        assert list(plain.run(epoch=0)) == list(more.run(epoch=0))
        dataset = plain.to_torch_iterable()
        shares = [list(Run(dataset._sharded(plain, Shard(rank, 2), Shard()), lambda: 0)) for rank in range(2)]
        assert [item for pair in zip(*shares, strict=True) for item in pair] == list(plain.run(epoch=0))

    def test_a_chain_on_the_source_of_the_run_is_in_its_epoch(self):
        class Reshuffled(Composable):
            def __iter__(self):
                yield from self.source.shuffle(30)

        stream = IterableSource(range(30)).compose(Reshuffled)
        assert stream.collect() != stream.collect()
        assert list(stream.run(epoch=1)) == list(stream.run(epoch=1))


class Divided(tud.IterableDataset):
    """A dataset that divides itself among workers, as those of Hugging Face do."""

    def __iter__(self):
        worker = tud.get_worker_info()
        return iter(range(20) if worker is None else range(worker.id, 20, worker.num_workers))


ROUND_ROBIN = MultiplexingStrategy.ROUND_ROBIN


class TestNothingIsDividedTwice:
    @pytest.mark.parametrize(
        "source",
        [
            lambda: Multiplexer([Divided()], ROUND_ROBIN),
            lambda: IterableSource(IterableWrapper(Divided(), deepcopy=False)),
            lambda: IterableSource(Divided),
            lambda: IterableSource(IterableWrapper(IterableSource(range(20)).to_torch_iterable(), deepcopy=False)),
            lambda: IterableSource(lambda: Multiplexer([IterableSource(range(20)).split_by_worker()], ROUND_ROBIN)),
            lambda: IterableSource(lambda: IterableSource(Divided()).map(int)),
        ],
    )
    def test_by_a_dataset_or_chain_somewhere_inside(self, source):
        loader = tud.DataLoader(source().map(int).to_torch_iterable(), batch_size=None, num_workers=2)
        assert isinstance(error_of(loader), ShardingError)

    def test_by_a_pipe_that_a_function_makes(self):
        stream = IterableSource(lambda: IterableWrapper(range(20)).shuffle())
        assert sorted(tud.DataLoader(stream.to_torch_iterable(), batch_size=None, num_workers=2)) == list(range(20))

    def test_by_one_of_several_chains_in_a_pipe(self):
        split, whole = IterableSource(range(10)).split_by_worker(), IterableSource(range(10, 20))
        for pipe in (split.concat(whole), whole.concat(split), split.concat(IterableWrapper(range(10, 20)))):
            with pytest.raises(ShardingError, match="are split and branches"):
                IterableSource(pipe).to_torch_iterable()

    def test_by_a_subclass_of_a_split(self):
        class Noted(SplitByWorker):
            def __iter__(self):
                yield from self.source

        loader = tud.DataLoader(IterableSource(range(10)).compose(Noted).to_torch_iterable(), batch_size=None, num_workers=2)
        assert sorted(loader) == list(range(10))

    def test_a_chain_in_a_pipe_of_torch_is_in_the_epoch_of_the_run(self):
        pipe = IterableSource(range(30)).shuffle(30).batch(3)
        stream = IterableSource(pipe).map(list)
        orders = [list(stream.run(epoch=epoch)) for epoch in (3, 4, 3)]
        assert orders[0] == orders[2] != orders[1]
        dataset = IterableSource(pipe).to_torch_iterable()
        loader = tud.DataLoader(dataset, batch_size=None, num_workers=1)
        assert len({str([list(map(int, batch)) for batch in loader]) for _ in range(3)}) == 3


class TestNothingIsKept:
    @pytest.mark.parametrize(
        "stream",
        [
            lambda: IterableSource(range(20)).async_map(str, max_workers=1, buffer=2).take(1).loop(),
            lambda: Multiplexer([IterableSource(range(9)).map(str)], ROUND_ROBIN).take(1).loop(),
            lambda: IterableSource(lambda: IterableSource(range(2)).map(str)).loop(),
            lambda: IterableSource(lambda: IterableSource(range(2)).map(str)).take(1).loop(),
            lambda: IterableSource(range(3)).map(str).take(2).loop(2).loop(),
        ],
    )
    def test_by_a_loop(self, stream):
        before = threading.active_count()
        run = iter(stream())
        for _ in range(300):
            next(run)
        lifetime = run._lifetime
        assert threading.active_count() <= before + 2  # the feeder and one thread
        assert len(lifetime._opened) < 20
        assert len(lifetime._children) < 20
        run.close()


class TestNotesAreTrue:
    def note(self, stream, kind=ZeroDivisionError):
        with pytest.raises(kind) as caught:
            stream.collect()
        return caught.value.__notes__[0].removeprefix("squirrel_torch: ")

    def test_of_a_chain_that_a_function_makes(self):
        note = self.note(IterableSource(lambda: IterableSource([1, 0])).map(lambda x: 1 // x))
        assert note.startswith("in stage 1 of 1, Map(")
        assert "item -1" not in note

    def test_of_branches_of_one_kind(self):
        nested = [Multiplexer([[1], [2]], ROUND_ROBIN), IterableSource([0]).map(lambda x: 1 // x)]
        assert self.note(Multiplexer(nested, ROUND_ROBIN)).startswith("branch 1, in stage 1 of 1, Map(")

        def bad():
            yield 1
            raise ValueError

        twice = [IterableSource(bad).take(1).map(str), IterableSource(bad).map(int)]
        assert self.note(Multiplexer(twice, ROUND_ROBIN), ValueError).startswith("branch 1, in the source")

    def test_of_nested_functions(self):
        class Lookup:
            def __len__(self):
                return 3

            def __getitem__(self, index):
                return index

        stream = IterableSource(lambda: IterableSource(lambda: IterableSource(Lookup()).map(int))).map(lambda x: 1 // x)
        assert self.note(stream).startswith("in stage 1 of 1, Map(")

    def test_of_a_local_that_is_called_position(self):
        def offsets():
            for position in (4096, 8192, 0):
                yield 1 // position

        assert "reading item 2" in self.note(IterableSource(offsets))

        def more():
            for position in (400, 800, 0):  # noqa: UP028  # the name matters
                yield position

        assert "on item 2 of" in self.note(IterableSource(more).map(lambda x: 1 // x))


def test_a_decorated_iter_is_a_run_too():
    def decorated(function):
        @functools.wraps(function)
        def call(self):
            return function(self)

        return call

    class Mine(Composable):
        @decorated
        def __iter__(self):
            yield from self.source

    stream = IterableSource(range(20)).shuffle(20).compose(Mine)
    stream.set_epoch(5)
    assert list(stream) == list(stream.run(epoch=5))


def test_each_chain_on_the_source_of_a_run_is_shuffled_anew():
    class Thrice(Composable):
        def __iter__(self):
            for _ in range(3):
                yield tuple(self.source.shuffle(10))

    orders = IterableSource(range(10)).compose(Thrice).collect()
    assert len(set(orders)) == 3


class TestOwnClasses:
    def test_an_iter_of_a_subclass_of_a_source_or_split(self):
        class Hundredfold(IterableSource):
            def __iter__(self):
                for item in self.source:
                    yield item * 100

        class Noted(SplitByWorker):
            def __iter__(self):
                for item in self.source:
                    yield "noted", item

        assert Hundredfold([1, 2]).collect() == [100, 200]
        assert Hundredfold(IterableSource([1, 2])).map(str).collect() == ["100", "200"]
        assert IterableSource([1]).compose(Noted).collect() == [("noted", 1)]

    def test_super_iter_where_there_is_none(self):
        class Lost(IterableSource):
            def __iter__(self):
                yield from super().__iter__()

        with pytest.raises(PipelineError, match=r"must iterate self\.source"):
            Lost([1]).collect()

    def test_a_mixed_in_iter(self):
        class Mixin:
            def __iter__(self):
                for item in self.source:
                    yield -item

        class Mixed(Mixin, Composable):
            pass

        assert IterableSource([1]).compose(Mixed).map(str).collect() == ["-1"]
        assert Mixed([2]).collect() == [-2]

    def test_slots_and_a_source_that_is_exchanged(self):
        class Slotted(Composable):
            __slots__ = ("factor",)

            def __init__(self, factor):
                super().__init__()
                self.factor = factor

            def __iter__(self):
                self.source = map(float, self.source)
                for item in self.source:
                    yield item * self.factor

        stream = IterableSource([1, 2]).compose(Slotted, 3)
        assert stream.collect() == stream.collect() == [3.0, 6.0]

    def test_dataclasses_and_attributes_of_common_names(self):
        @dataclass
        class Careless(Composable):
            stage: str
            branches: list

            def __iter__(self):
                raise KeyError(self.stage)
                yield

        with pytest.raises(KeyError) as caught:
            Careless("train", ["a"]).map(str).collect()
        assert caught.value.args == ("train",)
        Careless("train", ["a"]).to_torch_iterable()

    def test_iterators_that_start_again(self):
        class Restarting:
            def __iter__(self):
                self.left = 3
                return self

            def __next__(self):
                if self.left == 0:
                    raise StopIteration
                self.left -= 1
                return self.left

        class Once(Restarting):
            left = 3

            def __iter__(self):
                return self

        stream = IterableSource(Restarting())
        assert stream.collect() == stream.collect() == [2, 1, 0]
        stream = IterableSource(Once())
        assert stream.collect() == [2, 1, 0]
        with pytest.raises(ExhaustedSourceError):
            stream.collect()


class TestErrorsStayWhatTheyAre:
    def fails(self, stream, kind):
        with pytest.raises(kind) as caught:
            stream.collect()
        return caught.value

    def test_before_the_chain_is_open(self, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        error = self.fails(IterableSource([1]).map(str).map(str).split_by_rank().map(str), ShardingError)
        assert "in stage 3 of 4" in error.__notes__[0]

    def test_a_source_without_a_length_or_a_repr(self):
        class Odd(tud.IterableDataset):
            def __iter__(self):
                return iter([0])

            def __len__(self):
                raise TypeError("no length")

            def __repr__(self):
                raise ValueError("no repr")

        stream = IterableSource(Odd()).map(lambda x: 1 // x)
        assert "Odd" in repr(stream)
        assert "in stage 1 of 1" in self.fails(stream, ZeroDivisionError).__notes__[0]

    @pytest.mark.parametrize("notes", [None, [3], "text"])
    def test_exceptions_that_can_not_be_noted(self, notes, caplog):
        class OddError(Exception):
            __notes__ = notes

        def fail(item):
            raise OddError("mine")

        assert self.fails(IterableSource([1]).map(fail), OddError).args == ("mine",)

    def test_exceptions_that_refuse_a_note(self, caplog):
        class RefusesError(Exception):
            def add_note(self, note):
                raise TypeError("no notes")

        def fail(item):
            raise RefusesError("mine")

        assert self.fails(IterableSource([1]).map(fail), RefusesError).args == ("mine",)
        assert "no notes" in caplog.text

    def test_one_that_comes_while_the_run_is_closed(self):
        def callback(metrics):
            raise ValueError("logger")

        before = threading.active_count()
        run = iter(IterableSource(range(100)).async_map(str, max_workers=2).monitor(callback).take(2))
        for _ in range(2):
            with pytest.raises(ValueError, match="logger") as caught:
                list(run)
            assert "in stage 2 of 3, Monitored(" in caught.value.__notes__[0]
        assert threading.active_count() == before

    @pytest.mark.parametrize(
        "put",
        [
            lambda s: s.async_map(str),
            lambda s: s.batched(2),
            lambda s: s.shuffle(5),
            lambda s: s.sliding(2, deepcopy=False),
            lambda s: s.map(str),
            lambda s: s.take(9).batched(2),
        ],
    )
    @pytest.mark.parametrize("kind", ["map", "generator", "one shot"])
    def test_an_error_of_the_source_behind_any_stage(self, put, kind):
        def bad(x):
            return 1 // (3 - x)

        source = {"map": lambda: map(bad, range(5)), "generator": lambda: (bad(x) for x in range(5))}.get(kind)
        stream = put(IterableSource(source or map(bad, range(5))))
        note = self.fails(stream, ZeroDivisionError).__notes__[0]
        assert "in the source" in note
        assert "reading item 3" in note

    def test_closing_a_run_while_it_makes_an_item(self):
        runs = []

        def callback(item):
            runs[0].close()

        runs.append(IterableSource([1]).map(callback).run())
        with pytest.raises(PipelineError, match="while it makes an item"):
            next(runs[0])

    def test_a_run_that_is_collected_in_a_thread_of_its_own(self):
        done = threading.Event()

        def callback(run):
            run[0] = None  # nobody else holds it: it ends here, in a thread of its own pool
            done.set()

        cell = [None]
        cell[0] = iter(IterableSource([cell]).async_map(callback, max_workers=1, buffer=1))
        holder = threading.Thread(target=lambda: next(cell[0], None))
        holder.start()
        holder.join(20)
        assert done.is_set()


class TestPickling:
    def test_lambdas_in_arguments(self):
        factor = 3
        stream = (
            IterableSource([1])
            .to(lambda items, f: (f(item) for item in items), lambda x: x * factor)
            .monitor(lambda m, log: None, log=lambda: factor)
        )
        assert pickle.loads(pickle.dumps(stream)).collect() == [3]

    def test_bound_methods_take_their_object_along_once(self):
        store = MemoryStore()
        for number in range(50):
            store.set(torch.full((1000,), float(number)))
        stream = IterableSource(store.keys()).prefetch(store)
        assert len(pickle.dumps(stream)) < 1.5 * len(pickle.dumps(store))

    def test_a_copy_keeps_the_group(self):
        group = object()
        assert copy.deepcopy(IterableSource([1]).split_by_rank(group))._stage.group is group

    @pytest.mark.slow
    def test_code_of_no_file_reaches_spawned_workers(self, tmp_path):
        code = """
import subprocess, sys
print(subprocess.run([sys.executable, "-c", '''
from torch.utils.data import DataLoader
from squirrel_torch import IterableSource

def double(x):
    return 2 * x

dataset = IterableSource(range(4)).map(double).to_torch_iterable()
print(sorted(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")))
'''], capture_output=True, text=True, check=True).stdout)
"""
        assert run_script(code, tmp_path).strip() == "[0, 2, 4, 6]"


class TestArguments:
    @pytest.mark.parametrize("weights", [[float("inf"), 1], [1e308, 1e308], [float("nan"), 1]])
    def test_weights_that_never_end(self, weights):
        with pytest.raises(ValueError, match="must be finite"):
            Multiplexer([[1], [2]], MultiplexingStrategy.SAMPLING, weights)

    @pytest.mark.parametrize(
        "write",
        [
            lambda s: s.source_(5),
            lambda s: s.source_(None),
            lambda s: s.compose("x"),
            lambda s: s.to_torch_iterable("no"),
            lambda s: s.monitor(print, prefix=3),
            lambda s: s.monitor(print, metrics_conf={"iops": True}),
            lambda s: IterableSamplerSource(s),
            lambda s: Multiplexer(s, MultiplexingStrategy.ROUND_ROBIN),
        ],
    )
    def test_wrong_ones_are_refused_where_they_are_written(self, write):
        with pytest.raises(TypeError, match=r"must (be|have)"):
            write(IterableSource([1]))

    @pytest.mark.parametrize("epoch", [2**31, 2**64])
    def test_epochs_have_an_end(self, epoch):
        with pytest.raises(ValueError, match="below"):
            IterableSource([1]).set_epoch(epoch)
        with pytest.raises(ValueError, match="below"):
            IterableSource([1]).to_torch_iterable().set_epoch(epoch)

    def test_a_class_for_its_defaults(self):
        from squirrel_torch import MetricsConf

        reports = []
        IterableSource([1]).monitor(reports.append, metrics_conf=MetricsConf).join()
        assert len(reports) == 1


def test_monitor_measures_what_can_not_be_looked_into():
    itself = []
    itself.append(itself)
    deep = [1]
    for _ in range(5000):
        deep = [deep]

    class Odd:
        @property
        def nbytes(self):
            raise RuntimeError("no")

    sparse = torch.eye(3).to_sparse()
    reports = []
    stream = IterableSource([itself, deep, Odd(), sparse]).monitor(reports.append)
    assert len(stream.collect()) == 4
    assert len(reports) == 1


def test_samples_that_hold_one_thing_many_times():
    shared = [1]
    for _ in range(60):
        shared = [shared, shared]
    start = time.perf_counter()
    MemoryStore().set(shared)
    assert time.perf_counter() - start < 5


def test_a_file_as_a_url(tmp_path):
    from squirrel_torch import FilePathGenerator

    path = tmp_path / "file"
    path.write_text("")
    assert FilePathGenerator(path).collect() == [str(path)]
    with pytest.raises(TypeError):
        FilePathGenerator(3)
