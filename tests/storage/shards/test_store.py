"""ShardStore: modes, keys, what is refused, and all the ways in which samples get into it."""

import gc
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from squirrel_torch import (
    DatasetExistsError,
    IterableSource,
    SampleEncodingError,
    SampleNotFoundError,
    SchemaError,
    ShardingError,
    ShardStore,
    StoreError,
)
from squirrel_torch.testing import check_store
from tests.support import error_of, run_script


def fill(store, values):
    store.set_many(values)
    store.flush()
    return store


def files_of(url):
    return sorted(str(path.relative_to(url)) for path in Path(url).rglob("*") if path.is_file())


class TestModes:
    def test_create_refuses_where_something_is(self, tmp_path):
        first = fill(ShardStore(tmp_path), [1, 2])
        before = files_of(tmp_path)
        with pytest.raises(DatasetExistsError, match="2 rows") as caught:
            ShardStore(tmp_path).set(3)
        assert isinstance(caught.value, FileExistsError)
        with pytest.raises(DatasetExistsError):
            IterableSource([3]).sink(ShardStore(tmp_path))
        assert files_of(tmp_path) == before
        fill(first, [3])  # the store that made it goes on
        assert list(first) == list(ShardStore(tmp_path)) == [1, 2, 3]

    def test_append(self, tmp_path):
        fill(ShardStore(tmp_path, mode="append"), [1])
        store = ShardStore(tmp_path, mode="append")
        fill(store, [2])
        assert IterableSource([3, 4]).sink(store).rows == 2
        assert list(store) == [1, 2, 3, 4]
        assert store.manifest.number == 3

    def test_overwrite(self, tmp_path):
        fill(ShardStore(tmp_path), [1, 2])
        store = ShardStore(tmp_path, mode="overwrite")
        store.set("a")
        assert list(ShardStore(tmp_path)) == [1, 2]
        store.flush()
        fill(store, ["b"])
        assert list(store) == list(ShardStore(tmp_path)) == ["a", "b"]
        assert len(list((tmp_path / "shards").iterdir())) == 2

    def test_what_was_flushed_is_not_lost_when_others_append(self, tmp_path):
        store = ShardStore(tmp_path, mode="overwrite")
        fill(store, [1])
        fill(ShardStore(tmp_path, mode="append"), [2])
        try:
            fill(store, [3])
        except DatasetExistsError:
            assert list(ShardStore(tmp_path)) == [1, 2]
        else:
            assert {1, 3} <= set(ShardStore(tmp_path))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"mode": "w"}, ValueError, "mode must be one of 'create', 'append', 'overwrite'"),
            ({"compression": "gzip"}, ValueError, "compression"),
            ({"verify": True}, ValueError, "verify"),
            ({"shard_rows": 0}, ValueError, "shard_rows must be at least 1"),
            ({"shard_rows": 1.5}, TypeError, "shard_rows"),
            ({"shard_bytes": 0}, ValueError, "shard_bytes"),
            ({"shard_bytes": "much"}, ValueError, "shard_bytes"),
            ({"cache_limit": 5}, ValueError, "needs a cache"),
            ({"attempts": 0}, ValueError, "attempts"),
            ({"metadata": {"a": {1, 2}}}, ValueError, "plain JSON"),
            ({"metadata": {"a": float("nan")}}, ValueError, "plain JSON"),
            ({"metadata": {1: 2}}, ValueError, "plain JSON"),
            ({"metadata": [1]}, ValueError, "plain JSON"),
        ],
    )
    def test_wrong_arguments(self, tmp_path, options, error, message):
        with pytest.raises(error, match=message):
            ShardStore(tmp_path, **options)
        assert files_of(tmp_path) == []

    def test_reading_makes_nothing(self, tmp_path):
        store = ShardStore(tmp_path / "nothing")
        assert len(store) == 0
        assert "a" not in store
        assert list(store.keys()) == []
        assert store.schema == "nothing yet"
        assert store.metadata == {}
        with pytest.raises(StoreError, match="there is no dataset at"):
            list(store)
        with pytest.raises(StoreError, match="there is no dataset at"):
            IterableSource(store).collect()
        for use in (lambda: store.row(0), lambda: store.select([])):
            with pytest.raises(StoreError, match="there is no dataset at"):
                use()
        store.flush()
        assert not (tmp_path / "nothing").exists()

    def test_an_empty_stream_makes_an_empty_dataset(self, tmp_path):
        written = IterableSource([]).sink(ShardStore(tmp_path))
        assert (written.rows, written.shards, written.bytes) == (0, (), 0)
        assert list(ShardStore(tmp_path)) == []
        fill(ShardStore(tmp_path, mode="append"), [1])
        assert list(ShardStore(tmp_path)) == [1]


