"""Whether a store keeps the promises that all stores make."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any, Final

import numpy as np
import torch

from squirrel_torch.describe import describe_item
from squirrel_torch.errors import SampleEncodingError, SampleNotFoundError, StoreError
from squirrel_torch.sharding import Shard
from squirrel_torch.storage import Keys, Store

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


@contextmanager
def _promise(promise: str) -> Iterator[None]:
    """What is raised inside, that was not foreseen, breaks the promise."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{promise}: {type(error).__name__} was raised: {error}") from error


def _require(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(promise)


def _require_error(kind: type[Exception], promise: str, action: Callable[[], Any]) -> None:
    try:
        result = action()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{promise}: it must be a {kind.__name__}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{promise}: it must be a {kind.__name__}, and was none: it gave {describe_item(result)}")


def _require_same(given: Any, expected: Any, promise: str) -> None:
    difference = _difference(given, expected, "sample")
    _require(difference is None, f"{promise}: {difference}")


def _difference(given: Any, expected: Any, place: str) -> str | None:
    """Where two values differ in type, dtype, shape or value, in words; None if they don't."""
    if type(given) is not type(expected):
        return f"{place} is a {type(given).__name__}, and a {type(expected).__name__} was set"
    if isinstance(expected, np.ndarray | np.generic | torch.Tensor):
        return _array_difference(given, expected, place)
    if isinstance(expected, dict):
        if given.keys() != expected.keys():
            return f"{place} has the keys {list(given)}, and {list(expected)} were set"
        pairs = [(given[key], expected[key], f"{place}[{key!r}]") for key in expected]
    elif isinstance(expected, list | tuple):
        if len(given) != len(expected):
            return f"{place} has {len(given)} items, and {len(expected)} were set"
        pairs = [(*pair, f"{place}[{index}]") for index, pair in enumerate(zip(given, expected, strict=True))]
    else:
        # As text: nan is not itself, and zero has a sign.
        same = repr(given) == repr(expected) if isinstance(expected, float | complex) else given == expected
        return None if same else f"{place} is {given!r}, and {expected!r} was set"
    return next((found for pair in pairs if (found := _difference(*pair)) is not None), None)


def _array_difference(given: Any, expected: Any, place: str) -> str | None:
    (dtype, shape), (dtype_set, shape_set) = ((array.dtype, tuple(array.shape)) for array in (given, expected))
    if dtype != dtype_set or shape != shape_set:
        return f"{place} has dtype {dtype}, shape {shape}, and {dtype_set}, {shape_set} was set"
    if isinstance(expected, torch.Tensor):
        given, expected = (
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in (given, expected)
        )
    return None if given.tobytes() == expected.tobytes() else f"{place} has other values than those that were set"


def _empty(make_store: Callable[[], Store]) -> Store:
    with _promise("make_store must give a store"):
        store = make_store()
    _require(isinstance(store, Store), f"make_store must give a store, a subclass of squirrel_torch.Store, got {store!r}")
    with _promise("a store that is empty has a len"):
        _require(len(store) == 0, f"make_store must give an empty store, got {store!r} with {len(store)} samples")
    return store


def _filled(make: Callable[[], Store], samples: list[Any]) -> tuple[Store, list[str]]:
    """A store with all samples under keys "sample 0", "sample 1" and so on."""
    store = make()
    keys = [f"sample {index}" for index in range(len(samples))]
    with _promise("set keeps a sample under the key that it is given, and flush makes it readable"):
        for key, sample in zip(keys, samples, strict=True):
            store.set(sample, key)
        store.flush()
    return store, keys


def _require_holds(store: Store, expected: dict[str, Any], promise: str) -> None:
    """Raise unless the store has these samples, and no others."""
    with _promise(promise):
        keys = list(store.keys())
        _require(
            sorted(keys) == sorted(expected) and len(store) == len(expected),
            f"{promise}: it has {len(store)} samples with the keys {keys}, and {list(expected)} were set",
        )
        for key, sample in expected.items():
            _require(key in store, f"{promise}: {key!r} is not in it")
            _require_same(store.get(key), sample, promise)


# -- the promises -----------------------------------------------------------------------------------------------------


def _check_keys_of_set(make: Callable[[], Store], samples: list[Any]) -> None:
    _check_key_of_set(make(), samples[0], "given")
    other = _check_key_of_set(make(), samples[0], None)
    promise = "set makes keys that it has not made before"
    store = make()
    with _promise(promise):
        keys = [store.set(sample) for sample in samples]
        _require(len({*keys, other}) == len(keys) + 1, f"{promise}, in no store: it made {[other, *keys]}")
        store.flush()
    _require_holds(store, dict(zip(keys, samples, strict=True)), promise)


def _check_key_of_set(store: Store, sample: Any, key: str | None) -> str:
    promise = "set makes a new key" if key is None else "set returns the key that it was given"
    with _promise(promise):
        returned = store.set(sample, key)
        _require(isinstance(returned, str) and bool(returned), f"{promise}, a text: it returned {returned!r}")
        _require(key is None or returned == key, f"{promise}: it returned {returned!r} for {key!r}")
        store.flush()
    _require_holds(store, {returned: sample}, f"{promise}, and get gives the sample")
    return returned


def _check_threads(make: Callable[[], Store], samples: list[Any]) -> None:
    store = make()
    many = list(islice(cycle(samples), _THREADS * _SETS_PER_THREAD))
    given = [f"given {index}" for index in range(len(many))]
    promise = "set may be called from several threads at once"
    with _promise(promise), ThreadPoolExecutor(_THREADS) as pool:
        new = list(pool.map(store.set, many))
        returned = list(pool.map(store.set, many, given))
        store.flush()
        _require(returned == given, f"{promise}: it returned {returned} for {given}")
        _require(len(set(new)) == len(new), f"{promise}: it made the same keys, {new}")
    expected = dict(zip(new + given, many + many, strict=True))
    _require_holds(store, expected, promise)
    promise = "get may be called from several threads at once"
    with _promise(promise), ThreadPoolExecutor(_THREADS) as pool:
        for sample, back in zip(expected.values(), pool.map(store.get, expected), strict=True):
            _require_same(back, sample, promise)


def _check_many(make: Callable[[], Store], samples: list[Any]) -> None:
    store = make()
    keys = [f"sample {index}" for index in range(len(samples))]
    with _promise("set_many keeps samples under the keys that it is given, and returns them"):
        returned = store.set_many(iter(samples), iter(keys))
        _require(returned == keys, f"set_many must return the keys {keys}, got {returned!r}")
        new = store.set_many(iter(samples))
        _require(
            isinstance(new, list) and len({*new, *keys}) == 2 * len(keys), f"set_many must make a new key for each, got {new!r}"
        )
        store.flush()
    _require_holds(store, dict(zip(keys + new, samples + samples, strict=True)), "set_many keeps each sample under its key")
    with _promise("get_many gives the samples in the order of the keys"):
        back = store.get_many(iter(keys[::-1]))
        _require_same(back, samples[::-1], "get_many gives the samples in the order of the keys")
        there = store.contains_many(iter([*keys, *_NOT_THERE]))
        _require(
            there == [True] * len(keys) + [False] * len(_NOT_THERE),
            f"contains_many says of each key whether it is there, whatever it is: it gave {there!r}",
        )
    _require_error(SampleNotFoundError, "get_many of a key that is not there", lambda: store.get_many([keys[0], "nothing"]))
    _check_uneven(make(), samples)


def _check_uneven(store: Store, samples: list[Any]) -> None:
    promise = "set_many needs a key for each sample"
    _require_error(ValueError, promise, lambda: store.set_many(samples[:2], ["only one"]))
    _require_error(ValueError, promise, lambda: store.set_many(samples[:1], ["one", "two"]))
    with _promise("flush works after an error"):
        store.flush()


def _check_reading(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples)
    _require_holds(store, dict(zip(keys, samples, strict=True)), "get gives what was set, with equal types")
    _check_keys(store)
    promise = "iteration gives the samples in the order of keys(), as often as one likes"
    with _promise(promise):
        ordered = store.get_many(store.keys())
        _require_same(list(store), ordered, promise)
        _require_same(list(store), ordered, promise)
        for count in (2, 3, len(samples) + 1):
            for shard in (Shard(index, count) for index in range(count)):
                part = list(store._part(shard))
                _require_same(part, list(shard.of(ordered)), f"a part of the store is every count-th of its samples, {shard}")
        repr(store)


def _check_keys(store: Store) -> None:
    view = store.keys()
    _require(isinstance(view, Keys), f"keys() must be the view that Store gives, got a {type(view).__name__}")
    with _promise("keys() is sized, and as often iterable as one likes"):
        first, second = list(view), list(view)
        _require(first == second, f"keys() must be iterable again: it gave {first} and then {second}")
        _require(len(view) == len(first) == len(store), f"keys() has {len(view)} keys and gives {len(first)} of {len(store)}")
        _require(all(isinstance(key, str) and key in view for key in first), "keys() gives keys that are in it, as text")
        _require("nothing" not in view and 3 not in view, "keys() holds only what is there")


def _check_keys_while_writing(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples)
    promise = "an iteration of keys() gives those that were there when it started"
    with _promise(promise):
        iterator = iter(store.keys())
        given = [next(iterator)]
        for index in range(3):
            store.set(samples[0], f"later {index}")
        store.flush()
        given += islice(iterator, len(keys) + 10)  # bounded: it might follow the writer
        _require(sorted(given) == sorted(keys), f"{promise}: it gave {given}")


def _check_missing(make: Callable[[], Store], samples: list[Any]) -> None:
    empty = make()
    _require_error(SampleNotFoundError, "get from an empty store", lambda: empty.get("nothing"))
    store, _ = _filled(make, samples)
    for key in _NOT_THERE:
        promise = f"a key that is not there, {key!r}"
        _require_error(SampleNotFoundError, f"get of {promise}", lambda key=key: store.get(key))  # type: ignore[misc]
        with _promise(f"{promise}, is not in the store"):
            _require(key not in store, f"{promise}, must not be in the store")
        if hasattr(store, "__delitem__"):
            _require_error(SampleNotFoundError, f"del of {promise}", lambda key=key: store.__delitem__(key))  # type: ignore[misc]


def _check_bad_keys(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples)
    for key in _NO_KEYS:
        _require_error(StoreError, f"set with {key!r} as a key", lambda key=key: store.set(samples[0], key))  # type: ignore[misc]
    with _promise("flush works after an error"):
        store.flush()
    _require_holds(store, dict(zip(keys, samples, strict=True)), "a key that can't be one leaves nothing behind")


def _check_bad_samples(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples[:1])
    for name, sample in _bad_samples(samples[0]):
        promise = f"set of a sample that can't be kept, {name}"
        _require_error(SampleEncodingError, promise, lambda sample=sample: store.set(sample, "bad"))  # type: ignore[misc]
        _require_error(SampleEncodingError, promise, lambda sample=sample: store.set(sample))  # type: ignore[misc]
    with _promise("set works after an error"):
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
        with _promise(f"the key {key[:50]!r} is kept like any other, or a StoreError"):
            try:
                returned = store.set(sample, key)
            except StoreError:
                continue
            _require(returned == key, f"the key {key!r} is kept as it is: set returned {returned!r}")
            expected[key] = sample
    with _promise("flush works after an error"):
        store.flush()
    _require_holds(store, expected, "keys that look like paths, or hold odd characters, are kept like any others")
    with _promise("a key that was refused is not in the store"):
        refused = [key for key in _HOSTILE if key not in expected and key in store]
        _require(not refused, f"a key that was refused is not in the store: {refused}")


def _check_replacing(make: Callable[[], Store], samples: list[Any]) -> None:
    for flushed in (True, False):
        store = make()
        kept = samples[0]
        with _promise("a sample is replaced, or set raises a StoreError"):
            store.set(kept, "again")
            if flushed:
                store.flush()
            try:
                returned = store.set(samples[1], "again")
                _require(returned == "again", f"set returns the key that it was given: it returned {returned!r}")
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
    with _promise(promise):
        store.__delitem__(keys[0])
        store.flush()
    _require(keys[0] not in store, f"{promise}: {keys[0]!r} is still there")
    _require_error(SampleNotFoundError, "get of a sample that was removed", lambda: store.get(keys[0]))
    _require_error(SampleNotFoundError, "del of a sample that was removed", lambda: store.__delitem__(keys[0]))
    _require_holds(store, dict(zip(keys[1:], samples[1:], strict=True)), promise)


def _check_copy(make: Callable[[], Store], samples: list[Any]) -> None:
    store, keys = _filled(make, samples)
    _require(isinstance(store.shared, bool), f"shared must be True or False, got {store.shared!r}")
    if not store.shared:
        return
    promise = "a pickled copy of a store that is shared has the same samples"
    with _promise(promise):
        copy = pickle.loads(pickle.dumps(store))  # noqa: S301  # bytes of our own, made in this call
    _require_holds(copy, dict(zip(keys, samples, strict=True)), promise)
    _require_holds(store, dict(zip(keys, samples, strict=True)), "pickling leaves a store as it is")


def _check_lasting(make: Callable[[], Store], samples: list[Any]) -> None:
    store = make()
    promise = "what get has given does not change when others are set"
    with _promise(promise):
        store.set(samples[0], "first")
        store.flush()
        given = store.get("first")
        for index, sample in enumerate(samples):
            store.set(sample, f"later {index}")
        store.flush()
        store.get("later 1")
    _require_same(given, samples[0], promise)


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
