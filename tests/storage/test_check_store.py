"""check_store: right stores pass, and each promise that is broken is noticed."""

import copy
import itertools
import tempfile
import threading
import uuid

import numpy as np
import pytest
import torch

from squirrel_torch import MemoryStore, SampleEncodingError, SampleNotFoundError, StoreError
from squirrel_torch.storage.filesystem import FilesystemStore
from squirrel_torch.storage.sample import check_sample
from squirrel_torch.storage.store import Keys
from squirrel_torch.testing import check_store

RAW = [b"one", b"", b"\x00\xff", bytes(1000)]


class TestRightStores:
    def test_memory(self):
        check_store(MemoryStore)

    @pytest.mark.parametrize("form", ["msgpack", "json", "raw"])
    @pytest.mark.parametrize("place", ["local", "memory"])
    def test_files(self, tmp_path, form, place):
        def make():
            if place == "memory":
                return FilesystemStore(f"memory://{uuid.uuid4().hex}", format=form)
            return FilesystemStore(tempfile.mkdtemp(dir=tmp_path), format=form)

        check_store(make, RAW if form == "raw" else None)

    def test_samples_of_any_kind(self):
        check_store(MemoryStore, [1, "a", None, (1, [2]), np.str_("x"), torch.ones(1), float("nan")])

    def test_stores_may_refuse_to_replace_and_need_not_remove(self):
        class AppendOnly(MemoryStore):
            __delitem__ = None

            def set(self, value, key=None):
                if key in self:
                    raise StoreError(f"there is a sample under {key!r} already")
                return super().set(value, key)

        del AppendOnly.__delitem__
        check_store(AppendOnly)

    def test_stores_may_wait_for_flush(self):
        check_store(Buffered)

    def test_it_needs_two_samples(self):
        with pytest.raises(ValueError, match="samples must be at least two, got 1"):
            check_store(MemoryStore, [1])


class Buffered(MemoryStore):
    """What is set is there after flush."""

    def __init__(self):
        super().__init__()
        self._pending = {}

    def set(self, value, key=None):
        check_sample(value)
        self._pending[key := super()._new_key() if key is None else MemoryStore().set(value, key)] = value
        return key

    def flush(self):
        self._samples |= self._pending
        self._pending = {}


# -- stores that break one promise each -------------------------------------------------------------------------------


class ReturnsNothing(MemoryStore):
    def set(self, value, key=None):
        super().set(value, key)


class ReturnsAnotherKey(MemoryStore):
    def set(self, value, key=None):
        return super().set(value, key) + "!"


class IgnoresGivenKeys(MemoryStore):
    def set(self, value, key=None):
        key is None or MemoryStore().set(value, key)
        return super().set(value)


class CountsKeys(MemoryStore):
    """Two stores, or two processes, make the same keys."""

    def set(self, value, key=None):
        return super().set(value, f"{len(self)}" if key is None else key)


class AlwaysOneNewKey(MemoryStore):
    key = "new"

    def set(self, value, key=None):
        return super().set(value, self.key if key is None else key)


class Races(MemoryStore):
    """Threads that set at once get the same key."""

    def __init__(self):
        super().__init__()
        self._prefix, self._count, self._together = uuid.uuid4().hex, 0, threading.Barrier(2)

    def set(self, value, key=None):
        if key is None:
            count = self._count
            try:
                self._together.wait(0.05)
            except threading.BrokenBarrierError:
                self._together.reset()
            self._count = count + 1
            key = f"{self._prefix}{count}"
        return super().set(value, key)


class NeverFlushes(Buffered):
    def flush(self):
        pass


class TuplesAreLists(MemoryStore):
    def set(self, value, key=None):
        return super().set(
            {**value, "list": tuple(value["list"])} if isinstance(value, dict) and "list" in value else value, key
        )


class Changed(MemoryStore):
    """Gives one field differently."""

    field = "int"

    def get(self, key):
        sample = super().get(key)
        return {**sample, self.field: self.other(sample[self.field])}

    def other(self, value):
        return float(value)


class OtherDtype(Changed):
    field = "fixed"

    def other(self, value):
        return value.astype(np.float64)


class OtherByteOrder(Changed):
    field = "fixed"

    def other(self, value):
        return value.astype(">f4")


class OtherShape(Changed):
    field = "varying"

    def other(self, value):
        return value.reshape(-1)


class TensorsAreArrays(Changed):
    field = "tensor"

    def other(self, value):
        return value.numpy()


class HalvesAreFloats(Changed):
    field = "half"

    def other(self, value):
        return value.float()


class NoneIsZero(Changed):
    field = "maybe"

    def other(self, value):
        return value or 0


class LosesTheSignOfZero(Changed):
    field = "float"

    def other(self, value):
        return value + 0.0


class BoolsAreInts(Changed):
    field = "bool"

    def other(self, value):
        return int(value)


class StripsText(Changed):
    field = "text"

    def other(self, value):
        return value.rstrip("\n")