class TestLooking:
    def test_two_objects(self, tmp_path):
        writer, reader = ShardStore(tmp_path), ShardStore(tmp_path)
        assert len(reader) == 0
        writer.set(1)
        assert len(reader) == len(writer) == 0
        writer.flush()
        assert len(reader) == 1  # nobody has fixed what it sees: there was nothing
        fill(writer, [2])
        assert len(reader) == 1
        assert list(reader) == [1]
        reader.refresh()
        assert list(reader) == list(writer) == [1, 2]

    def test_an_iteration_goes_on_with_what_was_there(self, tmp_path):
        store = fill(ShardStore(tmp_path, shard_rows=2), range(6))
        iterator = iter(store)
        assert next(iterator) == 0
        fill(store, [6])
        assert list(iterator) == [1, 2, 3, 4, 5]
        assert len(store) == 7

    def test_a_reader_says_when_it_was_overwritten(self, tmp_path):
        fill(ShardStore(tmp_path, shard_rows=1), [1, 2])
        reader = ShardStore(tmp_path)
        assert len(reader) == 2
        fill(ShardStore(tmp_path, mode="overwrite"), [3])
        with pytest.raises(StoreError, match="was the dataset overwritten"):
            list(reader)
        reader.refresh()
        assert list(reader) == [3]

    def test_metadata(self, tmp_path):
        plain = {"labels": ["a", "ü"], "n": 1, "deep": {"x": None, "y": 1.5}}
        store = fill(ShardStore(tmp_path, metadata=plain), [1])
        assert store.metadata == ShardStore(tmp_path).metadata == plain
        store.metadata["labels"].append("c")
        assert store.metadata == plain
        fill(ShardStore(tmp_path, mode="append"), [2])
        assert ShardStore(tmp_path).metadata == plain
        fill(ShardStore(tmp_path, mode="append", metadata={"new": 1}), [3])
        assert ShardStore(tmp_path).metadata == {"new": 1}
        IterableSource([4]).sink(ShardStore(tmp_path, mode="overwrite"))
        assert ShardStore(tmp_path).metadata == {"new": 1}

    def test_schema_in_words(self, tmp_path):
        sample = {"x": np.zeros((2, 3), np.float32), "id": 1, "t": torch.zeros(2), "l": [("a", 1.5)], "n": None}
        store = fill(ShardStore(tmp_path), [sample, {**sample, "n": "text", "t": torch.zeros(3), "id": None}])
        assert store.schema == (
            "{x: array float32[2, 3], id: int or none, t: tensor float32[?], l: list of (tuple of (str, float)), "
            "n: str or none}"
        )

    def test_select_and_row(self, tmp_path):
        store = fill(ShardStore(tmp_path, shard_rows=3), range(10))
        for ids in ([9, 0, 0], (3,), range(10), np.array([1, 2], np.uint8), iter([5]), [], np.array([], int)):
            told = [5] if not hasattr(ids, "__len__") else list(ids)
            selection = store.select(ids)
            assert list(selection) == list(selection) == told
            assert len(selection) == len(told)
        assert [store.row(np.int64(3)), store.row(9)] == [3, 9]

    @pytest.mark.parametrize("row", [10, -1, 2**63 - 1, -(2**63)])
    def test_rows_that_are_not_there(self, tmp_path, row):
        store = fill(ShardStore(tmp_path), range(10))
        with pytest.raises(IndexError, match=f"row {row} is not in the dataset, which has 10 rows"):
            store.select([0, row])
        with pytest.raises(IndexError):
            store.row(row)

    @pytest.mark.parametrize("rows", [[1.5], ["a"], "ab", [True], [[1]], [None], [2**70], [1, "a"]])
    def test_what_is_no_row(self, tmp_path, rows):
        store = fill(ShardStore(tmp_path), range(10))
        with pytest.raises((TypeError, ValueError, IndexError)):
            store.select(rows)

    def test_rows_of_a_type_that_is_none(self, tmp_path):
        store = fill(ShardStore(tmp_path), range(10))
        for row in ("a", 1.0, True, None, [1]):
            with pytest.raises((TypeError, ValueError)):
                store.row(row)


