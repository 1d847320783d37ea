"""Ranks and workers: every item reaches exactly one process, or an error says what is missing."""

import logging
from collections import Counter
from itertools import product

import pytest
import torch.utils.data as tud
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch import (
    Composable,
    IterableSamplerSource,
    IterableSource,
    Multiplexer,
    MultiplexingStrategy,
    PipelineError,
    PyTorchSplittingException,
    Shard,
    ShardingError,
    SplitByRank,
    SplitByWorker,
    TorchIterable,
)
from squirrel_torch.iterstream.run import Run
from squirrel_torch.iterstream.stages import AutoSplit
from tests.support import error_of


class Opaque(Composable):
    needs_whole = False

    def __iter__(self):
        yield from self.source


class Whole(Composable):
    needs_whole = True

    def __iter__(self):
        yield from self.source


class Unsaid(Composable):
    def __iter__(self):
        yield from self.source


class Lookup(tud.Dataset):
    """A map-style dataset that notes what it is asked for."""

    def __init__(self, size):
        self.size = size
        self.asked = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked.append(index)
        return index


def share(pipeline, rank, worker, epoch=0):
    """What one process of a job gets."""
    dataset = pipeline.to_torch_iterable()
    return list(Run(dataset._sharded(pipeline, rank, worker), lambda: epoch))


def shares(pipeline, ranks, workers, epoch=0):
    return {
        (rank, worker): share(pipeline, Shard(rank, ranks), Shard(worker, workers), epoch)
        for rank, worker in product(range(ranks), range(workers))
    }


# Each keeps the set of items, whatever order it gives them, so that the parts can be counted.
KEEPING = {
    "map": lambda p: p.map(lambda x: x),
    "async_map": lambda p: p.async_map(lambda x: x, max_workers=1, buffer=3),
    "shuffle": lambda p: p.shuffle(7),
    "shuffle small": lambda p: p.shuffle(3, seed="s", initial=1),
    "batched and flat": lambda p: p.batched(3, drop_last_if_not_full=False).flatten(),
    "zip_index": lambda p: p.zip_index().map(lambda pair: pair[1]),
    "opaque": lambda p: p.compose(Opaque),
    "whole": lambda p: p.compose(Whole),
    "inside a source": lambda p: IterableSource(p),
    "inside a source, twice": lambda p: IterableSource(IterableSource(p.map(lambda x: x))),
    "flat_map": lambda p: p.flat_map(lambda x: (x,)),
    "monitor": lambda p: p.monitor(lambda m: None),
    "skip nothing": lambda p: p.skip(0),
    "take all": lambda p: p.take(10_000),
}