class DropsNestedFields(Changed):
    field = "nested"

    def other(self, value):
        return {"source": value["source"]}


class RaisesKeyError(MemoryStore):
    def get(self, key):
        return self._samples[key]


class GivesNoneForMissing(MemoryStore):
    def get(self, key):
        return self._samples.get(key) if isinstance(key, str) else super().get(key)


class ContainsRaises(MemoryStore):
    def __contains__(self, key):
        return key in self._samples


class ContainsEverything(MemoryStore):
    def __contains__(self, key):
        return True


class TakesAnyKey(MemoryStore):
    def set(self, value, key=None):
        check_sample(value)
        self._samples[key := self._new_key() if key is None else key] = value
        return key


class TakesAnySample(MemoryStore):
    def set(self, value, key=None):
        key = self._new_key() if key is None else MemoryStore().set(1, key)
        self._samples[key] = value
        return key


class RaisesTypeErrorForBadSamples(MemoryStore):
    def set(self, value, key=None):
        try:
            return super().set(value, key)
        except SampleEncodingError as error:
            raise TypeError(*error.args) from None


class LeavesBadSamplesBehind(MemoryStore):
    def set(self, value, key=None):
        try:
            return super().set(value, key)
        except SampleEncodingError:
            self._samples[key or self._new_key()] = None
            raise


class NormalizesKeys(MemoryStore):
    def set(self, value, key=None):
        return super().set(value, key if key is None or not isinstance(key, str) else key.strip("/"))


class FoldsKeys(MemoryStore):
    """Two keys are one file."""

    def set(self, value, key=None):
        if isinstance(key, str) and key:
            super().set(value, key.replace("//", "/"))
            return key
        return super().set(value, key)


class RaisesOSErrorForOddKeys(MemoryStore):
    def set(self, value, key=None):
        if isinstance(key, str) and "/" in key:
            raise FileNotFoundError(key)
        return super().set(value, key)


class RefusesButKeeps(MemoryStore):
    def set(self, value, key=None):
        key = super().set(value, key)
        if ".." in key:
            raise StoreError(f"{key!r} can't be a key")
        return key


class KeepsTheOldSampleQuietly(MemoryStore):
    def set(self, value, key=None):
        return key if key in self else super().set(value, key)


class ListsReplacedTwice(MemoryStore):
    def set(self, value, key=None):
        self.__dict__.setdefault("_twice", []).extend([key] if key in self else [])
        return super().set(value, key)

    def _iterate_keys(self):
        return iter([*self._samples, *self.__dict__.get("_twice", [])])


class RefusesAndLosesTheOld(MemoryStore):
    def set(self, value, key=None):
        if key in self:
            del self[key]
            raise StoreError("there is one already")
        return super().set(value, key)


class KeysOnce(MemoryStore):
    def keys(self):
        return self._iterate_keys()


class KeysFollowTheWriter(MemoryStore):
    def _iterate_keys(self):
        return (list(self._samples)[index] for index in itertools.takewhile(lambda index: index < len(self), itertools.count()))


class IteratesKeys(MemoryStore):
    def _part(self, shard):
        return shard.of(iter(list(self._samples)))


class OtherOrder(MemoryStore):
    def _part(self, shard):
        return shard.of(list(self._samples.values())[::-1])


class EveryReaderGetsAll(MemoryStore):
    def _part(self, shard):
        return iter(list(self._samples.values()))


class WrongLength(MemoryStore):
    def __len__(self):
        return len(self._samples) + (len(self._samples) > 2)


class DoesNotRemove(MemoryStore):
    def __delitem__(self, key):
        self.get(key)


class RemovesAll(MemoryStore):
    def __delitem__(self, key):
        self.get(key)
        self._samples.clear()


class RemovesWhatIsNotThere(MemoryStore):
    def __delitem__(self, key):
        if isinstance(key, str):
            self._samples.pop(key, None)
        else:
            raise SampleNotFoundError(str(key))


class CopiesAreEmpty(MemoryStore):
    shared = True

    def __getstate__(self):
        return {"_samples": {}}


class CanNotBePickled(MemoryStore):
    shared = True

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class GivesItsBuffer(MemoryStore):
    """What get gave is overwritten by the next set."""

    buffer = None

    def get(self, key):
        self.buffer = copy.deepcopy(super().get(key))
        return self.buffer

    def set(self, value, key=None):
        if isinstance(self.buffer, dict):
            self.buffer["fixed"][:] = -1
        return super().set(value, key)


class GetManyInOrderOfTheStore(MemoryStore):
    def get_many(self, keys):
        wanted = list(keys)
        list(map(self.get, wanted))
        return [sample for key, sample in self._samples.items() if key in wanted]


class SetManyDropsWhatHasNoKey(MemoryStore):
    def set_many(self, values, keys=None):
        return [self.set(*pair) for pair in zip(values, keys, strict=False)] if keys else super().set_many(values)


class ContainsManyOfAllAtOnce(MemoryStore):
    def contains_many(self, keys):
        return [all(key in self for key in keys)]


