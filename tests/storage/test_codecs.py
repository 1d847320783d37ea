"""Codecs: what goes in comes out, and bytes that were made to harm do none."""

import base64
import enum
import json
import math
import pickle
import random
import struct
import tracemalloc
from collections import OrderedDict, namedtuple

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from squirrel_torch.errors import CorruptDataError, SampleEncodingError
from squirrel_torch.storage.codecs import codec_for
from squirrel_torch.testing.promises import difference

CODECS = [codec_for("msgpack"), codec_for("json")]
TAG = "__squirrel_torch__"
TORCH_DTYPES = sorted(
    {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and "q" not in str(dtype).partition(".")[2][:2]},
    key=str,
)

both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def require_round_trip(codec, sample, expected=None):
    back = codec.decode(codec.encode(sample))
    assert difference(back, sample if expected is None else expected, "sample") is None
    return back


# -- samples, drawn ---------------------------------------------------------------------------------------------------

array_dtypes = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.unsigned_integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    npst.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    npst.byte_string_dtypes(endianness="?"),
    npst.unicode_string_dtypes(endianness="?"),
    npst.datetime64_dtypes(endianness="?"),
    npst.timedelta64_dtypes(endianness="?"),
)
arrays = array_dtypes.flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from([dtype for dtype in TORCH_DTYPES if dtype is not torch.bool]))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    size = math.prod(shape) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    return (
        torch.frombuffer(data, dtype=torch.uint8).view(dtype) if data else torch.empty(0, dtype=torch.uint8).view(dtype)
    ).reshape(shape)


any_text = st.text(st.characters(exclude_categories=()))  # halves of characters, too
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.complex_numbers(),
    any_text,
    st.binary(),
    arrays,
    arrays.filter(lambda array: array.size).map(lambda array: array.reshape(-1)[0]),
    tensors(),
)
keys = any_text | st.sampled_from([TAG, "data", "dtype"])
samples = st.recursive(
    leaves,
    lambda inside: (
        st.lists(inside, max_size=4) | st.lists(inside, max_size=4).map(tuple) | st.dictionaries(keys, inside, max_size=4)
    ),
    max_leaves=12,
)


