"""Sources: what they take, what they give, what they refuse."""

import random

import fsspec
import numpy as np
import pytest
import torch.utils.data as tud
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch import (
    ExhaustedSourceError,
    FilePathGenerator,
    IterableSamplerSource,
    IterableSource,
    MemoryStore,
    Multiplexer,
    MultiplexingStrategy,
)

ROUND_ROBIN = MultiplexingStrategy.ROUND_ROBIN
UNIFORM = MultiplexingStrategy.UNIFORM_WITH_REPLACEMENT
SAMPLING = MultiplexingStrategy.SAMPLING


class TestIterableSource:
    def test_kinds(self):
        store = MemoryStore()
        store.set("value", key="key")

        class Numbers(tud.IterableDataset):
            def __iter__(self):
                return iter([1, 2])

        class MapStyle(tud.Dataset):
            def __len__(self):
                return 2

            def __getitem__(self, index):
                return index * 10  # never raises IndexError

        def generator():
            yield from (1, 2)

        for source, expected in [
            ([1, 2], [1, 2]),
            ((1, 2), [1, 2]),
            ("ab", ["a", "b"]),
            ({"a": 1}, ["a"]),
            (np.arange(2), [0, 1]),
            (range(2), [0, 1]),
            (generator, [1, 2]),
            (lambda: [1, 2], [1, 2]),
            (Numbers(), [1, 2]),
            (MapStyle(), [0, 10]),
            (store, ["value"]),
            (store.keys(), ["key"]),
            (IterableSource([1, 2]).map(str), ["1", "2"]),
            ((), []),
        ]:
            pipeline = IterableSource(source)
            assert pipeline.collect() == pipeline.collect() == expected

    def test_the_default_is_empty(self):
        assert IterableSource().collect() == []

    @pytest.mark.parametrize("source", [3, None, 1.5, object()])
    def test_wrong_sources(self, source):
        with pytest.raises(TypeError, match="source must be an iterable, a callable"):
            IterableSource(source)

    @pytest.mark.parametrize("make", [lambda: (i for i in range(3)), lambda: iter([0, 1, 2]), lambda: map(int, "012")])
    def test_one_shot(self, make):
        pipeline = IterableSource(make())
        assert pipeline.take(1).collect() == [0]
        with pytest.raises(ExhaustedSourceError, match="pass what can start again"):
            pipeline.collect()

    def test_a_composable_inside_is_shuffled_by_epoch_too(self):
        pipeline = IterableSource(IterableSource(range(30)).shuffle(30))
        orders = [list(pipeline.run(epoch=epoch)) for epoch in (0, 1, 1)]
        assert orders[0] != orders[1] == orders[2]


class TestSampler:
    @given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(0, 3))
    def test_all_items_of_all_streams_come_in_their_order(self, sizes, epoch):
        streams = [[(stream, item) for item in range(size)] for stream, size in enumerate(sizes)]
        mixed = list(IterableSamplerSource(streams).run(epoch=epoch))
        for stream, items in enumerate(streams):
            assert [item for item in mixed if item[0] == stream] == items
        assert len(mixed) == sum(sizes)

    def test_a_second_epoch_has_its_probabilities_too(self):
        pipeline = IterableSamplerSource([["a"] * 50, ["b"] * 50], probs=[0.9, 0.1])
        one, other = pipeline.collect(), pipeline.collect()
        assert one != other
        assert one[:30].count("a") > 20
        assert other[:30].count("a") > 20

    def test_floats_that_add_up_to_one_but_for_rounding(self):
        assert len(IterableSamplerSource([[1]] * 10, probs=[0.1] * 10).collect()) == 10

    def test_seeds(self):
        def order(**arguments):
            return list(IterableSamplerSource([["a"] * 20, ["b"] * 20], **arguments).run(epoch=0))

        assert order() == order(seed=0)
        assert order(seed=1) == order(seed=1) != order()
        assert order(rng=random.Random(3)) == order(rng=random.Random(3))

    def test_branches_of_one_kind_are_shuffled_differently(self):
        branch = IterableSource(range(30)).shuffle(30)
        mixed = IterableSamplerSource([branch.map(lambda x: ("a", x)), branch.map(lambda x: ("b", x))]).collect()
        a, b = ([item for name, item in mixed if name == wanted] for wanted in "ab")
        assert a != b
        assert sorted(a) == sorted(b) == list(range(30))

    @pytest.mark.parametrize(
        ("streams", "probs", "message"),
        [
            ([], None, "at least one stream"),
            ([[1], [2]], [1.0], "a number for each of the 2 streams"),
            ([[1], [2]], [0.5, 0.6], "must add up to 1"),
            ([[1], [2]], [1.0, 0.0], "must all be positive"),
            ([[1], [2]], [float("nan"), 1.0], "must all be positive"),
        ],
    )
    def test_wrong_arguments(self, streams, probs, message):
        with pytest.raises(ValueError, match=message):
            IterableSamplerSource(streams, probs)


