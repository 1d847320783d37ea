"""Runs: two at a time, ended in every way, and what they say when something fails."""

import gc
import pickle
import threading
import weakref
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterDataPipe
from torch.utils.data.datapipes.iter import IterableWrapper
from torch.utils.data.graph import traverse_dps

from squirrel_torch import (
    ClosedRunError,
    Composable,
    ExhaustedSourceError,
    IterableSource,
    MemoryStore,
    PipelineError,
    Run,
    Shard,
)
from squirrel_torch.iterstream.blame import NOTE_PREFIX
from squirrel_torch.iterstream.stages import AutoSplit
from tests.support import error_of


class Doubled(Composable):
    def __iter__(self):
        for item in self.source:
            yield 2 * item


class DoubledTwice(Doubled):
    def __iter__(self):
        for item in super().__iter__():
            yield 2 * item


class Counting(Composable):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def __iter__(self):
        for item in self.source:
            self.seen += 1
            yield item


class TwoPasses(Composable):
    def __iter__(self):
        highest = max(self.source)
        for item in self.source:
            yield item / highest


class Slow(Composable):
    """An iterator of the old kind."""

    def __iter__(self):
        self.items = iter(self.source)
        return self

    def __next__(self):
        return next(self.items) + 1


def note_of(error):
    (note,) = [note for note in error.__notes__ if note.startswith(NOTE_PREFIX)]
    return note.removeprefix(NOTE_PREFIX)


def failing_at(position):
    def callback(item):
        if item == position:
            raise KeyError("missing", {"item": item})
        return item

    return callback


class TestLife:
    def test_two_runs_take_turns(self):
        pipeline = IterableSource(range(5)).compose(Doubled).zip_index().async_map(lambda x: x, max_workers=1)
        assert list(zip(pipeline, pipeline, strict=True)) == [((i, 2 * i), (i, 2 * i)) for i in range(5)]

    def test_each_pass_is_the_same_chain_again(self):
        pipeline = IterableSource(range(3)).zip_index().loop(2)
        assert pipeline.collect() == pipeline.collect() == [(0, 0), (1, 1), (2, 2)] * 2

    def test_nothing_is_opened_before_the_first_item_is_asked_for(self):
        asked = []

        def source():
            asked.append(True)
            yield 1

        run = iter(IterableSource(source).map(str))
        assert not asked
        assert next(run) == "1"
        assert asked

    @pytest.mark.parametrize("how", ["close", "with", "del", "gc"])
    def test_every_end_closes_the_source_and_the_threads(self, how):
        closed = threading.Event()

        def source():
            try:
                yield from range(100)
            finally:
                closed.set()

        before = threading.active_count()
        run = IterableSource(source).async_map(str, max_workers=3).map(str).run()
        assert next(run) == "0"
        if how == "close":
            run.close()
        elif how == "with":
            with run:
                pass
        elif how == "del":
            del run
        else:
            cycle = [run]
            cycle.append(cycle)
            del run, cycle
            gc.collect()
        assert closed.is_set()
        assert threading.active_count() == before

    def test_an_abandoned_run_is_not_kept_alive(self):
        run = iter(IterableSource(range(10)).shuffle(5).async_map(str).batched(2))
        next(run)
        gone = weakref.ref(run)
        gc.disable()
        try:
            del run
            assert gone() is None
        finally:
            gc.enable()

    def test_a_closed_run_says_so(self):
        run = IterableSource(range(3)).run()
        assert next(run) == 0
        run.close()
        run.close()
        for _ in range(2):
            with pytest.raises(ClosedRunError, match="was closed before its last item"):
                next(run)

    def test_a_run_that_was_closed_before_it_began_says_so(self):
        run = IterableSource(range(3)).run()
        run.close()
        with pytest.raises(ClosedRunError):
            next(run)

    def test_an_exhausted_run_stays_at_its_end(self):
        run = iter(IterableSource(range(3)))
        assert list(run) == [0, 1, 2]
        assert list(run) == []
        run.close()
        assert list(run) == []

    def test_a_run_that_was_interrupted_says_so(self):
        def interrupt(item):
            raise KeyboardInterrupt

        run = iter(IterableSource(range(3)).map(interrupt))
        with pytest.raises(KeyboardInterrupt):
            next(run)
        with pytest.raises(ClosedRunError, match="ended by KeyboardInterrupt"):
            next(run)

    def test_runs_can_not_be_pickled(self):
        with pytest.raises(TypeError, match="pickle the pipeline"):
            pickle.dumps(iter(IterableSource([1])))

    def test_the_callers_own_iterator_is_not_closed(self, tmp_path):
        path = tmp_path / "lines"
        path.write_text("a\nb\nc\n")
        with path.open() as file:
            run = iter(IterableSource(file))
            assert next(run) == "a\n"
            del run
            assert not file.closed
            assert next(file) == "b\n"

        generator = (i for i in range(5))
        assert IterableSource(generator).take(2).collect() == [0, 1]
        assert next(generator) == 2

    def test_early_end_cancels_what_is_queued(self):
        called = []
        go_on = threading.Event()

        def callback(item):
            called.append(item)
            if item:
                go_on.wait(20)
            return item

        run = iter(IterableSource(range(100)).async_map(callback, buffer=50, max_workers=2))
        assert next(run) == 0
        go_on.set()
        run.close()
        assert len(called) < 50