class TestRoundTrips:
    @both
    @given(sample=samples)
    def test_any_sample(self, codec, sample):
        require_round_trip(codec, sample)

    @both
    @pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(), (0,), (2, 3), (0, 5)], ids=str)
    def test_tensors_of_every_dtype(self, codec, dtype, shape):
        size = math.prod(shape) * dtype.itemsize
        numbers = torch.arange(size, dtype=torch.uint8) % 2
        tensor = (numbers.view(dtype) if size else torch.empty(0, dtype=torch.uint8).view(dtype)).reshape(shape)
        back = require_round_trip(codec, {"x": tensor})["x"]
        assert back.is_contiguous()
        assert back.device.type == "cpu"

    @both
    def test_tensors_however_they_lie_in_memory(self, codec):
        tensor = (torch.arange(24) * (1 + 1j)).reshape(2, 3, 4)
        for view in (
            tensor.permute(2, 1, 0),
            tensor[:, ::2],
            tensor[1:].expand(5, 3, 4),
            tensor.conj(),
            tensor.conj().imag,
            tensor[0, 0, 0],
        ):
            require_round_trip(codec, view, view.resolve_conj().resolve_neg().contiguous())
        require_round_trip(codec, torch._neg_view(torch.ones(3)), -torch.ones(3))
        trained = torch.ones(2, requires_grad=True)
        assert not codec.decode(codec.encode([trained, trained * 2]))[0].requires_grad

    @both
    def test_arrays_however_they_lie_in_memory(self, codec, tmp_path):
        array = np.arange(24).reshape(2, 3, 4)
        for view in (array.T, array[:, ::-2], np.broadcast_to(array, (3, 2, 3, 4)), np.asfortranarray(array), array[0, 0, 0]):
            back = require_round_trip(codec, view)
            if isinstance(back, np.ndarray):
                assert back.flags.writeable
                assert back.flags.c_contiguous
        file = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(3,))
        require_round_trip(codec, file, np.zeros(3, np.uint8))

    @both
    @pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
    def test_arrays_of_empty_text(self, codec, shape):
        require_round_trip(codec, np.ndarray(shape, "<U0"))
        require_round_trip(codec, np.ndarray(shape, "|S0"))

    @both
    @pytest.mark.parametrize(
        "scalar", [np.str_(""), np.str_("a\0"), np.bytes_(b"a\0"), np.bool_(True), np.datetime64("NaT", "ns")]
    )
    def test_numpy_scalars(self, codec, scalar):
        require_round_trip(codec, scalar)

    @both
    @pytest.mark.parametrize("text", ["\ud800", "\ud83d\ude00", "a\x00\x1f\u2028", "\ufeff"], ids=ascii)
    def test_text_that_is_odd(self, codec, text):
        require_round_trip(codec, {text: [text, np.str_(text), np.array([text + "."])]})

    @both
    @pytest.mark.parametrize("bits", ["7ff8000000000001", "fff8000000000000", "8000000000000000", "7ff0000000000000"])
    def test_floats_to_the_last_bit(self, codec, bits):
        number = struct.unpack(">d", bytes.fromhex(bits))[0]
        assert struct.pack(">d", codec.decode(codec.encode(number))).hex() == bits
        back = codec.decode(codec.encode(complex(1, number)))
        assert struct.pack(">d", back.imag).hex() == bits

    @both
    @pytest.mark.parametrize(
        "number", [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**5000], ids=int.bit_length
    )
    def test_integers_of_any_size(self, codec, number):
        back = codec.decode(codec.encode(number))
        assert type(back) is int
        assert (back == number) is True  # pytest would print it

    @both
    def test_bytes_of_any_kind_are_bytes(self, codec):
        array = np.arange(4, dtype=np.int16)
        for data in (bytearray(b"xy"), memoryview(b"xy"), memoryview(array), memoryview(array)[::2]):
            require_round_trip(codec, data, bytes(data))

    @both
    def test_subclasses_come_back_as_the_plain_type(self, codec):
        point = namedtuple("point", "x y")
        color = enum.Enum("color", {"RED": "red"}, type=str)
        number = enum.IntEnum("number", {"ONE": 1})
        sample = OrderedDict([("b", point(1, color.RED)), (color.RED, number.ONE), (np.str_("k"), [])])
        require_round_trip(codec, sample, {"b": (1, "red"), "red": 1, "k": []})

    @both
    @pytest.mark.parametrize("length", [16384, 16385, 40000])
    def test_long_containers(self, codec, length):
        for sample in (list(range(length)), tuple(range(length)), {str(number): number for number in range(length)}):
            assert codec.decode(codec.encode(sample)) == sample

    def test_lists_of_more_parts_than_a_part_has_items(self, monkeypatch):
        monkeypatch.setattr("squirrel_torch.storage.codecs.msgpack._RUN", 3)
        for length in range(40):
            for sample in (list(range(length)), tuple(range(length)), {str(number): number for number in range(length)}):
                assert CODECS[0].decode(CODECS[0].encode(sample)) == sample

    @both
    def test_dicts_keep_their_order(self, codec):
        assert list(codec.decode(codec.encode({"b": 1, TAG: 2, "a": 3}))) == ["b", TAG, "a"]
        assert list(codec.decode(codec.encode({"b": 1, "a": 3}))) == ["b", "a"]

    @both
    def test_64_levels(self, codec):
        for wrap in (
            lambda inside: [inside],
            lambda inside: (inside,),
            lambda inside: {TAG: inside},
            lambda inside: {"a": inside},
        ):
            sample = 1
            for _ in range(64):
                sample = wrap(sample)
            assert codec.decode(codec.encode(sample)) == sample
            with pytest.raises(SampleEncodingError, match="more than 64 deep"):
                codec.encode(wrap(sample))

    @both
    def test_levels_behind_a_container_that_was_seen_before(self, codec):
        shared = [1]
        for _ in range(31):
            shared = [shared]
        deeper = shared
        for _ in range(31):
            deeper = [deeper]
        assert codec.decode(codec.encode([shared, deeper])) == [shared, deeper]
        with pytest.raises(SampleEncodingError, match="more than 64 deep"):
            codec.encode([shared, [deeper]])