class NotEmpty(MemoryStore):
    def __init__(self):
        super().__init__()
        self._samples["old"] = 1


BROKEN = {
    ReturnsNothing: "set returns the key that it was given, a text: it returned None",
    ReturnsAnotherKey: "set returns the key that it was given: it returned 'given!'",
    IgnoresGivenKeys: "set returns the key that it was given",
    CountsKeys: "set makes keys that it has not made before, in no store",
    AlwaysOneNewKey: "set makes keys that it has not made before",
    Races: "set may be called from several threads at once: it made the same keys",
    NeverFlushes: "and get gives the sample: it has 0 samples",
    TuplesAreLists: r"sample\['list'\] is a tuple, and a list was set",
    Changed: r"sample\['int'\] is a float, and a int was set",
    OtherDtype: r"sample\['fixed'\] has dtype float64",
    OtherByteOrder: r"sample\['fixed'\] has dtype >f4",
    OtherShape: r"sample\['varying'\] has dtype int64, shape \(0,\)",
    TensorsAreArrays: r"sample\['tensor'\] is a ndarray",
    HalvesAreFloats: r"sample\['half'\] has dtype torch.float32",
    NoneIsZero: r"sample\['maybe'\] is a int, and a NoneType was set",
    LosesTheSignOfZero: r"sample\['float'\] is 0.0, and -0.0 was set",
    BoolsAreInts: r"sample\['bool'\] is a int, and a bool was set",
    StripsText: r"sample\['text'\] is",
    DropsNestedFields: r"sample\['nested'\] has the keys",
    RaisesKeyError: "it must be a SampleNotFoundError, got KeyError",
    GivesNoneForMissing: "get_many of a key that is not there: it must be a SampleNotFoundError, and was none",
    ContainsRaises: "get_many gives the samples in the order of the keys: TypeError was raised: unhashable",
    ContainsEverything: "keys\\(\\) holds only what is there",
    TakesAnyKey: "set with '' as a key: it must be a StoreError, and was none",
    TakesAnySample: "set of a sample that can't be kept, an object: it must be a SampleEncodingError, and was none",
    RaisesTypeErrorForBadSamples: "it must be a SampleEncodingError, got TypeError",
    LeavesBadSamplesBehind: "a sample that can't be kept leaves nothing behind",
    NormalizesKeys: "the key '/etc/x' is kept as it is: set returned 'etc/x'",
    FoldsKeys: "keys that look like paths, or hold odd characters, are kept like any others",
    RaisesOSErrorForOddKeys: "is kept like any other, or a StoreError: FileNotFoundError was raised",
    RefusesButKeeps: "keys that look like paths, or hold odd characters, are kept like any others",
    KeepsTheOldSampleQuietly: "a sample is replaced, or set raises",
    ListsReplacedTwice: "a sample is replaced, or set raises",
    RefusesAndLosesTheOld: "a sample is replaced, or set raises a StoreError and the old one stays",
    KeysOnce: "keys\\(\\) must be the view that Store gives",
    KeysFollowTheWriter: "an iteration of keys\\(\\) gives those that were there when it started",
    IteratesKeys: "iteration gives the samples in the order of keys\\(\\)",
    OtherOrder: "iteration gives the samples in the order of keys\\(\\)",
    EveryReaderGetsAll: "a part of the store is every count-th of its samples",
    WrongLength: "samples with the keys",
    DoesNotRemove: "del removes a sample, and no other: 'sample 0' is still there",
    RemovesAll: "del removes a sample, and no other: it has 0 samples",
    RemovesWhatIsNotThere: "del of a key that is not there, 'nothing': it must be a SampleNotFoundError",
    CopiesAreEmpty: "a pickled copy of a store that is shared has the same samples: it has 0 samples",
    CanNotBePickled: "a pickled copy of a store that is shared has the same samples: TypeError was raised",
    GivesItsBuffer: "what get has given does not change when others are set",
    GetManyInOrderOfTheStore: "get_many gives the samples in the order of the keys",
    SetManyDropsWhatHasNoKey: "set_many needs a key for each sample",
    ContainsManyOfAllAtOnce: "contains_many says of each key whether it is there",
    NotEmpty: "make_store must give an empty store, got <MemoryStore of 1 samples> with 1 samples",
}


class TestBrokenStores:
    @pytest.mark.parametrize("store", BROKEN, ids=lambda store: store.__name__)
    def test_each_is_noticed(self, store):
        with pytest.raises(AssertionError, match=BROKEN[store]):
            check_store(store)

    def test_what_is_no_store(self):
        with pytest.raises(AssertionError, match="make_store must give a store, a subclass of"):
            check_store(dict)
        with pytest.raises(AssertionError, match="make_store must give a store: ZeroDivisionError was raised"):
            check_store(lambda: 1 / 0)

    def test_keys_that_are_no_view_of_the_store(self):
        class Detached(MemoryStore):
            def keys(self):
                return Keys(MemoryStore())

        with pytest.raises(AssertionError, match="keys"):
            check_store(Detached)