class TestKeys:
    def test_given_and_made(self, tmp_path):
        store = ShardStore(tmp_path, shard_rows=3)
        keys = [store.set(n, key=None if n % 4 else f"given {n}") for n in range(10)]
        store.flush()
        for one in (store, ShardStore(tmp_path)):
            assert list(one.keys()) == keys
            assert len(one.keys()) == 10
            assert one.get_many(reversed(keys)) == list(range(10))[::-1]
            assert one.contains_many([keys[0], "x", keys[9], 3, None, f"{'0' * 20}:0", keys[1] + "0"]) == [
                *(True, False, True, False, False, False, False)
            ]
        with pytest.raises(SampleNotFoundError, match="no sample under 'x'"):
            store.get_many([keys[0], "x"])
        with pytest.raises(SampleNotFoundError):
            store.get(3)

    @pytest.mark.parametrize("key", ["", 3, b"a", "\ud800"])
    def test_wrong_keys(self, tmp_path, key):
        store = ShardStore(tmp_path)
        with pytest.raises(StoreError, match="key"):
            store.set(1, key=key)
        store.flush()
        assert len(store) == 0

    @pytest.mark.parametrize("flushed", ["no", "shard", "yes", "other store"])
    @pytest.mark.parametrize("given", [True, False])
    def test_nothing_is_replaced(self, tmp_path, flushed, given):
        store = ShardStore(tmp_path, mode="append", shard_rows=1 if flushed == "shard" else None)
        key = store.set(1, key="a" if given else None)
        if flushed in ("yes", "other store"):
            store.flush()
        if flushed == "other store":
            store = ShardStore(tmp_path, mode="append")
        with pytest.raises(StoreError, match="there is a sample under"):
            store.set(2, key=key)
        store.flush()
        assert store.get(key) == 1
        assert list(store.keys()) == [key]

    def test_a_key_that_another_store_has_committed_in_between(self, tmp_path):
        one, other = ShardStore(tmp_path, mode="append"), ShardStore(tmp_path, mode="append")
        for store in (one, other):
            store.set(1, key="a")
        one.flush()
        for _ in range(2):  # nothing is forgotten without an error
            with pytest.raises(StoreError, match="there is a sample under 'a'"):
                other.flush()
        assert list(ShardStore(tmp_path).keys()) == ["a"]
        with pytest.raises(ZeroDivisionError), other:
            raise ZeroDivisionError
        assert len(files_of(tmp_path)) == 2  # a manifest and a shard

    def test_overwritten_keys_are_free(self, tmp_path):
        fill(ShardStore(tmp_path), [0])
        store = ShardStore(tmp_path, mode="append")
        store.set(1, key="a")
        store.flush()
        new = ShardStore(tmp_path, mode="overwrite")
        new.set(2, key="a")
        new.flush()
        assert new.get("a") == 2

    def test_nothing_can_be_deleted(self, tmp_path):
        store = fill(ShardStore(tmp_path), [1])
        with pytest.raises((AttributeError, TypeError, StoreError)):
            del store[next(iter(store.keys()))]


class TestSchema:
    def test_within_a_shard(self, tmp_path):
        store = ShardStore(tmp_path)
        store.set({"a": 1})
        with pytest.raises(
            SchemaError, match=r"sample number 1: sample\['a'\] is float, it was int in the samples before"
        ) as caught:
            store.set({"a": 1.0})
        assert isinstance(caught.value, TypeError)
        store.set({"a": 2})  # what was refused has left nothing
        store.flush()
        assert list(store) == [{"a": 1}, {"a": 2}]

    def test_across_shards_that_were_set(self, tmp_path):
        store = ShardStore(tmp_path, shard_rows=1)
        store.set({"a": [1]})
        with pytest.raises(SchemaError, match=r"sample number 1: sample\['a'\]\[...\] is str, it was int"):
            store.set({"a": ["x"]})
        store.flush()

    @pytest.mark.parametrize("executor", [None, pytest.param("process", marks=pytest.mark.slow)])
    def test_across_shards_of_a_sink(self, tmp_path, executor):
        samples = [{"a": n} for n in range(10)] + [{"a": "x"}]
        store = ShardStore(tmp_path, shard_rows=2)
        with pytest.raises(SchemaError, match=r"samples from number 10 on\): sample\['a'\] is str, it was int"):
            IterableSource(samples).sink(store, executor=executor)
        assert len(ShardStore(tmp_path)) == 0
        assert files_of(tmp_path) == []

    def test_within_a_shard_of_a_sink(self, tmp_path):
        samples = [{"a": [n]} for n in range(10)] + [{"a": ["x"]}]
        with pytest.raises(SchemaError, match=r"sample number 10: sample\['a'\]\[...\] is str, it was int"):
            IterableSource(samples).sink(ShardStore(tmp_path))
        assert files_of(tmp_path) == []

    @pytest.mark.parametrize("by", ["set", "sink"])
    def test_on_append(self, tmp_path, by):
        fill(ShardStore(tmp_path), [{"a": 1, "b": (1, 2)}])
        before = files_of(tmp_path)
        store = ShardStore(tmp_path, mode="append")
        new = {"a": 1, "b": (1, 2.0)}
        with (
            pytest.raises(
                SchemaError, match=r"sample\['b'\]\[1\] is float, it was int in (other shards|the dataset that is there)"
            ),
            store,
        ):
            store.set(new) if by == "set" else IterableSource([new]).sink(store)
        assert list(ShardStore(tmp_path)) == [{"a": 1, "b": (1, 2)}]
        assert files_of(tmp_path) == before

    def test_shapes_and_none_may_vary_across_shards(self, tmp_path):
        samples = [{"x": None}, {"x": np.zeros(2)}, {"x": np.zeros((1, 2))}, {"x": np.zeros(0)}]
        store = fill(ShardStore(tmp_path, shard_rows=1), samples)
        assert [None if row["x"] is None else row["x"].shape for row in store] == [None, (2,), (1, 2), (0,)]
        assert store.schema == "{x: array float64[...] or none}"