class TestWhatCanNotBeKept:
    @both
    @pytest.mark.parametrize(
        "sample",
        [
            object(),
            {1: 2},
            [np.array([None])],
            np.zeros(2, [("a", "O")]),
            torch.eye(2).to_sparse(),
            torch.empty(2, device="meta"),
            np.ma.masked_array([1, 2], [True, False]),
        ],
        ids=lambda sample: type(sample).__name__,
    )
    def test_it_is_an_encoding_error(self, codec, sample):
        with pytest.raises(SampleEncodingError):
            codec.encode(sample)

    @pytest.mark.parametrize("sample", ["text", None, {"a": b"x"}, np.bytes_(b"x"), 3])
    def test_raw_is_bytes(self, sample):
        with pytest.raises(SampleEncodingError, match="a sample must be bytes to be kept raw, got a"):
            codec_for("raw").encode(sample)

    @pytest.mark.parametrize("sample", [b"", b"\x00\xff", bytearray(b"x"), memoryview(b"xyz")])
    def test_raw_keeps_bytes_as_they_are(self, sample):
        assert codec_for("raw").encode(sample) == codec_for("raw").decode(bytes(sample)) == bytes(sample)

    @pytest.mark.parametrize("name", ["pickle", "", None, ["json"]])
    def test_there_is_no_such_codec(self, name):
        with pytest.raises(ValueError, match="format must be one of 'msgpack', 'json', 'raw', got"):
            codec_for(name)


class TestForOthersToRead:
    def test_plain_samples_are_plain_json(self):
        sample = {"label": 3, "name": "é", "box": [1, 2.5, None, True]}
        data = codec_for("json").encode(sample)
        assert data.decode() == '{"label": 3, "name": "é", "box": [1, 2.5, null, true]}'
        assert codec_for("json").decode(b'\n{"label":3,"name":"\\u00e9","box":[1,2.5,null,true]} ') == sample

    def test_plain_samples_are_plain_msgpack(self):
        sample = {"label": 3, "name": "é", "box": [1, 2.5, None, True, b"x"]}
        assert codec_for("msgpack").encode(sample) == msgpack.packb(sample)

    def test_arrays_in_json_say_what_they_are(self):
        array = np.arange(3, dtype=np.int16)
        data = base64.b64encode(array.tobytes()).decode()
        assert json.loads(codec_for("json").encode(array)) == {TAG: "ndarray", "dtype": "<i2", "shape": [3], "data": data}


# -- bytes that are not what was written ------------------------------------------------------------------------------

SMALL = {
    "label": -3,
    "weights": [0.5, float("nan"), 2**70, 1j],
    "name": "é",
    "data": (b"\x00\xff", None, True),
    "image": np.arange(4, dtype="<u2").reshape(2, 2),
    "flags": np.array([True, False]),
    "words": np.array(["a", "é"]),
    "one": np.float32(1),
    "time": np.datetime64("2020-01-01", "s"),
    "mask": torch.tensor([True, False]),
    "half": torch.ones(2, 1, dtype=torch.bfloat16),
    TAG: "tuple",
}


def require_a_sample_or_corrupt(codec, data):
    """Whatever comes out can be used."""
    try:
        sample = codec.decode(data)
    except CorruptDataError:
        return False
    codec.decode(codec.encode(sample))
    repr(sample)
    return True


class TestDamage:
    @both
    def test_every_truncation(self, codec):
        data = codec.encode(SMALL)
        for length in range(len(data)):
            with pytest.raises(CorruptDataError):
                codec.decode(data[:length])

    @both
    def test_anything_behind_the_end(self, codec):
        for more in (b"\x00", b"1", b"{}", b"\xc0", codec.encode(SMALL)):
            with pytest.raises(CorruptDataError):
                codec.decode(codec.encode(SMALL) + more)

    @pytest.mark.slow
    @both
    def test_every_bit_flipped(self, codec):
        data = codec.encode(SMALL)
        refused = 0
        for position in range(len(data)):
            for change in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                damaged = bytearray(data)
                damaged[position] ^= change
                refused += not require_a_sample_or_corrupt(codec, bytes(damaged))
        assert refused > len(data)

    @both
    @given(data=st.binary(max_size=200))
    def test_any_bytes(self, codec, data):
        require_a_sample_or_corrupt(codec, data)

    @both
    @given(seed=st.integers(0, 2**32), count=st.integers(1, 20))
    def test_many_bytes_changed(self, codec, seed, count):
        drawn = random.Random(seed)
        data = bytearray(codec.encode(SMALL))
        for _ in range(count):
            start = drawn.randrange(len(data))
            data[start : start + drawn.randrange(3)] = drawn.randbytes(drawn.randrange(3))
        require_a_sample_or_corrupt(codec, bytes(data))