class TestEpochs:
    def test_each_pass_is_a_new_epoch(self):
        pipeline = IterableSource(range(100)).shuffle(50)
        one, other = pipeline.collect(), pipeline.collect()
        assert one != other
        assert sorted(one) == sorted(other) == list(range(100))

    def test_an_epoch_can_be_said(self):
        pipeline = IterableSource(range(100)).shuffle(50)
        passes = [pipeline.collect() for _ in range(3)]
        assert list(pipeline.run(epoch=1)) == passes[1]
        pipeline.set_epoch(1)
        assert [pipeline.collect() for _ in range(2)] == passes[1:]

    def test_a_run_that_gives_nothing_is_no_epoch(self):
        pipeline = IterableSource(range(100)).shuffle(50)
        iter(pipeline).close()
        assert pipeline.collect() == list(pipeline.run(epoch=0))

    @pytest.mark.parametrize("epoch", [-1, 1.5, "1", True])
    def test_wrong_epochs(self, epoch):
        with pytest.raises((TypeError, ValueError), match="epoch must be"):
            IterableSource([1]).run(epoch=epoch)
        with pytest.raises((TypeError, ValueError), match="epoch must be"):
            IterableSource([1]).set_epoch(epoch)

    def test_each_pass_of_a_loop_is_shuffled_anew(self):
        looped = IterableSource(range(50)).shuffle(50).loop(2).collect()
        assert looped[:50] != looped[50:]
        assert sorted(looped[:50]) == sorted(looped[50:])

    def test_a_stage_without_randomness_changes_no_order(self):
        plain = IterableSource(range(100)).shuffle(30).shuffle(20)
        more = IterableSource(range(100)).map(lambda x: x).shuffle(30).monitor(lambda m: None).shuffle(20)
        assert list(plain.run(epoch=3)) == list(more.run(epoch=3))

    def test_two_shuffles_of_one_seed_differ(self):
        once = list(IterableSource(range(100)).shuffle(100, seed=1).run(epoch=0))
        twice = list(IterableSource(once).shuffle(100, seed=1).run(epoch=0))
        both = list(IterableSource(range(100)).shuffle(100, seed=1).shuffle(100, seed=1).run(epoch=0))
        assert both != twice