@st.composite
def chains(draw):
    size = draw(st.integers(0, 60))
    sources = {
        "range": lambda: IterableSource(range(size)),
        "function": lambda: IterableSource(lambda: iter(range(size))),
        "map-style": lambda: IterableSource(Lookup(size)),
        "sampler": lambda: IterableSamplerSource([range(size // 2), range(size // 2, size)]),
        "turns": lambda: Multiplexer([range(0, size, 2), range(1, size, 2)], MultiplexingStrategy.ROUND_ROBIN),
    }
    pipeline = sources[draw(st.sampled_from(sorted(sources)))]()
    for name in draw(st.lists(st.sampled_from(sorted(KEEPING)), max_size=4)):
        pipeline = KEEPING[name](pipeline)
    return pipeline, size


class TestAutomaticSplit:
    @given(chains(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
    def test_parts_are_disjoint_and_complete(self, chain, ranks, workers, epoch):
        pipeline, size = chain
        parts = shares(pipeline, ranks, workers, epoch)
        assert Counter(item for part in parts.values() for item in part) == Counter(range(size))

    @given(chains(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.integers(0, 3))
    def test_explicit_splits_at_any_place(self, chain, ranks, workers, place, epoch):
        pipeline, size = chain
        seen = Counter()
        for rank, worker in product(range(ranks), range(workers)):
            links = pipeline._links()
            links.insert(1 + place % len(links), Composable(stage=AutoSplit(Shard(rank, ranks))))
            links.append(Composable(stage=AutoSplit(Shard(worker, workers))))
            seen.update(Run(links, lambda: epoch))
        assert seen == Counter(range(size))

    @given(chains(), st.integers(1, 4), st.integers(1, 4))
    def test_shares_differ_by_at_most_one_item_right_behind_the_source(self, chain, ranks, workers):
        size = len(IterableSource(chain[0]).collect())
        parts = shares(IterableSource(range(size)), ranks, workers)
        lengths = [len(part) for part in parts.values()]
        assert max(lengths) - min(lengths) <= 1

    def test_it_is_the_same_as_both_splits(self, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "3")
        pipeline = IterableSource(range(20)).shuffle(5)
        assert pipeline.split_by_rank().collect() == share(pipeline, Shard(1, 3), Shard())

    @pytest.mark.parametrize(
        ("pipeline", "place"),
        [
            (IterableSource(range(9)).map(str).batched(2), 1),
            (IterableSource(range(9)).shuffle(3).take(8).map(str), 3),
            (IterableSource(range(9)).loop(2).skip(1).compose(Opaque).map(str), 3),
            (IterableSource(range(9)).map(str).take(3).batched(2), 3),
            (IterableSource(range(9)).map(str).sliding(2, deepcopy=False).map(len), 3),
            (IterableSource(range(9)).filter(bool).zip_index().map(len).shuffle(3), 3),
            (IterableSource(range(9)), 1),
        ],
        ids=repr,
    )
    def test_where_it_is_put(self, pipeline, place):
        links = pipeline.to_torch_iterable()._sharded(pipeline, Shard(0, 2), Shard(0, 2))
        assert [isinstance(link._owner, AutoSplit) for link in links].index(True) == place

    def test_take_counts_the_items_of_all_processes(self):
        parts = shares(IterableSource(range(100)).map(lambda x: x).take(10), 2, 2)
        assert sorted(item for part in parts.values() for item in part) == list(range(10))

    def test_windows_are_of_neighbours(self):
        parts = shares(IterableSource(range(10)).map(lambda x: x).sliding(3, deepcopy=False), 2, 2)
        windows = sorted(window for part in parts.values() for window in part)
        assert windows == [[i, i + 1, i + 2] for i in range(8)]

    @pytest.mark.parametrize("put", [lambda p: p.to(iter), lambda p: p.compose(Unsaid)])
    def test_what_may_look_at_several_items_is_not_guessed(self, put):
        pipeline = put(IterableSource(range(9)).map(str))
        assert len(share(pipeline, Shard(), Shard())) == 9, "one process needs no split"
        with pytest.raises(ShardingError, match="in front of it or behind it"):
            share(pipeline, Shard(0, 2), Shard())
        assert len(share(put(IterableSource(range(9)).split_by_rank()), Shard(0, 2), Shard())) == 9
        assert put(IterableSource(range(9)).map(str).take(3)).take(2)  # and the same behind and in front of others
        with pytest.raises(ShardingError, match="in front of it or behind it"):
            share(put(IterableSource(range(9)).take(3)).take(2), Shard(), Shard(0, 2))

    def test_a_chain_inside_a_pipe_of_torch(self):
        split = IterableSource(range(12)).split_by_rank().split_by_worker().batched(2).unbatch()
        assert len(share(IterableSource(split), Shard(1, 2), Shard(1, 2))) == 12, "not split again; not in these processes"
        whole = IterableSource(range(12)).batched(2).unbatch()
        parts = shares(IterableSource(whole), 2, 2)
        assert sorted(item for part in parts.values() for item in part) == list(range(12))
        with pytest.raises(ShardingError, match=r"Add \.split_by_worker"):
            share(IterableSource(IterableSource(range(12)).split_by_rank().batched(2).unbatch()), Shard(1, 2), Shard(1, 2))

    def test_a_map_style_dataset_is_asked_for_the_own_share_only(self):
        dataset = Lookup(20)
        pipeline = IterableSource(dataset).map(lambda x: x)
        assert share(pipeline, Shard(1, 2), Shard(1, 2)) == dataset.asked == [3, 7, 11, 15, 19]

    def test_what_was_done_is_logged_once(self, caplog, monkeypatch):
        caplog.set_level(logging.INFO, "squirrel_torch")
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        dataset = IterableSource(range(4)).map(str).take(3).to_torch_iterable()
        for _ in range(2):
            dataset.collect()
        (record,) = caplog.records
        assert "split by rank 0 of 2 and worker 0 of 1 behind Take(count=3)" in record.getMessage()
        assert "every process runs Map(callback=str) on all items" in record.getMessage()

    def test_nothing_is_split_where_there_is_one_process(self):
        assert IterableSource(range(4)).to_torch_iterable().collect() == [0, 1, 2, 3]


class TestChecks:
    both = (Shard(1, 2), Shard(1, 2))

    def test_a_split_along_one_axis_is_not_enough(self):
        for pipeline, method in (
            (IterableSource(range(9)).split_by_worker(), r"split_by_rank\(\)"),
            (IterableSource(range(9)).split_by_rank(), r"split_by_worker\(\)"),
        ):
            with pytest.raises(ShardingError, match=rf"Add \.{method}"):
                share(pipeline, *self.both)

    def test_an_axis_with_one_process_needs_no_split(self):
        assert share(IterableSource(range(4)).split_by_rank(), Shard(), Shard()) == [0, 1, 2, 3]
        assert share(IterableSource(range(4)).split_by_rank(), Shard(1, 2), Shard()) == [0, 1, 2, 3], "not in this process"

    @pytest.mark.parametrize("methods", [("split_by_rank", "split_by_rank_pytorch"), ("split_by_worker",) * 2])
    def test_one_axis_twice_is_refused_where_it_is_written(self, methods):
        pipeline = getattr(IterableSource(range(9)), methods[0])().map(str)
        with pytest.raises(ShardingError, match="twice"):
            getattr(pipeline, methods[1])()
        with pytest.raises(ShardingError, match="twice"):
            pipeline.compose(SplitByRank if "rank" in methods[0] else SplitByWorker)

    def test_branches_of_a_mix_must_agree(self):
        whole, split = IterableSource(range(4)), IterableSource(range(4)).split_by_rank()
        for mix in (
            IterableSamplerSource([whole, split]),
            Multiplexer([split, whole], MultiplexingStrategy.ROUND_ROBIN),
            IterableSource(IterableSamplerSource([whole, split]).map(str)),
        ):
            with pytest.raises(ShardingError, match=r"branches \[\d\] are split and branches \[\d\] are not"):
                mix.map(str).to_torch_iterable()

    def test_a_mix_of_split_branches_is_split(self):
        split = IterableSource(range(4)).split_by_rank().split_by_worker()
        mix = IterableSamplerSource([split, split])
        assert len(share(mix, *self.both)) == 8, "not split again"
        with pytest.raises(ShardingError, match="so is the mix itself"):
            mix.split_by_rank().to_torch_iterable()

    def test_enforced_checks_refuse_what_would_be_split_automatically(self):
        pipeline = IterableSource(range(9))
        for options, method in (((True, None), "split_by_rank"), ((False, True), "split_by_worker")):
            with pytest.raises(PyTorchSplittingException, match=method):
                pipeline.to_torch_iterable(*options)._sharded(pipeline, *self.both)

    def test_without_checks_each_process_gets_all(self):
        pipeline = IterableSource(range(9))
        links = pipeline.to_torch_iterable(False, False)._sharded(pipeline, *self.both)
        assert list(Run(links, lambda: 0)) == list(range(9))
        links = pipeline.to_torch_iterable(enforce_worker_check=False)._sharded(pipeline, *self.both)
        assert list(Run(links, lambda: 0)) == [1, 3, 5, 7]

    def test_a_dataset_without_a_chain(self):
        with pytest.raises(PipelineError, match="without a chain"):
            iter(TorchIterable())
        with pytest.raises(TypeError, match="needs a Composable"):
            TorchIterable().source_([1, 2])

    @pytest.mark.parametrize(
        "environment",
        [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "two", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}],
    )
    def test_a_rank_that_can_not_be_read_is_not_guessed(self, monkeypatch, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for pipeline in (IterableSource(range(9)).split_by_rank(), IterableSource(range(9)).to_torch_iterable()):
            with pytest.raises(ShardingError, match="the rank can't be read"):
                pipeline.collect()

    def test_the_rank_is_read_when_the_stream_starts(self, monkeypatch):
        pipeline = IterableSource(range(6)).split_by_rank()
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert pipeline.collect() == [1, 4]

    def test_a_group_without_a_process_group(self):
        with pytest.raises(ShardingError, match="not initialized"):
            IterableSource(range(6)).split_by_rank("a group").collect()

    def test_errors_come_home_from_workers(self):
        pipeline = IterableSource(range(9)).split_by_rank()
        error = error_of(tud.DataLoader(pipeline.to_torch_iterable(), num_workers=2))
        assert isinstance(error, ShardingError)
        assert "split_by_worker()" in str(error)


class TestShard:
    @given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 5))
    def test_a_share_of_a_share(self, size, outer, inner):
        for i, j in product(range(outer), range(inner)):
            nested = list(Shard(j, inner).of(Shard(i, outer).of(range(size))))
            assert nested == list(Shard(j, inner).within(Shard(i, outer)).of(range(size)))

    @pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0), (0.5, 2), ("0", 2), (True, 2)])
    def test_wrong_shards(self, index, count):
        with pytest.raises((TypeError, ValueError), match="must be"):
            Shard(index, count)


class OnWorkerOne(tud.IterableDataset):
    def __init__(self, inner):
        self.inner = inner

    def __iter__(self):
        return iter(self.inner if tud.get_worker_info().id == 1 else ())


class TestEpochsInWorkers:
    """Each pass through a DataLoader is a new epoch, agreed among its workers."""

    def passes(self, loader, count=3):
        return [[int(item) for item in loader] for _ in range(count)]

    @pytest.mark.parametrize("persistent", [False, True])
    def test_each_pass_is_complete_and_new(self, persistent):
        dataset = IterableSource(range(60)).shuffle(60, initial=60).to_torch_iterable()
        loader = tud.DataLoader(dataset, batch_size=None, num_workers=3, persistent_workers=persistent)
        passes = self.passes(loader)
        assert [sorted(one) for one in passes] == [list(range(60))] * 3
        assert len(set(map(tuple, passes))) == 3
        del loader

    def test_with_workers_and_without_it_is_the_same_epoch(self):
        def dataset():
            return IterableSource(range(60)).shuffle(60).to_torch_iterable()

        alone = self.passes(tud.DataLoader(dataset(), batch_size=None))
        for persistent in (False, True):
            loader = tud.DataLoader(dataset(), batch_size=None, num_workers=1, persistent_workers=persistent)
            assert self.passes(loader) == alone
            del loader

    @pytest.mark.parametrize("workers", [0, 1])
    def test_set_epoch(self, workers):
        dataset = IterableSource(range(60)).shuffle(60).to_torch_iterable()
        loader = tud.DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=bool(workers))
        first = self.passes(loader)
        dataset.set_epoch(1)
        assert self.passes(loader, 2) == first[1:]
        dataset.set_epoch(0)
        assert self.passes(loader, 1) == first[:1]
        del loader

    def test_a_pass_that_was_left_early_counts(self):
        dataset = IterableSource(range(60)).shuffle(60).to_torch_iterable()
        loader = tud.DataLoader(dataset, batch_size=None, num_workers=2)
        for _ in range(3):
            next(iter(loader))
        (whole,) = self.passes(loader, 1)
        assert sorted(whole) == list(range(60))

    def test_two_loaders_at_the_same_time(self):
        dataset = IterableSource(range(40)).shuffle(40).to_torch_iterable()
        loader = tud.DataLoader(dataset, batch_size=None, num_workers=2)
        for _ in range(5):
            pairs = list(zip(loader, loader, strict=True))
            for items in zip(*pairs, strict=True):
                assert sorted(items) == list(range(40))

    @pytest.mark.parametrize("start", ["spawn"])
    @pytest.mark.parametrize("persistent", [False, True])
    @pytest.mark.slow
    def test_however_workers_are_started(self, start, persistent):
        dataset = IterableSource(range(40)).shuffle(40).map(lambda x: x).to_torch_iterable()
        loader = tud.DataLoader(
            dataset, batch_size=None, num_workers=2, multiprocessing_context=start, persistent_workers=persistent
        )
        passes = self.passes(loader, 2)
        assert [sorted(one) for one in passes] == [list(range(40))] * 2
        assert passes[0] != passes[1]
        del loader

    def test_a_worker_may_be_the_only_one_that_iterates(self):
        dataset = OnWorkerOne(IterableSource(range(4)).to_torch_iterable())
        assert list(tud.DataLoader(dataset, batch_size=None, num_workers=2)) == [1, 3]

    def test_workers_may_come_in_any_order(self):
        one = IterableSource(range(100)).filter(lambda x: x % 2 == 0).to_torch_iterable()
        other = IterableSource(range(100, 110)).shuffle(10).to_torch_iterable()
        loader = tud.DataLoader(tud.ChainDataset([one, other]), batch_size=None, num_workers=2, timeout=60)
        for _ in range(2):
            assert sorted(loader) == [*range(0, 100, 2), *range(100, 110)]

    def test_a_lock_that_was_left_is_named(self, monkeypatch, tmp_path):
        monkeypatch.setattr("squirrel_torch.iterstream.epochs._PATIENCE", 0.2)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr("pathlib.Path.unlink", lambda path: None)
        dataset = IterableSource(range(4)).to_torch_iterable()
        monkeypatch.setattr(dataset._epochs, "_published", lambda token: None)
        error = error_of(tud.DataLoader(dataset, batch_size=None, num_workers=2))
        assert isinstance(error, ShardingError)
        assert "Delete the file" in str(error)

    def test_the_log_line_comes_once_from_workers_too(self, tmp_path):
        handler = logging.FileHandler(tmp_path / "log")
        logger = logging.getLogger("squirrel_torch")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            loader = tud.DataLoader(IterableSource(range(4)).to_torch_iterable(), batch_size=None, num_workers=2)
            self.passes(loader)
        finally:
            logger.removeHandler(handler)
            handler.close()
        assert (tmp_path / "log").read_text().count("split by rank") == 1

    def test_two_loaders_over_one_dataset(self):
        dataset = IterableSource(range(60)).shuffle(60).to_torch_iterable()
        few = tud.DataLoader(dataset, batch_size=None, num_workers=1)
        many = tud.DataLoader(dataset, batch_size=None, num_workers=3)
        passes = self.passes(few, 2) + self.passes(many, 2) + self.passes(few, 1)
        assert [sorted(one) for one in passes] == [list(range(60))] * 5
        assert passes[0] != passes[1] != passes[4]
