"""What goes into shards comes out again: as rows, by their numbers, and as batches of columns."""

import struct
import tempfile
from collections import OrderedDict, namedtuple
from itertools import islice
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import default_collate

from squirrel_torch import IterableSource, SampleEncodingError, SchemaError, Shard, ShardStore, StoreError
from squirrel_torch.storage.shards import written as shard_module

ARRAY_DTYPES = [
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", ">i2", ">i8", ">u4", ">f4", ">f8"),
    *(">c8", ">c16", "M8[ns]", "M8[D]", "M8[25s]", ">M8[ms]", "m8[s]", "m8[h]", ">m8[us]", "S1", "S7", "U1", "U5", ">U3"),
]
SCALAR_DTYPES = [dtype for dtype in ARRAY_DTYPES if dtype[0] not in ">SU"]
TENSOR_DTYPES = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []),
]


def same(a, b):
    """Whether both are the same to the last bit, types included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex):
        return same((a.real, a.imag), (b.real, b.imag))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.dtype.str == b.dtype.str and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and tensor_bytes(a) == tensor_bytes(b)
    return a == b


def tensor_bytes(tensor):
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def an_array(dtype, shape, seed=0):
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    size = int(np.prod(shape))
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "SU":
        return np.array([f"{number % 97}" for number in rng.integers(0, 97, size)], dtype=dtype).reshape(shape)
    return np.frombuffer(rng.bytes(size * dtype.itemsize), dtype=dtype).reshape(shape).copy()


def a_tensor(dtype, shape, seed=0):
    if dtype is torch.bool:
        return torch.from_numpy(an_array("?", shape, seed))
    size = int(np.prod(shape)) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(an_array("u1", (size,), seed)).view(dtype).reshape(shape)


def a_scalar(dtype, seed=0):
    return an_array(dtype, (1,), seed)[0]


# -- schemas: a strategy whose values are strategies for samples of one schema ----------------------------------------

SEEDS = st.integers(0, 1 << 20)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
PLAIN = [
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats() | st.sampled_from([float("nan"), float("inf"), -0.0, 5e-324]),
    st.complex_numbers() | st.just(complex("nan-infj")),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["", "a\0b", "\0", "ß日\U0001f600"]),
    st.binary(max_size=9),
    st.none(),
]


@st.composite
def leaves(draw):
    kind = draw(st.sampled_from(["plain", "plain", "array", "tensor", "scalar"]))
    if kind == "plain":
        return draw(st.sampled_from(PLAIN))
    if kind == "scalar":
        dtype = draw(st.sampled_from(SCALAR_DTYPES))
        return SEEDS.map(lambda seed: a_scalar(dtype, seed))
    make, dtypes = (an_array, ARRAY_DTYPES) if kind == "array" else (a_tensor, TENSOR_DTYPES)
    dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
    varying = draw(st.sampled_from(["no", "no", "sides", "all"]))
    side = st.integers(0, 3)
    shapes = {"no": st.just(shape), "sides": st.tuples(*[side] * len(shape)), "all": SHAPES}[varying]
    return st.builds(lambda size, seed: make(dtype, size, seed), shapes, SEEDS)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(["key", "value", "", "a\0", "x", "y"])


@st.composite
def fields(draw, depth=0):
    kind = draw(st.sampled_from(["leaf", "leaf", "dict", "list", "tuple"])) if depth < 3 else "leaf"
    if kind == "leaf":
        field = draw(leaves())
    elif kind == "dict":
        field = st.fixed_dictionaries(
            {name: draw(fields(depth + 1)) for name in draw(st.lists(NAMES, unique=True, max_size=4))}
        )
    elif kind == "list":
        field = st.lists(draw(fields(depth + 1)), max_size=3)
    else:
        field = st.tuples(*[draw(fields(depth + 1)) for _ in range(draw(st.integers(0, 3)))])
    return st.none() | field if draw(st.integers(0, 4)) == 0 else field


@st.composite
def dict_fields(draw):
    names = draw(st.lists(NAMES, unique=True, min_size=1, max_size=8))
    return st.fixed_dictionaries({name: draw(fields(1)) for name in names})


SAMPLES = (dict_fields() | fields()).flatmap(lambda field: st.lists(field, min_size=1, max_size=11))


def written(samples, keys=None, block_rows=3, **options):
    """A store that holds `samples`, in small shards of small blocks."""
    store = ShardStore(tempfile.mkdtemp(dir=FOLDER), **options)
    with patch.object(shard_module, "_MOST_ROWS", block_rows), store:
        for number, sample in enumerate(samples):
            store.set(sample, None if keys is None else keys[number])
    return store


FOLDER = None
pytestmark = [
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
    # torch says so once in a process, where it is asked to make tensors of rows that are read-only.
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    global FOLDER
    FOLDER = tmp_path_factory.mktemp("columns")
    yield
    FOLDER = None


OPTIONS = st.fixed_dictionaries(
    {
        "shard_rows": st.integers(1, 6),
        "compression": st.sampled_from([None, "lz4", "zstd"]),
        "writable": st.booleans(),
        "verify": st.sampled_from(["shard", "block", "never"]),
    }
)


class TestRoundTrip:
    @pytest.mark.slow
    @settings(max_examples=100)
    @given(samples=SAMPLES, options=OPTIONS, block_rows=st.integers(1, 4), data=st.data())
    def test_any_schema(self, samples, options, block_rows, data):
        store = written(samples, block_rows=block_rows, **options)
        assert len(store) == len(samples)
        assert len(store.manifest.shards) == -(-len(samples) // options["shard_rows"])
        rows = list(store)
        assert same(rows, samples)
        assert same([store.row(number) for number in range(len(samples))], samples)
        ids = data.draw(st.lists(st.integers(0, len(samples) - 1), max_size=12))
        assert same(list(store.select(ids)), [samples[number] for number in ids])
        assert same([store.select(ids)[place] for place in range(len(ids))], [samples[number] for number in ids])
        check_flags(rows, options["writable"])
        assert same(store.get_many(store.keys()), samples)

    @pytest.mark.slow
    @settings(max_examples=60)
    @given(samples=SAMPLES, options=OPTIONS, given_for=st.sets(st.integers(0, 10)))
    def test_keys(self, samples, options, given_for):
        keys = [f"k/{number}\0ß" if number in given_for else None for number in range(len(samples))]
        store = ShardStore(tempfile.mkdtemp(dir=FOLDER), **options)
        with store:
            made = [store.set(sample, key) for sample, key in zip(samples, keys, strict=True)]
        assert all(key in (None, own) for key, own in zip(keys, made, strict=True))
        assert list(store.keys()) == made
        assert len(set(made)) == len(made)
        assert same([store.get(key) for key in made], samples)

    @pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
    @pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 2), (2, 3), "varying", "varying rank"])
    def test_every_dtype(self, compression, shape):
        shapes = {"varying": [(2, 1), (0, 3), (1, 1), (3, 2)], "varying rank": [(), (2,), (1, 2), (0,)]}.get(shape, [shape] * 4)
        samples = [
            {
                **{f"n{dtype}": an_array(dtype, size, seed) for dtype in ARRAY_DTYPES},
                **{f"t{dtype}": a_tensor(dtype, size, seed) for dtype in TENSOR_DTYPES},
                **{f"s{dtype}": a_scalar(dtype, seed) for dtype in SCALAR_DTYPES},
            }
            for seed, size in enumerate(shapes)
        ]
        store = written(samples, shard_rows=3, block_rows=2, compression=compression)
        rows = list(store)
        for name in samples[0]:
            assert same([row[name] for row in rows], [sample[name] for sample in samples]), name
        assert same([store.row(number) for number in range(4)], samples)
        nested = [[sample] if number else None for number, sample in enumerate(samples)]
        assert same(list(written(nested, shard_rows=3)), nested)

    @pytest.mark.parametrize(
        ("sample", "back"),
        [
            (bytearray(b"a\0"), b"a\0"),
            (memoryview(b"abc"), b"abc"),
            (np.str_("x"), "x"),
            (np.bytes_(b"x"), b"x"),
            (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
            (namedtuple("Pair", "x y")(1, "b"), (1, "b")),
            (np.arange(6).reshape(2, 3).T, np.array([[0, 3], [1, 4], [2, 5]])),
            (np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6.0).reshape(2, 3)),
            (np.arange(5)[::-2], np.array([4, 2, 0])),
            (np.broadcast_to(np.float32(2), (2, 2)), np.full((2, 2), 2, np.float32)),
            (torch.arange(6).reshape(2, 3).T, torch.tensor([[0, 3], [1, 4], [2, 5]])),
            (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j])),
            (torch.tensor([1 + 2j]).conj().imag, torch.tensor([-2.0])),
            (torch.ones(2, requires_grad=True), torch.ones(2)),
            (torch.nn.Parameter(torch.ones(2)), torch.ones(2)),
            (torch.ones(1).expand(3), torch.ones(3)),
        ],
        ids=lambda value: f"{type(value).__name__}",
    )
    def test_other_forms(self, sample, back):
        for samples, expected in (([sample] * 2, [back] * 2), ([{"x": sample}], [{"x": back}]), ([[sample], []], [[back], []])):
            assert same(list(written(samples)), expected)

    def test_deep_samples(self):
        sample = 1
        for _ in range(60):
            sample = [sample]
        assert list(written([sample, sample])) == [sample, sample]
        sample = {"a": np.zeros(3), "b": None}
        for _ in range(59):
            sample = {"x": sample}
        assert same(list(written([sample, sample])), [sample, sample])

    def test_the_deepest_samples_are_kept_or_refused(self):
        sample = 1
        for _ in range(64):  # as deep as `check_sample` allows
            sample = {"x": sample}
        try:
            store = written([sample])
        except StoreError:
            return
        assert list(store) == [sample]

    def test_the_order_of_keys_in_a_dict_does_not_matter(self):
        samples = [{"a": 1, "b": -1}, {"b": -2, "a": 2}, {"b": -3, "a": 3}, {"a": 4, "b": -4}]
        for shard_rows in (1, 2, 3, 4):
            store = written(samples, shard_rows=shard_rows)
            assert list(store) == samples
            assert list(store.select([3, 0])) == [samples[3], samples[0]]
            nested = written([{"x": sample, "y": (sample,)} for sample in samples], shard_rows=shard_rows)
            for n in range(1, 5):
                batches = list(IterableSource(store).batched(n, default_collate))
                expected = [default_collate(samples[start : start + n]) for start in range(0, 4 - n + 1, n)]
                assert [{k: v.tolist() for k, v in b.items()} for b in batches] == [
                    {k: v.tolist() for k, v in b.items()} for b in expected
                ]
                deep = list(IterableSource(nested).batched(n, default_collate))
                for batch, right in zip(deep, expected, strict=True):
                    for part in (batch["x"], batch["y"][0]):
                        assert {k: v.tolist() for k, v in part.items()} == {k: v.tolist() for k, v in right.items()}

    def test_masks_are_not_lost_without_a_word(self):
        with pytest.raises(StoreError):
            written([{"x": np.ma.array([1, 2], mask=[False, True])}])

    def test_text_of_no_width(self):
        empty = np.zeros(2, dtype=[("a", "U0")])["a"]
        try:
            store = written([{"x": empty}])
        except StoreError:
            return
        assert store.row(0)["x"].shape == (2,)

    def test_tensors_of_many_dimensions(self):
        samples = [torch.zeros([1] * 65), torch.zeros([2] + [1] * 64)]
        try:
            store = written(samples)
        except StoreError:
            return
        assert same(list(store), samples)


def check_flags(value, writable):
    if isinstance(value, np.ndarray):
        assert value.flags.writeable is writable
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            check_flags(part, writable)


class TestWritable:
    SAMPLES = [
        {"x": np.arange(3) + n, "v": np.arange(n), "z": np.array(n), "t": torch.arange(3) + n, "n": [np.ones(2)]}
        for n in range(7)
    ]

    @pytest.mark.parametrize("compression", [None, "lz4"])
    def test_views_are_read_only(self, compression):
        store = written(self.SAMPLES, compression=compression)
        for row in [*store, store.row(2), *store.select([3, 3])]:
            check_flags(row, False)
            for name in ("x", "z"):
                with pytest.raises(ValueError, match="read-only"):
                    row[name][...] = 5

    @pytest.mark.parametrize("compression", [None, "lz4"])
    def test_copies_can_be_written_to(self, compression):
        store = written(self.SAMPLES, compression=compression, writable=True)
        for rows in (list(store), [store.row(number) for number in range(7)], list(store.select(range(7)))):
            for row in rows:
                check_flags(row, True)
                for name in ("x", "v", "z", "t"):
                    row[name][...] = 77
                row["n"][0][...] = 77
        assert same(list(store), self.SAMPLES)
        assert same([store.row(number) for number in range(7)], self.SAMPLES)
        assert same(list(ShardStore(store.url)), self.SAMPLES)

    def test_a_row_that_is_written_to_does_not_change_its_neighbour(self):
        first, second, *_ = written([np.zeros(3)] * 4, writable=True)
        first += 1
        assert second.tolist() == [0, 0, 0]

    def test_tensors_are_copies(self):
        store = written(self.SAMPLES)
        for rows in (list(store), [store.row(number) for number in range(7)]):
            for row in rows:
                row["t"] += 5
        assert same(list(store), self.SAMPLES)

    def test_batches_are_copies(self):
        samples = [{"x": np.zeros(2), "t": torch.zeros(2), "i": 0} for _ in range(6)]
        store = written(samples)
        for batch in IterableSource(store).batched(4, default_collate, drop_last_if_not_full=False):
            for part in batch.values():
                part += 1
        assert same(list(store), samples)

    def test_rows_outlive_the_store(self):
        store = written(self.SAMPLES)
        rows = [*store, store.row(1)]
        store.refresh()
        del store
        assert same(rows, [*self.SAMPLES, self.SAMPLES[1]])


def expected_batches(samples, size, drop_last):
    """Each batch as torch makes it; the error in place of one that can't be made, the last then."""
    rows = iter(samples)
    while batch := list(islice(rows, size)):
        if drop_last and len(batch) < size:
            return
        try:
            yield default_collate(batch)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is expected
            yield error
            return


