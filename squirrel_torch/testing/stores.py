"""Whether a store keeps the promises that all stores make."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any, Final

import numpy as np
import torch

from squirrel_torch.errors import SampleEncodingError, SampleNotFoundError, StoreError
from squirrel_torch.sharding import Shard
from squirrel_torch.storage import Keys, Store
from squirrel_torch.testing.promises import promised, require, require_error, require_same

__all__ = ["check_store"]

_THREADS: Final = 4
_SETS_PER_THREAD: Final = 5
_NO_KEYS: Final = ("", 3, b"x")
_NOT_THERE: Final = ("nothing", "", 3, None, b"x", ("a",), ["a"])
_HOSTILE: Final = (
    "../x", "..", ".", "/etc/x", "a/../../b", "a/b", "a//b", "a\\b", "C:\\x", "~", "~/x", ".hidden", "a\nb", "a\r\n", "a\x00b",
    "\x1b[31m", " ", "a%2Fb", "%", "%00", "a?b#c", "*", "a:0", "é", "e\u0301", "\u202e", "😀", "\ud800", "key" * 100,
)  # fmt: skip


def check_store(make_store: Callable[[], Store], samples: Sequence[Any] | None = None) -> None:
    """Try whether a store keeps the promises that all stores make.

    * `set` returns the key: the one that it was given, or a new one that no other call gets, in whatever thread.
    * After `flush`, `get` gives an equal sample of the same types, and goes on to when others are set.
    * Methods for many samples do what those for one do.
    * `keys()` is sized, and as often iterable as one likes; iteration gives the samples in the order of the keys, and
      the parts of several readers are those samples, each once.
    * A key that is not there is a `SampleNotFoundError`, whatever it is; one that can't be one is a `StoreError` in `set`.
    * A sample that can't be kept is a `SampleEncodingError`, and nothing of it stays.
    * Keys that look like paths, or hold odd characters, are just keys, or a `StoreError`.
    * A sample under a key that is there already is replaced, or it is a `StoreError` and the old one stays.
    * If the store has `__delitem__`, a sample that was removed is gone.
    * If the store is `shared`, a pickled copy has the same samples.

    Args:
        make_store: Makes an empty store; it is called several times, and each store is independent of those before.
        samples: What to keep: at least two, all different. By default dicts of numbers, text, bytes, arrays, tensors, lists
            and dicts, all with the same fields.

    Raises:
        AssertionError: With the promise that is not kept.
        ValueError: If there are less than two samples.

    Example:
        >>> from squirrel_torch import MemoryStore
        >>> check_store(MemoryStore)
    """
    samples = _default_samples() if samples is None else list(samples)
    if len(samples) < 2:
        raise ValueError(f"samples must be at least two, got {len(samples)}")
    for check in _CHECKS:
        check(lambda: _empty(make_store), samples)


def _default_samples() -> list[Any]:
    """Samples of one schema: a store may ask for that."""
    values = zip(
        [0, -1, 2**53 + 1, -(2**63), 7],
        [0.5, -0.0, float("nan"), float("inf"), 1e-300],
        ["plain", "", "é😀\x00\n", "x" * 1000, "../x"],
        [b"x", b"", b"\x00\xff", b"y" * 1000, b"{}"],
        [["a"], ["a", "", "b"], [], ["c"], ["d", "e"]],
        [3, None, -5, 8, None],
        strict=True,
    )
    return [
        {
            "int": number,
            "float": real,
            "bool": index % 2 == 0,
            "text": text,
            "bytes": data,
            "fixed": np.arange(6, dtype=np.float32).reshape(2, 3) * index,
            "varying": np.arange(index * 3, dtype=np.int64).reshape(index, 3),
            "tensor": torch.full((3,), index, dtype=torch.float32),
            "half": torch.full((2, index), index, dtype=torch.bfloat16),
            "nested": {"source": f"camera {index}", "deep": {"score": index / 3}},
            "list": items,
            "maybe": maybe,
        }
        for index, (number, real, text, data, items, maybe) in enumerate(values)
    ]


# -- how a promise is checked -----------------------------------------------------------------------------------------


def _empty(make_store: Callable[[], Store]) -> Store:
    with promised("make_store must give a store"):
        store = make_store()
    require(isinstance(store, Store), f"make_store must give a store, a subclass of squirrel_torch.Store, got {store!r}")
    with promised("a store that is empty has a len"):
        require(len(store) == 0, f"make_store must give an empty store, got {store!r} with {len(store)} samples")
    return store


def _filled(make: Callable[[], Store], samples: list[Any]) -> tuple[Store, list[str]]:
    """A store with all samples under keys "sample 0", "sample 1" and so on."""
    store = make()
    keys = [f"sample {index}" for index in range(len(samples))]
    with promised("set keeps a sample under the key that it is given, and flush makes it readable"):
        for key, sample in zip(keys, samples, strict=True):
            store.set(sample, key)
        store.flush()
    return store, keys


def _require_holds(store: Store, expected: dict[str, Any], promise: str) -> None:
    """Raise unless the store has these samples, and no others."""
    with promised(promise):
        keys = list(store.keys())
        require(
            sorted(keys) == sorted(expected) and len(store) == len(expected),
            f"{promise}: it has {len(store)} samples with the keys {keys}, and {list(expected)} were set",
        )
        for key, sample in expected.items():
            require(key in store, f"{promise}: {key!r} is not in it")
            require_same(store.get(key), sample, promise)


# -- the promises -----------------------------------------------------------------------------------------------------


def _check_keys_of_set(make: Callable[[], Store], samples: list[Any]) -> None:
    _check_key_of_set(make(), samples[0], "given")
    other = _check_key_of_set(make(), samples[0], None)
    promise = "set makes keys that it has not made before"
    store = make()
    with promised(promise):
        keys = [store.set(sample) for sample in samples]
        require(len({*keys, other}) == len(keys) + 1, f"{promise}, in no store: it made {[other, *keys]}")
        store.flush()
    _require_holds(store, dict(zip(keys, samples, strict=True)), promise)


def _check_key_of_set(store: Store, sample: Any, key: str | None) -> str:
    promise = "set makes a new key" if key is None else "set returns the key that it was given"
    with promised(promise):
        returned = store.set(sample, key)
        require(isinstance(returned, str) and bool(returned), f"{promise}, a text: it returned {returned!r}")
        require(key is None or returned == key, f"{promise}: it returned {returned!r} for {key!r}")
        store.flush()
    _require_holds(store, {returned: sample}, f"{promise}, and get gives the sample")
    return returned


def _check_threads(make: Callable[[], Store], samples: list[Any]) -> None:
    store = make()
    many = list(islice(cycle(samples), _THREADS * _SETS_PER_THREAD))
    given = [f"given {index}" for index in range(len(many))]
    promise = "set may be called from several threads at once"
    with promised(promise), ThreadPoolExecutor(_THREADS) as pool:
        new = list(pool.map(store.set, many))
        returned = list(pool.map(store.set, many, given))
        store.flush()
        require(returned == given, f"{promise}: it returned {returned} for {given}")
        require(len(set(new)) == len(new), f"{promise}: it made the same keys, {new}")
    expected = dict(zip(new + given, many + many, strict=True))
    _require_holds(store, expected, promise)
    promise = "get may be called from several threads at once"
    with promised(promise), ThreadPoolExecutor(_THREADS) as pool:
        for sample, back in zip(expected.values(), pool.map(store.get, expected), strict=True):
            require_same(back, sample, promise)


def _check_many(make: Callable[[], Store], samples: list[Any]) -> None:
    store = make()
    keys = [f"sample {index}" for index in range(len(samples))]
    with promised("set_many keeps samples under the keys that it is given, and returns them"):
        returned = store.set_many(iter(samples), iter(keys))
        require(returned == keys, f"set_many must return the keys {keys}, got {returned!r}")
        new = store.set_many(iter(samples))
        require(
            isinstance(new, list) and len({*new, *keys}) == 2 * len(keys), f"set_many must make a new key for each, got {new!r}"
        )
        store.flush()
    _require_holds(store, dict(zip(keys + new, samples + samples, strict=True)), "set_many keeps each sample under its key")
    with promised("get_many gives the samples in the order of the keys"):
        back = store.get_many(iter(keys[::-1]))
        require_same(back, samples[::-1], "get_many gives the samples in the order of the keys")
        there = store.contains_many(iter([*keys, *_NOT_THERE]))
        require(
            there == [True] * len(keys) + [False] * len(_NOT_THERE),
            f"contains_many says of each key whether it is there, whatever it is: it gave {there!r}",
        )
    require_error(SampleNotFoundError, "get_many of a key that is not there", lambda: store.get_many([keys[0], "nothing"]))
    _check_uneven(make(), samples)


def _check_uneven(store: Store, samples: list[Any]) -> None:
    promise = "set_many needs a key for each sample"
    require_error(ValueError, promise, lambda: store.set_many(samples[:2], ["only one"]))
    require_error(ValueError, promise, lambda: store.set_many(samples[:1], ["one", "two"]))
    with promised("flush works after an error"):
        store.flush()


def _check_reading(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples)
    _require_holds(store, dict(zip(keys, samples, strict=True)), "get gives what was set, with equal types")
    _check_keys(store)
    promise = "iteration gives the samples in the order of keys(), as often as one likes"
    with promised(promise):
        ordered = store.get_many(store.keys())
        require_same(list(store), ordered, promise)
        require_same(list(store), ordered, promise)
        for count in (2, 3, len(samples) + 1):
            for shard in (Shard(index, count) for index in range(count)):
                part = list(store._part(shard))
                require_same(part, list(shard.of(ordered)), f"a part of the store is every count-th of its samples, {shard}")
        repr(store)


def _check_keys(store: Store) -> None:
    view = store.keys()
    require(isinstance(view, Keys), f"keys() must be the view that Store gives, got a {type(view).__name__}")
    with promised("keys() is sized, and as often iterable as one likes"):
        first, second = list(view), list(view)
        require(first == second, f"keys() must be iterable again: it gave {first} and then {second}")
        require(len(view) == len(first) == len(store), f"keys() has {len(view)} keys and gives {len(first)} of {len(store)}")
        require(all(isinstance(key, str) and key in view for key in first), "keys() gives keys that are in it, as text")
        require("nothing" not in view and 3 not in view, "keys() holds only what is there")


def _check_keys_while_writing(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples)
    promise = "an iteration of keys() gives those that were there when it started"
    with promised(promise):
        iterator = iter(store.keys())
        given = [next(iterator)]
        for index in range(3):
            store.set(samples[0], f"later {index}")
        store.flush()
        given += islice(iterator, len(keys) + 10)  # bounded: it might follow the writer
        require(sorted(given) == sorted(keys), f"{promise}: it gave {given}")


def _check_missing(make: Callable[[], Store], samples: list[Any]) -> None:
    empty = make()
    require_error(SampleNotFoundError, "get from an empty store", lambda: empty.get("nothing"))
    store, _ = _filled(make, samples)
    for key in _NOT_THERE:
        promise = f"a key that is not there, {key!r}"
        require_error(SampleNotFoundError, f"get of {promise}", lambda key=key: store.get(key))  # type: ignore[misc]
        with promised(f"{promise}, is not in the store"):
            require(key not in store, f"{promise}, must not be in the store")
        if hasattr(store, "__delitem__"):
            require_error(SampleNotFoundError, f"del of {promise}", lambda key=key: store.__delitem__(key))  # type: ignore[misc]


def _check_bad_keys(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples)
    for key in _NO_KEYS:
        require_error(StoreError, f"set with {key!r} as a key", lambda key=key: store.set(samples[0], key))  # type: ignore[misc]
    with promised("flush works after an error"):
        store.flush()
    _require_holds(store, dict(zip(keys, samples, strict=True)), "a key that can't be one leaves nothing behind")


def _check_bad_samples(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples[:1])
    for name, sample in _bad_samples(samples[0]):
        promise = f"set of a sample that can't be kept, {name}"
        require_error(SampleEncodingError, promise, lambda sample=sample: store.set(sample, "bad"))  # type: ignore[misc]
        require_error(SampleEncodingError, promise, lambda sample=sample: store.set(sample))  # type: ignore[misc]
    with promised("set works after an error"):
        store.set(samples[1], "after")
        store.flush()
    expected = {keys[0]: samples[0], "after": samples[1]}
    _require_holds(store, expected, "a sample that can't be kept leaves nothing behind")


def _bad_samples(sample: Any) -> list[tuple[str, Any]]:
    circle: list[Any] = []
    circle.append(circle)
    bad = [
        ("an object", object()),
        ("an array of objects", np.array([None])),
        ("a dict with a number as a key", {1: 2}),
        ("a sparse tensor", torch.eye(2).to_sparse()),
        ("a list that holds itself", circle),
    ]
    if isinstance(sample, dict):
        bad += [(f"a dict with {name}", {**sample, next(iter(sample)): inside}) for name, inside in bad]
    return bad


def _check_hostile_keys(make: Callable[[], Store], samples: list[Any]) -> None:
    store = make()
    expected: dict[str, Any] = {}
    for key, sample in zip(_HOSTILE, cycle(samples), strict=False):
        with promised(f"the key {key[:50]!r} is kept like any other, or a StoreError"):
            try:
                returned = store.set(sample, key)
            except StoreError:
                continue
            require(returned == key, f"the key {key!r} is kept as it is: set returned {returned!r}")
            expected[key] = sample
    with promised("flush works after an error"):
        store.flush()
    _require_holds(store, expected, "keys that look like paths, or hold odd characters, are kept like any others")
    with promised("a key that was refused is not in the store"):
        refused = [key for key in _HOSTILE if key not in expected and key in store]
        require(not refused, f"a key that was refused is not in the store: {refused}")


def _check_replacing(make: Callable[[], Store], samples: list[Any]) -> None:
    for flushed in (True, False):
        store = make()
        kept = samples[0]
        with promised("a sample is replaced, or set raises a StoreError"):
            store.set(kept, "again")
            if flushed:
                store.flush()
            try:
                returned = store.set(samples[1], "again")
                require(returned == "again", f"set returns the key that it was given: it returned {returned!r}")
                kept = samples[1]
            except StoreError:
                pass
            store.flush()
        promise = "a sample is replaced, or set raises a StoreError and the old one stays"
        _require_holds(store, {"again": kept}, promise)


def _check_removing(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples)
    if not hasattr(store, "__delitem__"):
        return
    promise = "del removes a sample, and no other"
    with promised(promise):
        store.__delitem__(keys[0])
        store.flush()
    require(keys[0] not in store, f"{promise}: {keys[0]!r} is still there")
    require_error(SampleNotFoundError, "get of a sample that was removed", lambda: store.get(keys[0]))
    require_error(SampleNotFoundError, "del of a sample that was removed", lambda: store.__delitem__(keys[0]))
    _require_holds(store, dict(zip(keys[1:], samples[1:], strict=True)), promise)


def _check_copy(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples)
    require(isinstance(store.shared, bool), f"shared must be True or False, got {store.shared!r}")
    if not store.shared:
        return
    promise = "a pickled copy of a store that is shared has the same samples"
    with promised(promise):
        copy = pickle.loads(pickle.dumps(store))  # noqa: S301  # bytes of our own, made in this call
    _require_holds(copy, dict(zip(keys, samples, strict=True)), promise)
    _require_holds(store, dict(zip(keys, samples, strict=True)), "pickling leaves a store as it is")


def _check_lasting(make: Callable[[], Store], samples: list[Any]) -> None:
    store = make()
    promise = "what get has given does not change when others are set"
    with promised(promise):
        store.set(samples[0], "first")
        store.flush()
        given = store.get("first")
        for index, sample in enumerate(samples):
            store.set(sample, f"later {index}")
        store.flush()
        store.get("later 1")
    require_same(given, samples[0], promise)


_CHECKS: Final = (
    _check_keys_of_set,
    _check_reading,
    _check_many,
    _check_threads,
    _check_keys_while_writing,
    _check_missing,
    _check_bad_keys,
    _check_bad_samples,
    _check_hostile_keys,
    _check_replacing,
    _check_removing,
    _check_copy,
    _check_lasting,
)