class TestWriting:
    def test_shard_rows(self, tmp_path):
        store = fill(ShardStore(tmp_path, shard_rows=4), range(10))
        assert [shard.rows for shard in store.manifest.shards] == [4, 4, 2]
        written = IterableSource(range(10)).sink(ShardStore(tmp_path / "sink", shard_rows=4))
        assert len(written.shards) == 3

    def test_shard_bytes(self, tmp_path):
        samples = [np.zeros(1000, np.uint8)] * 50
        store = fill(ShardStore(tmp_path, shard_bytes="10KB"), samples)
        assert [shard.rows for shard in store.manifest.shards] == [10] * 5
        sunk = ShardStore(tmp_path / "sink", shard_bytes="10KB")
        IterableSource(samples).sink(sunk)
        assert all(abs(shard.rows - 10) <= 2 for shard in sunk.manifest.shards[:-1])
        assert len(sunk) == 50

    def test_context_manager(self, tmp_path):
        with ShardStore(tmp_path) as store:
            store.set(1)
        assert list(store) == [1]

    def test_an_error_in_the_context_drops_what_was_set(self, tmp_path):
        store = ShardStore(tmp_path, shard_rows=2)
        with pytest.raises(ZeroDivisionError), store:  # noqa: PT012
            store.set_many([1, 2, 3], ["a", "b", "c"])
            raise ZeroDivisionError
        assert len(store) == 0
        with store:
            store.set("x", key="a")
            store.set("y")
        assert list(store) == ["x", "y"]
        assert store.get("a") == "x"
        assert "b" not in store

    def test_what_can_not_be_written_leaves_the_store_usable(self, tmp_path):
        store = ShardStore(tmp_path)
        with pytest.raises(SampleEncodingError, match="sample number 0: the integer"):
            store.set(2**63, key="a")
        store.set(1, key="a")
        store.flush()
        assert store.get("a") == 1
        assert list(store) == [1]

    def test_what_is_never_flushed_warns(self, tmp_path):
        store = ShardStore(tmp_path, shard_rows=2)
        store.set_many(range(3))
        with pytest.warns(ResourceWarning, match="3 samples were set in ShardStore.* and never flushed"):  # noqa: PT031
            del store
            gc.collect()

    def test_a_store_that_was_never_made_does_not_complain(self, tmp_path):
        with pytest.raises(ValueError, match="mode"):
            ShardStore(tmp_path, mode="x")
        gc.collect()

    def test_unlisted_shards(self, tmp_path):
        store = fill(ShardStore(tmp_path, shard_rows=1), [1, 2])
        orphan = tmp_path / "shards" / f"{'a' * 20}.arrow"
        left = tmp_path / "shards" / f".{'b' * 20}.arrow.tmp"
        for path in (orphan, left):
            path.write_bytes(b"x")
        assert store.remove_unlisted() == []
        os.utime(orphan, (0, 0))
        assert ShardStore(tmp_path).remove_unlisted() == [orphan.name]
        assert store.remove_unlisted(0) == [left.name]
        assert sorted(store.remove_unlisted(-1)) == []
        assert list(ShardStore(tmp_path)) == [1, 2]
        assert ShardStore(tmp_path / "none").remove_unlisted() == []
        with pytest.raises(StoreError, match="local"):
            ShardStore("memory://nowhere").remove_unlisted()

    def test_threads(self, tmp_path):
        store = ShardStore(tmp_path, mode="append", shard_rows=7)
        seen = threading.Event()

        def write(part):
            keys = []
            for n in range(100):
                keys.append((store.set({"n": part * 100 + n}, key=f"{part}/{n}" if part % 2 else None), part * 100 + n))
                if n % 33 == 0:
                    store.flush()
            return keys

        def read():
            count = 0
            while not seen.is_set() or not count:
                store.refresh()
                for key in list(store.keys()):
                    assert store.get(key)["n"] >= 0
                count += 1

        with ThreadPoolExecutor(6) as pool:
            reading = [pool.submit(read) for _ in range(2)]
            keys = [pair for part in pool.map(write, range(4)) for pair in part]
            seen.set()
            for one in reading:
                one.result()
        store.flush()
        assert sorted(row["n"] for row in store) == list(range(400))
        assert len(store.keys()) == 400
        assert [row["n"] for row in store.get_many(key for key, _ in keys)] == [n for _, n in keys]

    def test_a_sample_is_never_that_of_another_key_while_others_overwrite(self, tmp_path):
        def fill_in(number):
            with ShardStore(tmp_path, mode="overwrite", shard_rows=3) as new:
                new.set_many(
                    [f"{number}/{n}" for n in range(10 - number % 5)],
                    [f"{n}" for n in range(10 - number % 5)][:: (-1) ** number],
                )

        fill_in(0)
        store, stop = ShardStore(tmp_path), threading.Event()

        def read():
            while not stop.is_set():
                store.refresh()
                for n in range(6):
                    try:
                        number, _, place = store.get(f"{n}").partition("/")
                    except StoreError:  # overwritten
                        continue
                    last = 9 - int(number) % 5
                    assert int(place) == (last - n if int(number) % 2 else n)

        with ThreadPoolExecutor(4) as pool:
            reading = [pool.submit(read) for _ in range(4)]
            for number in range(1, 40):
                fill_in(number)
            stop.set()
            for one in reading:
                one.result()

    def test_threads_read_one_store(self, tmp_path):
        store = fill(ShardStore(tmp_path, shard_rows=5), [{"n": n} for n in range(60)])
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: [row["n"] for row in store], range(30))) == [list(range(60))] * 30
            assert [row["n"] for row in pool.map(store.row, range(60))] == list(range(60))