def check_batches(batches, samples, size, drop_last, errors=(TypeError, ValueError, RuntimeError, KeyError)):
    batches = iter(batches)
    for right in expected_batches(samples, size, drop_last):
        if isinstance(right, Exception):
            # Which of two fields that can't be batched comes first, is for the order of keys to say.
            with pytest.raises(errors or type(right)):
                next(batches)
            return
        assert same(next(batches), right)
    assert next(batches, "end") == "end"


class TestBatches:
    @pytest.mark.slow
    @settings(max_examples=60)
    @given(samples=SAMPLES, options=OPTIONS, block_rows=st.integers(1, 4))
    def test_as_torch_makes_them(self, samples, options, block_rows):
        store = written(samples, block_rows=block_rows, **options)
        for size in range(1, len(samples) + 2):
            for drop_last in (True, False):
                stream = IterableSource(store).batched(size, default_collate, drop_last_if_not_full=drop_last)
                check_batches(stream, samples, size, drop_last)

    @pytest.mark.slow
    @settings(max_examples=12)
    @given(samples=SAMPLES, options=OPTIONS, block_rows=st.integers(1, 4), size=st.integers(1, 6))
    def test_of_shares(self, samples, options, block_rows, size):
        store = written(samples, block_rows=block_rows, **options)
        for count in (2, 3, 5, 12):
            for index in range(count):
                own = samples[index::count]
                part = store._part(Shard(index, count))
                assert same(list(part), own)
                for drop_last in (True, False):
                    batches = store._part(Shard(index, count)).collated(size, drop_last)
                    assert batches is not None
                    check_batches(batches, own, size, drop_last)

    @pytest.mark.parametrize("shapes", [[(2, 3), (3, 2)], [(0, 1), (0, 0)]])
    def test_shapes_that_differ_from_shard_to_shard(self, shapes):
        samples = [torch.ones(shape) for shape in shapes]
        store = written(samples, block_rows=1, shard_rows=1)
        with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
            next(iter(IterableSource(store).batched(2, default_collate)))

    @pytest.mark.filterwarnings("ignore:In future, it will be an error for 'np.bool:DeprecationWarning")
    @pytest.mark.parametrize("block_rows", [1, 2])
    @pytest.mark.parametrize(
        "make",
        [
            *(lambda n, d=dtype: an_array(d, (2,), n) for dtype in ARRAY_DTYPES),
            *(lambda n, d=dtype: an_array(d, (), n) for dtype in ARRAY_DTYPES),
            *(lambda n, d=dtype: a_scalar(d, n) for dtype in SCALAR_DTYPES),
            *(lambda n, d=dtype: a_tensor(d, (2,), n) for dtype in TENSOR_DTYPES),
            *(lambda n, d=dtype: a_tensor(d, (), n) for dtype in (torch.bool, torch.float32, torch.bfloat16)),
            *(lambda n, v=value: v for value in (True, 3, 0.5, 1j, "a", b"a", None, {}, (), [], [1, 2], (1, ("a", 2.5)))),
            lambda n: {"a": n, "b": {"c": float(n), "d": [n, n]}, "e": (str(n), np.float32(n))},
            lambda n: np.zeros(n % 2),
            lambda n: np.zeros(2 if n < 3 else 4),  # from the second shard on
            lambda n: [n] * (n % 2),
            lambda n: None if n == 4 else n,
            lambda n: np.zeros((0, 3)),
        ],
    )
    def test_of_each_type(self, make, block_rows):
        samples = [make(number) for number in range(7)]
        for wrapped in (samples, [{"x": sample, "n": n} for n, sample in enumerate(samples)], [(s, s) for s in samples]):
            store = written(wrapped, shard_rows=3, block_rows=block_rows)
            for size in (1, 2, 4, 8):
                for drop_last in (True, False):
                    stream = IterableSource(store).batched(size, default_collate, drop_last_if_not_full=drop_last)
                    check_batches(stream, wrapped, size, drop_last, errors=None)

    def test_of_a_selection(self):
        samples = [{"x": np.arange(3.0) + n, "n": n} for n in range(11)]
        store = written(samples, shard_rows=4)
        ids = [10, 0, 3, 3, 7]
        stream = IterableSource(store.select(ids)).batched(2, default_collate, drop_last_if_not_full=False)
        with_writable = IterableSource(written(samples, writable=True).select(ids))
        check_batches(
            with_writable.batched(2, default_collate, drop_last_if_not_full=False), [samples[n] for n in ids], 2, False
        )
        check_batches(stream, [samples[number] for number in ids], 2, False)

    def test_behind_a_split(self):
        samples = [{"x": np.full(2, n)} for n in range(23)]
        store = written(samples, shard_rows=5)
        batches = list(IterableSource(store).split_by_rank().batched(4, default_collate, drop_last_if_not_full=False))
        assert torch.cat([batch["x"] for batch in batches])[:, 0].tolist() == list(range(23))

    def test_iteration_is_not_shortened_by_an_early_end(self):
        store = written([{"x": n} for n in range(20)], shard_rows=3)
        stream = IterableSource(store).batched(3, default_collate)
        for _ in range(20):
            assert next(iter(stream))["x"].tolist() == [0, 1, 2]
        assert len(list(stream)) == 6