class TestOwnComposables:
    def test_generator(self):
        assert IterableSource([1, 2]).compose(Doubled).map(str).collect() == ["2", "4"]

    def test_inherited_and_called_with_super(self):
        pipeline = IterableSource([1, 2]).compose(DoubledTwice)
        assert list(zip(pipeline, pipeline, strict=True)) == [(4, 4), (8, 8)]

    def test_what_it_notes_on_itself_can_be_read_afterwards(self):
        pipeline = IterableSource(range(7)).compose(Counting)
        pipeline.collect()
        assert pipeline.seen == 7

    def test_the_source_can_be_read_twice_in_one_run(self):
        assert IterableSource([1, 2, 4]).map(lambda x: x).compose(TwoPasses).collect() == [0.25, 0.5, 1.0]

    def test_fluent_methods_on_the_source_of_the_run(self):
        class Mapped(Composable):
            def __iter__(self):
                yield from self.source.map(str).batched(2)

        pipeline = IterableSource(range(4)).shuffle(4).compose(Mapped)
        plain = IterableSource(range(4)).shuffle(4).map(str).batched(2)
        for epoch in range(3):
            assert list(pipeline.run(epoch=epoch)) == list(plain.run(epoch=epoch))
        with pytest.raises(AttributeError):
            IterableSource([1]).to(lambda items: iter([items.nothing])).collect()

    def test_over_a_plain_iterable(self):
        assert Doubled([1, 2]).collect() == [2, 4]
        assert Doubled().source_(range(3)).take(2).collect() == [0, 2]

    def test_as_the_beginning_of_a_stream(self):
        class Two(Composable):
            def __iter__(self):
                yield from "ab"

        assert Two().map(str.upper).collect() == ["A", "B"]

    def test_iterators_with_next(self):
        assert IterableSource([1, 2]).compose(Slow).collect() == [2, 3]

    def test_without_super_init(self):
        class Careless(Composable):
            def __init__(self, factor):
                self.factor = factor

            def __iter__(self):
                for item in self.source:
                    yield self.factor * item

        assert IterableSource([1, 2]).compose(Careless, 3).collect() == [3, 6]

    def test_one_of_a_function_body_can_be_pickled(self):
        factor = 3

        class Local(Composable):
            def __iter__(self):
                for item in self.source:
                    yield factor * item

        copy = pickle.loads(pickle.dumps(IterableSource([1, 2]).compose(Local).map(lambda x: x + 1)))
        assert copy.collect() == [4, 7]

    def test_two_in_one_chain_are_told_apart(self):
        pipeline = IterableSource([1, 0, 2]).compose(Doubled).map(lambda x: 4 // x).compose(Doubled)
        with pytest.raises(ZeroDivisionError) as caught:
            pipeline.collect()
        assert "in stage 2 of 3, Map(" in note_of(caught.value)

    def test_one_with_nothing_to_do(self):
        with pytest.raises(PipelineError, match="neither a stage nor an __iter__"):
            Composable([1]).collect()

    def test_compose_takes_no_source(self):
        class Sourced(Composable):
            def __init__(self, source=None):
                super().__init__(source)

        with pytest.raises(ValueError, match="must not take a source"):
            IterableSource([1]).compose(Sourced)
        with pytest.raises(TypeError, match="made a dict"):
            IterableSource([1]).compose(dict)


class TestErrors:
    def test_type_arguments_and_traceback_stay(self):
        with pytest.raises(KeyError) as caught:
            IterableSource(range(10)).map(failing_at(4)).batched(2).collect()
        assert caught.value.args == ("missing", {"item": 4})
        assert caught.traceback[-1].name == "callback"

    def test_the_note_names_stage_call_site_and_item(self):
        pipeline = IterableSource(range(10)).filter(lambda x: x > 1).map(failing_at(4))  # written here
        line = Path(__file__).read_text().split("# written here")[0].count("\n") + 1
        with pytest.raises(KeyError) as caught:
            pipeline.batched(2).collect()
        note = note_of(caught.value)
        assert note.startswith("in stage 2 of 3, Map(callback=callback at test_run.py:")
        assert f"written at {__file__}:{line}" in note
        assert note.endswith("on item 4 of IterableSource(range of 10): 4")

    @pytest.mark.parametrize("source", [list(range(10)), range(10), (i for i in range(10)), lambda: (i for i in range(10))])
    def test_the_position_is_right_for_every_kind_of_source(self, source):
        with pytest.raises(KeyError) as caught:
            IterableSource(source).map(failing_at(7)).collect()
        assert "on item 7 of IterableSource(" in note_of(caught.value)

    @pytest.mark.parametrize("split", [Shard(), Shard(1, 3)])
    def test_positions_in_a_share_are_those_of_the_whole(self, split):
        class Lookup:
            def __len__(self):
                return 20

            def __getitem__(self, index):
                if index == 13:
                    raise OSError("disk")
                return index

        store = MemoryStore()
        for number in range(20):
            store.set(number)
        for source in (Lookup(), store, list(range(20)), lambda: (i for i in range(20))):
            chain = IterableSource(source).then(AutoSplit(split)).map(failing_at(10))
            with pytest.raises(KeyError) as caught:
                chain.collect()
            assert "on item 10 of IterableSource(" in note_of(caught.value)
        with pytest.raises(OSError, match="disk") as caught:
            IterableSource(Lookup()).then(AutoSplit(split)).map(str).collect()
        assert "reading item 13" in note_of(caught.value)

    def test_an_error_of_the_source(self):
        def source():
            yield from range(3)
            raise OSError(5, "disk")

        with pytest.raises(OSError, match="disk") as caught:
            IterableSource(source).map(str).shuffle(5).collect()
        assert note_of(caught.value).startswith("in the source, IterableSource(source)")
        assert note_of(caught.value).endswith("reading item 3")

    def test_an_iterator_written_in_c(self):
        with pytest.raises(ValueError, match="invalid literal") as caught:
            IterableSource(map(int, ["1", "x"])).map(str).collect()
        assert note_of(caught.value).startswith("in the source")
        with pytest.raises(ValueError, match="invalid literal") as caught:
            IterableSource(["1", "x"]).map(int).collect()
        assert note_of(caught.value).startswith("in stage 1 of 1, Map(callback=int)")

    def test_behind_a_buffer_the_position_is_that_of_the_buffer(self):
        with pytest.raises(KeyError) as caught:
            IterableSource(range(10)).async_map(lambda x: x).map(failing_at(6)).collect()
        assert "on item 6 of AsyncMap(" in note_of(caught.value)
        with pytest.raises(KeyError) as caught:
            IterableSource(lambda: iter(range(10))).shuffle(5).map(failing_at(6)).collect()
        assert ", behind item " in note_of(caught.value)

    def test_behind_a_shuffle_by_number_the_number_is_known(self):
        for chain in (
            IterableSource(range(10)).shuffle(5),
            IterableSource(range(10)).map(int).shuffle(5).take(10).split_by_rank(),
        ):
            with pytest.raises(KeyError) as caught:
                chain.map(failing_at(6)).collect()
            assert ", on item 6 of IterableSource(range of 10)" in note_of(caught.value)
        with pytest.raises(KeyError) as caught:
            IterableSource(range(10)).map(failing_at(6)).shuffle(5).collect()
        assert note_of(caught.value).startswith("in stage 1 of 2, Map(")
        assert ", on item 6 of IterableSource(range of 10)" in note_of(caught.value)

        class Items:
            def __len__(self):
                return 10

            def __getitem__(self, number):
                return failing_at(6)(number)

        with pytest.raises(KeyError) as caught:
            IterableSource(Items()).shuffle(5).map(str).collect()
        assert note_of(caught.value).startswith("in the source, ")
        assert note_of(caught.value).endswith(", reading item 6")

    def test_in_a_thread(self):
        with pytest.raises(KeyError) as caught:
            IterableSource(range(100)).async_map(failing_at(50)).collect()
        assert note_of(caught.value).startswith("in stage 1 of 1, AsyncMap(")
        assert "on item 50" in note_of(caught.value)

    def test_in_a_function_given_to_to(self):
        def stream(items):
            for item in items:
                yield 1 // item

        for function in (stream, lambda items: map(lambda x: 1 // x, items)):
            with pytest.raises(ZeroDivisionError) as caught:
                IterableSource([1, 0]).map(int).to(function).map(str).collect()
            assert "in stage 2 of 3, Piped(" in note_of(caught.value)
            assert "behind item 1 of IterableSource(list of 2)" in note_of(caught.value), "not which one it was"

    def test_in_python_code_that_a_builtin_source_calls(self):
        with pytest.raises(ZeroDivisionError) as caught:
            IterableSource(map(lambda x: 1 // x, [1, 0])).map(str).collect()
        assert "in the source" in note_of(caught.value)

    def test_while_a_stage_is_opened(self):
        with pytest.raises(TypeError, match="must return an iterator, it returned list") as caught:
            IterableSource([1]).map(str).to(lambda items: [1]).map(str).collect()
        assert "in stage 2 of 3" in note_of(caught.value)

    def test_the_same_stage_twice(self):
        def source():
            yield from (1, 2)

        same = failing_at(2)
        stage = IterableSource([1]).map(same)._stage
        with pytest.raises(KeyError) as caught:
            IterableSource(source).then(stage).then(stage).collect()
        assert "in stage 1 of 2" in note_of(caught.value)

    def test_a_callbacks_stop_iteration_does_not_end_the_stream(self):
        def stop(item):
            raise StopIteration

        for pipeline in (
            IterableSource([1]).map(stop),
            IterableSource([1]).filter(stop),
            IterableSource([1]).flat_map(stop),
            IterableSource([1]).batched(1, stop),
            IterableSource([1]).async_map(stop),
        ):
            with pytest.raises(RuntimeError, match="StopIteration") as caught:
                pipeline.map(str).collect()
            assert "in stage 1 of 2" in note_of(caught.value)

    def test_asking_again_raises_again_and_again(self):
        run = iter(IterableSource(range(5)).map(failing_at(2)))
        seen = []
        depths = []
        for _ in range(4):
            with pytest.raises(KeyError) as caught:
                list(run)
            seen.append(caught.value)
            depths.append(len(caught.traceback))
        assert all(error is seen[0] for error in seen)
        assert len(seen[0].__notes__) == 1
        assert len(set(depths[1:])) == 1, "the traceback must not grow"

    def test_an_item_whose_repr_fails(self):
        class Nasty:
            def __repr__(self):
                raise ValueError("no")

        def fail(item):
            raise KeyError("x")

        with pytest.raises(KeyError) as caught:
            IterableSource([Nasty()]).map(fail).collect()
        assert "on item 0" in note_of(caught.value)

    def test_large_items_are_not_printed(self):
        def fail(item):
            raise KeyError("x")

        items = [{"image": torch.zeros(1000, 1000), "text": "x" * 10**6, "list": list(range(10**5)), "n": {"a": 1}, "more": 1}]
        with pytest.raises(KeyError) as caught:
            IterableSource(items).map(fail).collect()
        assert "Tensor(shape=(1000, 1000)" in note_of(caught.value)
        assert len(note_of(caught.value)) < 600

    def test_a_source_that_can_be_read_once(self):
        pipeline = IterableSource(i for i in range(3)).map(str)
        assert pipeline.collect() == ["0", "1", "2"]
        for _ in range(2):
            with pytest.raises(ExhaustedSourceError, match="gives its items once"):
                pipeline.collect()
        with pytest.raises(ExhaustedSourceError):
            IterableSource(i for i in range(3)).loop(2).collect()
        doubled = Doubled(iter([1, 2]))
        doubled.collect()
        with pytest.raises(ExhaustedSourceError):
            doubled.collect()


class TestDataPipes:
    def test_every_composable_is_one(self):
        pipeline = IterableSource([1]).map(str).compose(Doubled)
        assert isinstance(pipeline, IterDataPipe)
        assert isinstance(pipeline.source, IterDataPipe)

    def test_torch_sees_the_graph(self):
        pipeline = IterableSource([1]).map(lambda x: x).batched(2)

        def depth(graph):
            return 1 + max(map(depth, (below for _, below in graph.values()))) if graph else 0

        assert depth(traverse_dps(pipeline)) == 3

    def test_the_graph_is_found_without_pickling_the_data(self):
        class Unpicklable:
            def __reduce__(self):
                raise AssertionError("pickled")

        traverse_dps(IterableSource([Unpicklable()]).map(lambda x: x))

    def test_foreign_pipes_are_sources(self):
        foreign = IterableWrapper(range(-1, -7, -1)).map(abs)
        pipeline = IterableSource(foreign).batched(2)
        assert pipeline.collect() == pipeline.collect() == [[1, 2], [3, 4], [5, 6]]

    def test_foreign_pipes_gain_our_stages(self):
        foreign = IterableWrapper(range(6))
        pipeline = foreign.async_map(lambda x: x + 1).batched(2)
        assert isinstance(pipeline, Composable)
        assert pipeline.collect() == [[1, 2], [3, 4], [5, 6]]
        assert foreign.take(2).collect() == [0, 1]

    def test_torchs_stages_go_behind_ours(self):
        assert list(IterableSource([[1, 2], [3]]).unbatch()) == [1, 2, 3]

    def test_torchs_names_are_not_taken_over(self):
        assert type(IterableWrapper([1]).map(str)).__module__.startswith("torch.")

    def test_misspelt_methods(self):
        with pytest.raises(AttributeError, match="mapp"):
            IterableSource([1]).mapp(str)

    def test_hooks_of_torch_are_not_in_the_loop(self):
        def stack(item):
            import traceback

            return [frame.filename for frame in traceback.extract_stack()]

        for pipeline in (IterableSource([1]).map(stack), IterableSource([1]).map(stack).compose(Counting)):
            (files,) = pipeline.collect()
            assert not [file for file in files if "_hook_iterator" in file]

    def test_handed_to_a_dataloader_as_it_is(self, monkeypatch):
        pipeline = IterableSource(range(10)).shuffle(10)
        loader = DataLoader(pipeline, batch_size=None)
        one, other = list(loader), list(loader)
        assert sorted(one) == sorted(other) == list(range(10))
        assert one != other
        own = DataLoader(IterableSource(range(4)).compose(Counting), batch_size=None)
        assert list(own) == [0, 1, 2, 3]
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert list(DataLoader(IterableSource(range(10)), batch_size=None)) == [1, 3, 5, 7, 9]

    def test_handed_to_a_dataloader_with_workers_it_says_what_to_do(self):
        error = error_of(DataLoader(IterableSource(range(10)), batch_size=None, num_workers=1))
        assert isinstance(error, PipelineError)
        assert "to_torch_iterable" in str(error)

    def test_subscripted_in_annotations(self):
        assert Composable[int] is not None
        assert IterableSource[int] is not None
        assert Run[int] is not None


def test_repr_shows_the_chain():
    pipeline = IterableSource(range(3)).map(str).batched(2)
    assert repr(pipeline) == ("IterableSource(range of 3) > Map(callback=str) > Batched(size=2)")


def test_a_stage_without_a_source():
    from squirrel_torch.iterstream.stages import Take

    with pytest.raises(PipelineError, match="has no source"):
        Composable(stage=Take(1)).collect()


def test_items_pass_one_at_a_time():
    pulled = []

    def source():
        for item in range(100):
            pulled.append(item)
            yield item

    run = iter(IterableSource(source).map(str).filter(bool).skip(1).batched(2))
    list(islice(run, 2))
    assert pulled == [0, 1, 2, 3, 4]