def rows_of(store):
    return list(store)


def try_to_set(store):
    try:
        store.set(5)
    except StoreError as error:
        return str(error)
    return "no error"


def in_a_fork(function, *arguments, timeout=20):
    """What `function` gives in a forked child."""
    receiver, sender = multiprocessing.Pipe(False)
    child = multiprocessing.get_context("fork").Process(target=lambda: sender.send(function(*arguments)))
    child.start()
    try:
        assert receiver.poll(timeout), "the child hangs"
        return receiver.recv()
    finally:
        child.kill()
        child.join()


class TestProcesses:
    def test_pickled(self, tmp_path):
        store = fill(ShardStore(tmp_path, compression="lz4", metadata={"a": 1}), [1, 2])
        copy = pickle.loads(pickle.dumps(store))
        assert list(copy) == [1, 2]
        assert list(pickle.loads(pickle.dumps(store.keys()))) == list(store.keys())
        assert list(pickle.loads(pickle.dumps(store.select([1])))) == [2]
        assert "in another process" in try_to_set(copy)

    def test_pickled_with_samples_pending(self, tmp_path):
        store = ShardStore(tmp_path)
        store.set(1)
        copy = pickle.loads(pickle.dumps(store))
        del copy
        gc.collect()  # has nothing to lose
        store.flush()
        assert list(store) == [1]

    def test_forked(self, tmp_path):
        store = fill(ShardStore(tmp_path, shard_rows=2), range(9))
        list(store)
        assert in_a_fork(rows_of, store) == list(range(9))
        assert "in another process" in in_a_fork(try_to_set, store)
        store.set(9)
        assert "in another process" in in_a_fork(try_to_set, store)
        store.flush()
        assert len(store) == 10

    def test_a_fork_does_not_flush_what_its_parent_has_set(self, tmp_path):
        store = ShardStore(tmp_path)
        store.set(1)

        def flush():
            store.flush()
            with store:
                pass
            return len(store)

        assert in_a_fork(flush) == 0
        store.flush()
        assert list(ShardStore(tmp_path)) == [1]

    @pytest.mark.parametrize("what", [rows_of, try_to_set, len])
    def test_forked_while_a_thread_is_at_work(self, tmp_path, what):
        store = fill(ShardStore(tmp_path, shard_rows=2), range(9))
        store.row(3)
        with store._lock:  # as a thread does while others fork
            answer = []
            thread = threading.Thread(target=lambda: answer.append(in_a_fork(what, store, timeout=5)))
            thread.start()
            thread.join()
        assert answer, "the child hangs"

    def test_spawned(self, tmp_path):
        store = fill(ShardStore(tmp_path), range(9))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(rows_of, store).result() == list(range(9))
            assert "in another process" in pool.submit(try_to_set, store).result()

    @pytest.mark.slow
    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_data_loader(self, tmp_path, start):
        store = fill(ShardStore(tmp_path, shard_rows=10), [{"n": n, "x": np.full(3, n)} for n in range(101)])
        store = ShardStore(tmp_path, writable=True)  # of arrays that are read-only torch makes tensors with a warning
        list(store)
        stream = IterableSource(store).split_by_worker().batched(7, drop_last_if_not_full=False)
        loader = DataLoader(stream.to_torch_iterable(), batch_size=None, num_workers=2, multiprocessing_context=start)
        assert sorted(row["n"] for batch in loader for row in batch) == list(range(101))
        if start == "spawn":
            return
        ids = list(range(0, 101, 3))
        mapped = DataLoader(store.select(ids), batch_size=4, num_workers=2, multiprocessing_context=start, collate_fn=list)
        assert [row["n"] for batch in mapped for row in batch] == ids

    def test_set_in_a_worker_raises(self, tmp_path):
        store = ShardStore(tmp_path)
        loader = DataLoader(
            IterableSource(range(4)).map(store.set).split_by_worker().to_torch_iterable(), batch_size=None, num_workers=1
        )
        assert "in another process" in str(error_of(loader))


