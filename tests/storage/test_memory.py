"""MemoryStore, and what samples may be made of."""

import os
import pickle
import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from squirrel_torch import IterableSource, MemoryStore, SampleEncodingError, SampleNotFoundError, StoreError, Written


def new_keys(count):
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    store = MemoryStore()
    return [store.set(number) for number in range(count)]


class TestMemoryStore:
    def test_set_get_delete(self):
        store = MemoryStore()
        sample = {"image": np.zeros(3)}
        key = store.set(sample)
        assert store.get(key) is sample
        assert key in store
        assert len(store) == 1
        del store[key]
        assert key not in store
        assert len(store) == 0

    def test_given_keys_replace(self):
        store = MemoryStore()
        assert store.set(1, key="a") == store.set(2, key="a") == "a"
        assert store.get("a") == 2

    def test_keys_are_a_view(self):
        store = MemoryStore()
        keys = store.keys()
        store.set(1, key="a")
        assert list(keys) == list(keys) == ["a"]
        assert len(keys) == 1
        assert "a" in keys
        for key in keys:
            store.set(2, key=key + "b")  # does not disturb the iteration
        assert len(keys) == 2

    def test_keys_can_be_pickled(self):
        store = MemoryStore()
        store.set(1, key="a")
        assert list(pickle.loads(pickle.dumps(store.keys()))) == ["a"]

    def test_stores_share_nothing(self):
        store, other = MemoryStore(), MemoryStore()
        store.set(1)
        assert len(other) == 0

    def test_new_keys_never_meet_whatever_the_seeds_are(self):
        with ProcessPoolExecutor(2) as pool:
            keys = [key for part in pool.map(new_keys, [200] * 4) for key in part] + new_keys(200)
        assert len(set(keys)) == 1000

    def test_many_threads(self):
        store = MemoryStore()
        with ThreadPoolExecutor(8) as pool:
            keys = list(pool.map(store.set, range(2000)))
        assert sorted(map(store.get, keys)) == list(range(2000))

    @pytest.mark.parametrize("key", ["nothing", 3, None, ["list"]])
    def test_what_is_not_there(self, key):
        store = MemoryStore()
        with pytest.raises(SampleNotFoundError, match="no sample under") as caught:
            store.get(key)
        assert isinstance(caught.value, KeyError)
        assert str(caught.value).startswith("no sample")
        with pytest.raises(SampleNotFoundError):
            del store[key]
        assert key not in store

    @pytest.mark.parametrize("key", ["", 3, b"bytes"])
    def test_wrong_keys(self, key):
        with pytest.raises(StoreError, match="a key must be a text"):
            MemoryStore().set(1, key=key)


class TestSamples:
    def test_what_can_be_kept(self):
        sample = {
            "none": None,
            "numbers": [True, 1, 1.5, 1j, np.float32(1), np.int64(2), np.str_("x")],
            "text": ("a", b"b", bytearray(b"c")),
            "arrays": {"numpy": np.zeros((2, 0)), "torch": torch.zeros(2, dtype=torch.bfloat16)},
            "time": np.datetime64("2020-01-01"),
        }
        MemoryStore().set(sample)

    @pytest.mark.parametrize(
        ("sample", "message"),
        [
            ({"meta": {"fn": [1, print]}}, r"sample\['meta'\]\['fn'\]\[1\] is a builtin_function_or_method"),
            ({"x": {1: 2}}, r"sample\['x'\] is a dict with the key 1 \(int\)"),
            ([np.array([None])], r"sample\[0\] is a numpy array of dtype object"),
            ({"x": {1, 2}}, r"sample\['x'\] is a set"),
            (object(), "sample is a object"),
        ],
    )
    def test_what_can_not(self, sample, message):
        store = MemoryStore()
        with pytest.raises(SampleEncodingError, match=message) as caught:
            store.set(sample)
        assert isinstance(caught.value, TypeError)
        assert len(store) == 0

    def test_a_container_that_holds_itself(self):
        sample = []
        sample.append(sample)
        with pytest.raises(SampleEncodingError, match="nested more than 64 deep"):
            MemoryStore().set(sample)


class TestSinkAndPrefetch:
    def test_sink_writes_at_once_and_says_how_many(self):
        store = MemoryStore()
        assert IterableSource(range(250)).sink(store) == Written(rows=250)
        assert sorted(IterableSource(store).collect()) == list(range(250))

    def test_a_sample_that_can_not_be_kept_names_place_and_item(self):
        with pytest.raises(SampleEncodingError, match=r"sample\['f'\] is a builtin") as caught:
            IterableSource([{"f": 1}, {"f": len}]).sink(MemoryStore())
        assert "on item 1" in caught.value.__notes__[0]

    def test_prefetch_keeps_the_order(self):
        store = MemoryStore()
        keys = [store.set(number) for number in range(100)]
        assert IterableSource(keys).prefetch(store, buffer=7, max_workers=3).collect() == list(range(100))

    def test_a_key_that_is_missing(self):
        with pytest.raises(SampleNotFoundError, match="'x'"):
            IterableSource(["x"]).prefetch(MemoryStore()).collect()

    @pytest.mark.parametrize("store", [None, {}, os])
    def test_what_is_no_store(self, store):
        with pytest.raises(TypeError, match="needs a store"):
            IterableSource([1]).sink(store)
        with pytest.raises(TypeError, match="needs a store"):
            IterableSource(["a"]).prefetch(store)