def extension(code, data):
    return b"\xc9" + struct.pack(">Ib", len(data), code) + data


def array_extension(dtype, shape, data, code=20):
    dtype = dtype.encode()
    return extension(code, struct.pack(f"<B{len(dtype)}sB{len(shape)}Q", len(dtype), dtype, len(shape), *shape) + data)


def array_object(dtype, shape, data, kind="ndarray"):
    text = base64.b64encode(data).decode()
    return json.dumps({TAG: kind, "dtype": dtype, "shape": shape, "data": text}).encode()


class Harm:
    def __reduce__(self):
        return open, ("PWNED", "w")


def require_corrupt(codec, data, match=None):
    tracemalloc.start()
    try:
        with pytest.raises(CorruptDataError, match=match) as caught:
            codec.decode(data)
        assert len(str(caught.value)) < 500
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
    finally:
        tracemalloc.stop()


class TestMadeToHarm:
    MSGPACK, JSON = CODECS

    def test_pickles_are_never_opened(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        payload = pickle.dumps(Harm())
        for data in (
            msgpack.packb({b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": payload}),
            array_extension("|O", [1], payload),
            array_extension("|V8", [1], payload[:8]),
        ):
            require_corrupt(self.MSGPACK, data)
        require_corrupt(self.JSON, array_object("|O", [1], payload))
        for codec in CODECS:
            require_corrupt(codec, payload)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "dtype",
        [
            *(
                "|O",
                "O",
                "<O8",
                "object",
                "|V8",
                "<f16",
                ">c32",
                "i4,O",
                "[('a','O')]",
                "float64",
                "=i4",
                "i4",
                "<i3",
                "<b1",
                "|i4",
            ),
            *(
                "",
                "<U-1",
                "<U999999999",
                "<M8[0s]",
                "<M8[s/2]",
                "<M8[generic]",
                "<M8[x]",
                "(2,)<i4",
                "T",
                "<i4\n",
                "<i٤",
                "a" * 200,
            ),
        ],
    )
    def test_dtypes_that_are_not_allowed(self, dtype):
        for kind, code in (("ndarray", 20), ("scalar", 21), ("tensor", 22)):
            if (kind, dtype) == ("tensor", "float64"):
                continue  # torch's word for it
            shape = [] if kind == "scalar" else [1]
            require_corrupt(self.MSGPACK, array_extension(dtype, shape, b"A" * 8, code))
            require_corrupt(self.JSON, array_object(dtype, shape, b"A" * 8, kind))

    @pytest.mark.parametrize("dtype", ["<b1", "<i1", "|i4", "|c8", "<S1", "|U1"])
    def test_dtypes_that_numpy_writes_otherwise(self, dtype):
        data = bytes(np.dtype(dtype).itemsize)
        require_corrupt(self.MSGPACK, array_extension(dtype, [1], data), "only plain numbers")
        require_corrupt(self.JSON, array_object(dtype, [1], data), "only plain numbers")

    @pytest.mark.parametrize(
        "shape",
        [[2**40], [2**32, 2**32], [2**63, 2], [0, 2**63], [3], [1] * 65, [1] * 100, [0, 2**64 - 1]],
        ids=str,
    )
    @pytest.mark.parametrize("kind", ["ndarray", "tensor"])
    def test_shapes_that_do_not_fit(self, shape, kind):
        dtype, code = ("<i8", 20) if kind == "ndarray" else ("int64", 22)
        data = b"" if 0 in shape else b"A" * 8
        if len(shape) < 100:
            require_corrupt(self.MSGPACK, array_extension(dtype, shape, data, code))
        require_corrupt(self.JSON, array_object(dtype, shape, data, kind))

    @pytest.mark.parametrize(
        "shape", [[-1], [-1, -1], [2.0], [True], ["1"], [None], [[1]], "1", None, 1, [2**9999, 1], {"a": 1}]
    )
    def test_shapes_that_are_none(self, shape):
        for kind, dtype in (("ndarray", "<i8"), ("tensor", "int64")):
            require_corrupt(self.JSON, array_object(dtype, shape, b"A" * 8, kind))

    def test_arrays_without_bytes_have_no_size(self):
        require_corrupt(self.MSGPACK, array_extension("|S0", [2**40], b""))
        require_corrupt(self.JSON, array_object("<U0", [2**40], b""))

    def test_a_scalar_that_is_an_array(self):
        require_corrupt(self.MSGPACK, array_extension("<i8", [1], bytes(8), 21))
        require_corrupt(self.JSON, array_object("<i8", [1], bytes(8), "scalar"))

    def test_values_that_there_are_not(self):
        for dtype, data in (("|b1", b"\x02"), ("<U1", b"\xff\xff\xff\x7f"), (">U1", b"\x00\x11\x00\x00")):
            require_corrupt(self.MSGPACK, array_extension(dtype, [1], data))
            require_corrupt(self.JSON, array_object(dtype, [1], data))
        require_corrupt(self.MSGPACK, array_extension("bool", [1], b"\x02", 22))

    @pytest.mark.parametrize("head", [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"], ids=bytes.hex)
    @pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1, 2**20])
    def test_lengths_that_are_not_there(self, head, length):
        require_corrupt(self.MSGPACK, head + struct.pack(">I", length))
        require_corrupt(self.MSGPACK, head + struct.pack(">I", length) + b"\x14" + b"A" * 100)

    @pytest.mark.parametrize("head", [b"\xdd", b"\xdf"], ids=["array", "map"])
    def test_lengths_that_could_be_there_at_each_of_many_levels(self, head):
        size = 2_000_000
        for declared in (size, 65535, 1 << 14):
            level = head + struct.pack(">I", declared) + (b"\xa1k" if head == b"\xdf" else b"")
            require_corrupt(self.MSGPACK, (level * 500).ljust(size, b"\xc0"))
            nested = extension(1, b"")
            require_corrupt(self.MSGPACK, b"\x92" + nested + (level * 500).ljust(size, b"\xc0"))

    @pytest.mark.parametrize("error", [RecursionError, OverflowError, msgpack.OutOfData])
    def test_what_other_versions_of_msgpack_raise(self, monkeypatch, error):
        def unpackb(*args, **options):
            raise error

        monkeypatch.setattr("msgpack.unpackb", unpackb)
        require_corrupt(self.MSGPACK, b"\xc0", error.__name__)

    @pytest.mark.slow
    def test_memory_is_bounded_by_the_bytes(self):
        empty = b"\xdc\x40\x00" + b"\x90" * (1 << 14)
        for codec, data in ((self.MSGPACK, b"\x9f" + empty * 15), (self.JSON, b"[" + b"[]," * 80_000 + b"[]]")):
            tracemalloc.start()
            try:
                assert len(codec.decode(data)) >= 15
                assert tracemalloc.get_traced_memory()[1] < 100 * len(data)
            finally:
                tracemalloc.stop()

    @pytest.mark.parametrize("levels", [65, 200, 511, 1000, 100_000])
    def test_many_levels(self, levels):
        require_corrupt(self.MSGPACK, b"\x91" * levels + b"\xc0")
        require_corrupt(self.MSGPACK, b"\x81\xa1a" * levels + b"\xc0")
        require_corrupt(self.MSGPACK, b"\x92\xc7\x00\x01\x91" * levels + b"\xc0")
        require_corrupt(self.JSON, b"[" * levels + b"]" * levels)
        require_corrupt(self.JSON, b'{"a":' * levels + b"1" + b"}" * levels)
        require_corrupt(self.JSON, b"[" * levels)
        require_corrupt(self.JSON, b'{"%s":"tuple","items":[' % TAG.encode() * levels + b"]}" * levels)

    @pytest.mark.parametrize(
        "text",
        [
            '{"a": 1, "a": 2}',
            '{"a": {"b": 1, "b": 1}}',
            "NaN",
            "[Infinity]",
            '{"a": -Infinity}',
            "1" * 5000,
            "01",
            '"\n"',
            "",
            " ",
            "\ufeff1",
            "'a'",
            "[1,]",
            "{} {}",
        ],
    )
    def test_json_that_is_none(self, text):
        require_corrupt(self.JSON, text.encode())
        require_corrupt(self.JSON, b"\xff")
        require_corrupt(self.JSON, text.encode("utf-16"))

    @pytest.mark.parametrize(
        "tagged",
        [
            {TAG: "object", "data": ""},
            {TAG: "bytes"},
            {TAG: "bytes", "data": 1},
            {TAG: "bytes", "data": "é"},
            {TAG: "bytes", "data": "QQ"},
            {TAG: "bytes", "data": "QQ==QQ=="},
            {TAG: "bytes", "data": "Q\nQ=="},
            {TAG: "bytes", "data": "", "more": 1},
            {TAG: "float", "data": ""},
            {TAG: "complex", "data": "QUFB"},
            {TAG: "int", "data": ""},
            {TAG: "str_", "data": "/w=="},
            {TAG: "tuple", "items": {}},
            {TAG: "tuple", "items": [], "data": ""},
            {TAG: "tuple"},
            {TAG: "dict", "pairs": {}},
            {TAG: "dict", "pairs": [["a"]]},
            {TAG: "dict", "pairs": [[]]},
            {TAG: "dict", "pairs": [[1, 2]]},
            {TAG: "dict", "pairs": [["a", 1], ["a", 2]]},
            {TAG: {TAG: "ndarray", "dtype": "<i4", "shape": [2], "data": "AAAAAAAAAAA="}, "data": ""},
            {TAG: {TAG: "ndarray", "dtype": "|S5", "shape": [1], "data": "dHVwbGU="}, "items": []},
            {TAG: {TAG: "str_", "data": "dHVwbGU="}, "items": []},
            {TAG: None},
            {TAG: ["tuple"], "items": []},
            {TAG: "x" * 10_000, "data": ""},
            {TAG: "ndarray", "dtype": 1, "shape": [], "data": ""},
            {TAG: "ndarray", "shape": [0], "data": ""},
        ],
        ids=lambda tagged: json.dumps(tagged)[:60],
    )
    def test_tags_that_are_none(self, tagged):
        require_corrupt(self.JSON, json.dumps(tagged).encode())
        require_corrupt(self.JSON, json.dumps({"a": [tagged]}).encode())

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xc1",
            b"\x82\xa1a\x01\xa1a\x02",  # one key twice
            b"\x81\x01\x02",  # a number as a key
            b"\x81\xc4\x01a\x02",  # bytes as a key
            b"\x81\xc7\x00\x01\x02",  # a mark as a key
            b"\x81" + array_extension("<i4", [1], bytes(4)) + b"\x01",
            b"\xa1\xff",  # no text
            extension(1, b""),  # marks where none should be
            b"\x92\x01" + extension(1, b""),
            b"\x81\xa1a" + extension(2, b""),
            b"\x91" + extension(1, b""),  # and without what they mark
            b"\x92" + extension(1, b"") + b"\x01",
            b"\x93" + extension(1, b"") + b"\x90\x90",
            b"\x92" + extension(2, b"") + b"\x91\x01",
            b"\x92" + extension(2, b"") + b"\x92\x90" + extension(1, b""),
            b"\x92" + extension(3, b"") + b"\x90",
            b"\x93" + extension(3, b"") + b"\x91\x01\x91\x01",
            b"\x93" + extension(3, b"") + b"\x91\xa1a\x90",
            b"\x93" + extension(3, b"") + b"\x92\xa1a\xa1a\x92\x01\x02",
            extension(1, b"x"),
            b"\x92" + extension(1, b"x") + b"\x90",
            msgpack.packb([None] * 16385),
            msgpack.packb(dict.fromkeys(map(str, range(16385)))),
            extension(99, b""),
            extension(-1, bytes(4)),  # a timestamp
            b"\x91" + extension(-1, bytes(4)),
            extension(-1, bytes(3)),
            extension(10, b""),
            extension(11, b"x"),
            extension(12, b"\xff"),
            extension(20, b""),
            extension(20, b"\x03<i4"),
            extension(20, b"\x03<i4\xff" + bytes(100)),
            extension(20, b"\x02\xff\xff\x00"),
            extension(22, b"\x05uint8\x01\x00"),
            array_extension("qint8", [1], b"x", 22),
            array_extension("__class__", [1], b"x", 22),
        ],
        ids=lambda data: data[:20].hex(),
    )
    def test_msgpack_that_is_none(self, data):
        require_corrupt(self.MSGPACK, data)