class TestSink:
    @pytest.mark.parametrize("executor", [None, "thread", pytest.param("process", marks=pytest.mark.slow), "pool"])
    @pytest.mark.parametrize("compression", [None, "zstd"])
    def test_in_order_with_right_figures(self, tmp_path, executor, compression):
        samples = [{"n": n, "x": np.full(5, n, np.int16)} for n in range(250)]
        store = ShardStore(tmp_path, shard_rows=20, compression=compression)
        if executor == "pool":
            with ProcessPoolExecutor(2) as pool:
                written = IterableSource(samples).sink(store, executor=pool)
        else:
            written = IterableSource(samples).sink(store, executor=executor, max_workers=2)
        assert [row["n"] for row in store] == list(range(250))
        assert all((row["x"] == row["n"]).all() for row in store)
        on_disk = {path.name: path.stat().st_size for path in (tmp_path / "shards").iterdir()}
        assert written.rows == len(store) == 250
        assert sorted(written.shards) == sorted(on_disk)
        assert written.bytes == sum(on_disk.values()) == sum(shard.size for shard in store.manifest.shards)
        assert written.shards == tuple(shard.name for shard in store.manifest.shards)

    def test_progress(self, tmp_path, capsys):
        IterableSource(range(1000)).sink(ShardStore(tmp_path, shard_rows=100), progress=True)
        assert "1.00k" in capsys.readouterr().err

    def test_a_stream_that_fails_leaves_nothing(self, tmp_path):
        def broken():
            yield from range(100)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            IterableSource(broken()).sink(ShardStore(tmp_path, shard_rows=10))
        assert len(ShardStore(tmp_path)) == 0
        deadline = time.monotonic() + 5
        while files_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert files_of(tmp_path) == []

    def test_a_sample_that_can_not_be_kept(self, tmp_path):
        with pytest.raises(SampleEncodingError, match=r"sample number 31: sample\['x'\] is a builtin"):
            IterableSource([{"x": 1}] * 31 + [{"x": len}]).sink(ShardStore(tmp_path, shard_rows=10))
        assert files_of(tmp_path) == []

    def test_resume_needs_a_sound_name(self, tmp_path):
        for name in ("", "../x", "a/b", ".hidden", "x" * 101, 3):
            with pytest.raises(ValueError, match="the name of a job"):
                IterableSource([1]).sink(ShardStore(tmp_path), resume=name)
        assert files_of(tmp_path) == []

    def test_resume_of_what_was_written_in_part(self, tmp_path):
        class StopError(Exception):
            pass

        made = []

        def numbers(stop):
            for n in range(100):
                if n == stop:
                    raise StopError
                made.append(n)
                yield {"n": n}

        with pytest.raises(StopError):
            IterableSource(lambda: numbers(55)).sink(ShardStore(tmp_path, shard_rows=10), resume="job", max_workers=1)
        before = set(files_of(tmp_path / "shards"))
        assert before
        assert len(ShardStore(tmp_path)) == 0
        store = ShardStore(tmp_path, shard_rows=10)
        written = IterableSource(lambda: numbers(None)).sink(store, resume="job")
        assert written.rows == 100
        assert [row["n"] for row in store] == list(range(100))
        assert before <= set(files_of(tmp_path / "shards"))
        assert set(files_of(tmp_path / "shards")) == set(written.shards)
        assert not [name for name in files_of(tmp_path) if name.startswith("writing")]
        with pytest.raises(DatasetExistsError, match="the job 'job' has been committed"):
            IterableSource(lambda: numbers(None)).sink(ShardStore(tmp_path, mode="append"), resume="job")

    def test_resume_with_a_stream_that_is_shorter(self, tmp_path):
        def numbers(count, stop=True):
            yield from range(count)
            if stop:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            IterableSource(lambda: numbers(50)).sink(ShardStore(tmp_path, shard_rows=10), resume="job")
        with pytest.raises(StoreError, match="items 10 to 19 of the stream are others"):
            IterableSource(lambda: numbers(15, stop=False)).sink(ShardStore(tmp_path, shard_rows=10), resume="job")

    def test_resume_does_not_trust_shards_that_are_gone(self, tmp_path):
        def numbers(stop):
            yield from range(50)
            if stop:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            IterableSource(lambda: numbers(True)).sink(ShardStore(tmp_path, shard_rows=10), resume="job")
        shards = sorted((tmp_path / "shards").iterdir())
        shards[0].unlink()
        shards[1].write_bytes(shards[1].read_bytes()[:-1])
        store = ShardStore(tmp_path, shard_rows=10)
        IterableSource(lambda: numbers(False)).sink(store, resume="job")
        assert list(store) == list(range(50))


RANKS = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from squirrel_torch import IterableSource, ShardingError, ShardStore, StoreError