class TestRefused:
    def test_arrays_that_are_too_large(self):
        with pytest.raises(SampleEncodingError, match="an array of 2147483648 numbers is too large"):
            written([{"x": np.broadcast_to(np.uint8(0), (1 << 31,))}])

    @pytest.mark.parametrize(
        ("sample", "message"),
        [
            ({"x": [1, 2**63]}, "sample number 1.*integer 9223372036854775808 does not fit into 64 bits"),
            ({"x": [-(2**63) - 1]}, "sample number 1.*integer -9223372036854775809"),
        ],
    )
    def test_integers(self, sample, message):
        store = ShardStore(tempfile.mkdtemp(dir=FOLDER))
        store.set({"x": [0]})
        with pytest.raises(SampleEncodingError, match=message), store:
            store.set(sample)

    @pytest.mark.parametrize("sample", ["\ud800", ["a", "\udfff"], {"x": {"y": "\ud800"}}, {"\ud800": 1}, {"x": {"\ud800": 1}}])
    def test_surrogates(self, sample):
        store = ShardStore(tempfile.mkdtemp(dir=FOLDER))
        with pytest.raises(StoreError, match="sample"), store:
            store.set(sample)
        assert len(store) == 0

    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            ([[1, "a"]], "sample number 0, element 1"),
            ([{"x": [[1], [1, 2.5]]}], r"sample number 0, element 1: sample\['x'\]\[1\]\[...\] is float, it was int"),
            ([{"x": [{"a": 1}, {"b": 1}]}], "sample number 0, element 1"),
            ([[np.zeros(1), np.zeros(1, np.float32)]], "float32"),
            ([1, 1.0], "sample number 1: sample is float, it was int"),
            ([1, True], "sample number 1: sample is bool, it was int"),
            ([(1,), (1, 2)], "a tuple of 2.*one of 1"),
            ([{"a": 1}, {}], r"sample number 1: sample\['a'\] is missing"),
            ([{}, {"a": 1}], r"sample number 1: sample\['a'\] is new"),
            ([{"a": {"b": [1]}}, {"a": {"b": ["x"]}}], r"sample\['a'\]\['b'\]\[...\] is str, it was int"),
            ([np.zeros(1), torch.zeros(1)], "tensor float32.*array float64"),
            ([np.int32(1), 1], "int, it was scalar int32"),
            ([torch.zeros(1), torch.zeros(1, dtype=torch.float64)], "float64.*float32"),
        ],
    )
    def test_schemas_that_differ(self, samples, message):
        store = ShardStore(tempfile.mkdtemp(dir=FOLDER))
        with pytest.raises(SchemaError, match=message), store:
            store.set_many(samples)
        with pytest.raises(SchemaError, match=message):
            IterableSource(samples).sink(ShardStore(tempfile.mkdtemp(dir=FOLDER)))

    def test_keys_of_a_subclass_of_text(self):
        try:
            store = written([{np.str_("a"): 1}])
        except SampleEncodingError as error:
            assert "lists" not in str(error)  # noqa: PT017
        else:
            assert list(store) == [{"a": 1}]