class TestMultiplexer:
    def test_in_turn(self):
        mix = Multiplexer([[1, 2, 3], [10], [20, 21]], ROUND_ROBIN)
        assert mix.collect() == [1, 10, 20, 2, 21, 3]
        assert mix.num_samples == [3, 1, 2]
        assert mix.reinit_counts == [1, 1, 1]

    def test_drawn_until_each_was_exhausted_once(self):
        mix = Multiplexer([["a"] * 4, ["b"] * 40], SAMPLING, sampling_probas=[0.5, 0.5])
        mixed = mix.collect()
        assert mixed.count("b") >= 40
        assert mix.num_samples == [mixed.count("a"), mixed.count("b")]
        assert min(mix.reinit_counts) == 1
        assert mix.reinit_counts[0] > 3
        assert mixed.count("a") / len(mixed) == pytest.approx(0.5, abs=0.15)

    def test_counts_are_those_of_the_last_run(self):
        mix = Multiplexer([[1, 2], [3]], ROUND_ROBIN)
        mix.collect()
        mix.collect()
        assert mix.num_samples == [2, 1]

    def test_max_reinits(self):
        for limit in (1, 3):
            mix = Multiplexer([["a"] * 2, ["b"] * 1000], UNIFORM, max_reinits=limit)
            assert mix.collect().count("a") == 2 * limit

    def test_unlikely_streams_are_left_out_and_named(self, caplog):
        mix = Multiplexer([["a"], ["b"], ["c"]], SAMPLING, [0.5, 0.0005, 0.5])
        assert "b" not in mix.collect()
        assert "streams [1] are left out" in caplog.text

    def test_streams_start_again_with_another_order(self):
        mix = Multiplexer([IterableSource(range(20)).shuffle(20), ["x"] * 100], SAMPLING, [0.5, 0.5])
        items = [item for item in mix.collect() if item != "x"]
        assert items[:20] != items[20:40]
        assert sorted(items[:20]) == list(range(20))

    def test_a_one_shot_stream_can_not_start_again(self):
        mix = Multiplexer([(i for i in range(2)), ["x"] * 100], UNIFORM)
        with pytest.raises(ExhaustedSourceError) as caught:
            mix.collect()
        assert "branch 0" in caught.value.__notes__[0]

    def test_each_epoch_is_mixed_anew(self):
        mix = Multiplexer([["a"] * 30, ["b"] * 30], UNIFORM)
        assert mix.collect() != mix.collect()
        assert list(mix.run(epoch=0)) == list(mix.run(epoch=0))

    def test_two_runs_take_turns(self):
        mix = Multiplexer([["a"] * 30, ["b"] * 30], UNIFORM)
        with mix.run(epoch=0) as one, mix.run(epoch=0) as other:
            assert [(item, next(other)) for item in one] == [(item, item) for item in mix.run(epoch=0)]

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([[1]], "RoundRobin"), TypeError, "must be a MultiplexingStrategy"),
            (([], ROUND_ROBIN), ValueError, "at least one stream"),
            (([[1]], SAMPLING), ValueError, "must be given"),
            (([[1], [2]], SAMPLING, [1.0]), ValueError, "a number for each"),
            (([[1], [2]], SAMPLING, [-1.0, 2.0]), ValueError, "must be finite and not negative"),
            (([[1], [2]], SAMPLING, [0.0, 0.0]), ValueError, "no stream is more likely"),
            (([[1]], ROUND_ROBIN, None, 0), ValueError, "max_reinits must be at least 1"),
        ],
    )
    def test_wrong_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Multiplexer(*arguments)


@pytest.fixture
def folder(tmp_path):
    for path in ("b.txt", "a.txt", "sub/c.txt", "sub/deeper/d.txt", "sub/deeper/e.txt", "zz/f.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "empty").mkdir()
    return tmp_path


class TestFilePathGenerator:
    files = ("a.txt", "b.txt", "sub/c.txt", "sub/deeper/d.txt", "sub/deeper/e.txt", "zz/f.txt")

    def test_entries_of_a_folder(self, folder):
        paths = FilePathGenerator(str(folder)).collect()
        assert paths == [str(folder / name) for name in ("a.txt", "b.txt", "empty", "sub", "zz")]

    @pytest.mark.parametrize(("workers", "keys", "folders"), [(None, 1_000_000, 10), (1, 1, 1), (2, 3, 2)])
    def test_nested(self, folder, workers, keys, folders):
        paths = FilePathGenerator(str(folder), nested=True, max_workers=workers, max_keys=keys, max_dirs=folders)
        assert paths.collect() == paths.collect() == [str(folder / name) for name in self.files]

    def test_urls_keep_their_protocol(self, folder):
        paths = FilePathGenerator(f"file://{folder}", nested=True).collect()
        assert paths == [f"file://{folder / name}" for name in self.files]
        memory = fsspec.filesystem("memory")
        memory.pipe({"/bucket/x/1": b"", "/bucket/2": b""})
        try:
            assert FilePathGenerator("memory://bucket", nested=True).collect() == ["memory:///bucket/2", "memory:///bucket/x/1"]
        finally:
            memory.rm("/bucket", recursive=True)

    def test_a_missing_folder_is_an_error(self, tmp_path):
        for nested in (False, True):
            with pytest.raises(FileNotFoundError) as caught:
                FilePathGenerator(str(tmp_path / "nothing"), nested=nested).collect()
            assert "in the source, FilePathGenerator(" in caught.value.__notes__[0]

    def test_leaving_early(self, folder):
        run = iter(FilePathGenerator(str(folder), nested=True))
        next(run)
        run.close()

    @pytest.mark.parametrize("name", ["max_workers", "max_keys", "max_dirs"])
    def test_wrong_arguments(self, name):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            FilePathGenerator("somewhere", **{name: 0})