rank = int(os.environ["RANK"])
dist.init_process_group("gloo")

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def numbers(stop=None):
    for n in range(101):
        if n == stop:
            raise ZeroDivisionError
        yield {"n": n}

def refused(name, stream):
    try:
        stream.sink(ShardStore(name, shard_rows=7))
    except Exception as error:
        say("refused", type(error).__name__, len(ShardStore(name)))
    dist.barrier()

def committed(mode, resume):
    folder = Path(f"{mode} {resume}")
    store = ShardStore(folder, shard_rows=7, mode=mode)
    for turn in range(2):
        written = IterableSource(numbers).split_by_rank().sink(store, resume=f"job{turn}" if resume else None)
        assert written.rows == (51 if rank == 0 else 50), written
        assert written.bytes == sum((folder / "shards" / name).stat().st_size for name in written.shards)
        assert len(store) == 101 * (turn + 1), (rank, turn, len(store))
        assert ShardStore(folder).manifest.number == turn + 1
        assert sorted(row["n"] for row in store) == sorted(list(range(101)) * (turn + 1))
        dist.barrier()
    assert not list(folder.glob("writing/**/*.json"))
    say("committed", mode, resume)
    dist.barrier()

if sys.argv[1] == "sink":
    for resume in (False, True):
        committed("append", resume)
    store = ShardStore("twice")
    IterableSource(numbers).split_by_rank().sink(store)
    try:
        IterableSource(numbers).split_by_rank().sink(store)
    except StoreError as error:
        say("refused", type(error).__name__, len(store))
    dist.barrier()
    refused("no split", IterableSource(numbers))
    refused("schema", IterableSource(numbers).split_by_rank().map(lambda s: {"n": s["n"] if rank else str(s["n"])}))
    dist.destroy_process_group()
else:
    try:
        IterableSource(lambda: numbers(60 if rank else None)).split_by_rank().sink(ShardStore("fails"))
    except Exception as error:
        say("failed", len(ShardStore("fails")))
    os._exit(0)
"""


class TestRanks:
    @pytest.mark.slow
    def test_ranks_commit_together_and_once(self, tmp_path):
        out = run_script(RANKS, tmp_path, "sink", torchrun=2, timeout=60)
        jobs = [f"committed append {resume}" for resume in (False, True)]
        said = [*jobs, "refused DatasetExistsError 101", "refused ShardingError 0", "refused SchemaError 0"]
        assert out.splitlines() == [line for line in said for _ in range(2)]

    @pytest.mark.slow
    def test_no_rank_waits_for_one_that_has_failed(self, tmp_path):
        assert run_script(RANKS, tmp_path, "fails", torchrun=2, timeout=60).splitlines() == ["failed 0"] * 2

    def test_without_a_process_group(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ShardingError, match="init_process_group"):
            IterableSource([1]).split_by_rank().sink(ShardStore(tmp_path))
        assert files_of(tmp_path) == []


@pytest.mark.parametrize("options", [{}, {"mode": "append", "shard_rows": 2, "compression": "zstd"}, {"writable": True}])
def test_it_keeps_the_contract(tmp_path_factory, options):
    check_store(lambda: ShardStore(tmp_path_factory.mktemp("store"), **options))


class TestReviewed:
    """What strangers have found."""

    @pytest.mark.parametrize("when", ["commit", "shard"])
    def test_what_could_not_be_written_can_be_flushed_again(self, tmp_path, monkeypatch, when):
        store = ShardStore(tmp_path, shard_rows=10)
        name = "squirrel_torch.storage.shards.store." + ("commit" if when == "commit" else "write_shard")
        for n in range(9):
            store.set(n)
        with monkeypatch.context() as patch:
            patch.setattr(name, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                store.set(9) if when == "shard" else store.flush()
        assert len(store) == 0
        store.set(9)
        store.flush()
        assert list(store) == list(range(10))

    def test_a_sink_forgets_no_keys(self, tmp_path):
        store = ShardStore(tmp_path, mode="append")
        store.set({"x": 1}, key="a")
        IterableSource([{"x": 9}]).sink(store)
        with pytest.raises(StoreError, match="under 'a'"):
            store.set({"x": 2}, key="a")
        store.flush()
        assert [row["x"] for row in store] == [9, 1]

    def test_a_second_sink_follows_the_mode(self, tmp_path):
        store = ShardStore(tmp_path / "create")
        IterableSource([1]).sink(store)
        with pytest.raises(DatasetExistsError):
            IterableSource([1]).sink(store)
        store = ShardStore(tmp_path / "overwrite", mode="overwrite")
        for n in range(2):
            IterableSource([n]).sink(store)
            assert list(store) == [n]

    @pytest.mark.parametrize("sample", [np.ma.masked_array([1, 2], [0, 1]), torch.zeros(1, device="meta"), object()])
    @pytest.mark.parametrize("by", ["set", "sink"])
    def test_set_and_sink_refuse_the_same(self, tmp_path, by, sample):
        store = ShardStore(tmp_path)
        with pytest.raises(SampleEncodingError):
            store.set({"x": sample}) if by == "set" else IterableSource([{"x": sample}]).sink(store)
        assert files_of(tmp_path) == []

    def test_a_buffer_may_be_used_again(self, tmp_path):
        buffer, tensor, nested = np.zeros(2), torch.zeros(2), [0]
        with ShardStore(tmp_path) as store:
            for n in range(3):
                buffer[:], tensor[:], nested[0] = n, n, n
                store.set({"b": buffer, "t": tensor, "n": {"l": nested}})
        assert [(row["b"][1], row["t"][1].item(), row["n"]["l"]) for row in store] == [(n, n, [n]) for n in range(3)]

    def test_the_workers_of_a_stream_see_one_dataset(self, tmp_path):
        fill(ShardStore(tmp_path), range(10))
        stream = IterableSource(ShardStore(tmp_path))
        fill(ShardStore(tmp_path, mode="append"), range(10, 20))
        assert stream.collect() == list(range(10))
        assert pickle.loads(pickle.dumps(stream)).collect() == list(range(10))

    def test_nothing_is_left_of_a_sink_that_fails(self, tmp_path):
        fill(ShardStore(tmp_path), [{"a": 1}])
        before = files_of(tmp_path)
        with pytest.raises(SchemaError, match="in the dataset that is there"):
            IterableSource([{"a": 1.5}] * 100).sink(ShardStore(tmp_path, mode="append", shard_rows=10))
        writing = ShardStore(tmp_path / "new")._writing(None)
        fill(ShardStore(tmp_path / "new"), [{"a": 1}])
        after = files_of(tmp_path / "new")
        for group in writing.groups(iter([{"a": 2}])):
            writing.receive(group.first, writing.write(group))
        with pytest.raises(DatasetExistsError):
            writing.commit()
        assert files_of(tmp_path / "new") == after
        assert [name for name in files_of(tmp_path) if not name.startswith("new/")] == before

    def test_nothing_is_left_of_shards_in_flight(self, tmp_path):
        def samples():
            for n in range(100):
                if n == 95:
                    raise ZeroDivisionError
                yield n

        with pytest.raises(ZeroDivisionError):
            IterableSource(samples).sink(ShardStore(tmp_path, shard_rows=1), max_workers=4)
        assert files_of(tmp_path) == []

    @pytest.mark.parametrize("arguments", [{"buffer": 0}, {"buffer": "x"}, {"max_workers": 0}, {"max_workers": 1.5}])
    def test_bad_arguments_of_sink(self, tmp_path, arguments):
        with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
            IterableSource([1]).sink(ShardStore(tmp_path), **arguments)

    def test_resume_with_another_stream(self, tmp_path):
        def numbers(first, stop):
            yield from range(first, first + 50)
            if stop:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            IterableSource(lambda: numbers(0, True)).sink(ShardStore(tmp_path, shard_rows=10), resume="job")
        with pytest.raises(StoreError, match="items 0 to 9 of the stream are others"):
            IterableSource(lambda: numbers(1000, False)).sink(ShardStore(tmp_path, shard_rows=10), resume="job")
        IterableSource(lambda: numbers(0, False)).sink(ShardStore(tmp_path, shard_rows=10), resume="job")
        assert list(ShardStore(tmp_path)) == list(range(50))
        assert not (tmp_path / "writing" / "job").exists()

    def test_a_tensor_holds_no_more_than_itself(self, tmp_path):
        store = fill(ShardStore(tmp_path), [{"t": torch.full((4,), float(n))} for n in range(1000)])
        row = next(iter(store))
        assert row["t"].untyped_storage().nbytes() == 16
        assert len(pickle.dumps(row)) < 1000

    def test_keys_are_not_looked_up_in_a_dataset_that_is_not_there(self, tmp_path, monkeypatch):
        store = ShardStore(tmp_path)
        store.set(0, key="first")
        monkeypatch.setattr(type(store), "_read", lambda _: 1 / 0)
        store.set(1, key="second")
        monkeypatch.undo()
        store.flush()
        assert list(store.keys()) == ["first", "second"]

    @pytest.mark.parametrize("url", ["", b"x", 3, "http://host/x?token=secret"])
    def test_wrong_urls(self, url):
        with pytest.raises(ValueError, match="url must") as caught:
            ShardStore(url)
        assert "secret" not in str(caught.value)

    def test_a_selection_stays_what_it_was(self, tmp_path):
        store = fill(ShardStore(tmp_path, mode="append"), range(3))
        selection = store.select([2, 0])
        fill(store, range(3, 6))
        store.refresh()
        assert list(selection) == [2, 0] == [selection[0], selection[-1]]
        for index in (2, -3):
            with pytest.raises(IndexError, match="selection of 2"):
                selection[index]
