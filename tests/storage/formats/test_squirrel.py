"""Shards that squirrel-core has written."""

import gzip
import json
import tracemalloc

import fsspec
import msgpack
import msgpack_numpy
import numpy as np
import pytest
from squirrel import serialization
from squirrel import store as stores

from squirrel_torch import CorruptDataError, IterableSource, StoreError
from squirrel_torch.storage.formats import SquirrelShards
from tests.storage.formats.support import check, cut_everywhere, flip_everywhere, same


def samples(count):
    return [
        {
            "image": np.arange(12, dtype="u1").reshape(2, 2, 3) + np.uint8(number),
            "scalar": np.float32(number),
            "flag": np.bool_(True),
            "complex": 1 + 2j,
            "text": f"text {number} é",
            "bytes": bytes([number]),
            "nested": {"list": (1, None, (2.5, True)), "empty": ()},
            "texts": np.array(["é", "ab"]),
            "nothing": np.zeros((0, 3), "<i8"),
            "by columns": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        }
        for number in range(count)
    ]


def plain(samples):
    return [
        {name: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value for name, value in sample.items()}
        for sample in samples
    ]


def pack(*values):
    return b"".join(msgpack.packb(value, default=msgpack_numpy.encode) for value in values)


def read(tmp_path, data, **options):
    (tmp_path / "a.gz").write_bytes(gzip.compress(data))
    return list(SquirrelShards(tmp_path, **options))


def array(**changes):
    return {b"nd": True, b"type": "<i8", b"kind": b"", b"shape": [1], b"data": bytes(8), **changes}


class TestMsgpack:
    def test_a_store(self, tmp_path):
        store = stores.SquirrelStore(str(tmp_path), serializer=serialization.MessagepackSerializer())
        written = samples(25)
        for number in range(5):
            store.set(written[number * 5 : number * 5 + 5], key=f"shard{number}")
        check(SquirrelShards(tmp_path), plain(written))
        theirs = [sample for key in sorted(store.keys()) for sample in store.get(key)]
        assert same(theirs, list(SquirrelShards(tmp_path)))

    def test_on_another_filesystem(self):
        store = stores.SquirrelStore("memory://squirrel-store", serializer=serialization.MessagepackSerializer())
        store.set(samples(3), key="a")
        check(SquirrelShards("memory://squirrel-store"), plain(samples(3)))
        assert fsspec.filesystem("memory").exists("/squirrel-store/a.gz")

    def test_arrays_can_be_written(self, tmp_path):
        (sample,) = read(tmp_path, pack({"x": np.arange(3)}))
        assert sample["x"].flags.writeable

    def test_larger_than_what_is_read_at_once(self, tmp_path):
        written = [{"x": np.random.default_rng(number).bytes(number * 60_000)} for number in range(12)]
        (tmp_path / "a.gz").write_bytes(gzip.compress(pack(*written), 1))
        check(SquirrelShards(tmp_path), written)

    def test_times(self, tmp_path):
        (sample,) = read(tmp_path, pack(array() | {b"type": "<M8[D]"}))
        assert same(sample, np.zeros(1, "M8[D]"))

    def test_keys_that_squirrel_can_not_read(self, tmp_path):
        assert read(tmp_path, pack({1: "a", b"b": 2, (1, 2): 3})) == [{1: "a", b"b": 2, (1, 2): 3}]

    def test_cut_at_every_byte(self, tmp_path):
        path = tmp_path / "a.gz"
        for data, expected in ((pack(*samples(2)), plain(samples(2))), (pack({"a": 1}, [1, 2], "x"), [{"a": 1}, (1, 2), "x"])):
            compressed = gzip.compress(data)
            path.write_bytes(compressed)
            assert cut_everywhere(compressed, path, lambda: SquirrelShards(path), expected) == len(compressed)

    def test_every_byte_changed(self, tmp_path):
        path = tmp_path / "a.gz"
        data = gzip.compress(pack({"a": np.arange(3)}))
        path.write_bytes(data)
        raised = flip_everywhere(data, path, lambda: SquirrelShards(path), [{"a": np.arange(3)}])
        assert raised > 3 * (len(data) - 10)

    def test_cut_in_front_of_the_compression(self, tmp_path):
        data, expected = pack(*samples(2)), plain(samples(2))
        length = len(pack(*samples(1)))
        for size in range(1, len(data)):
            (tmp_path / "a.gz").write_bytes(gzip.compress(data[:size], 1))
            got = []
            try:
                got.extend(SquirrelShards(tmp_path))
            except CorruptDataError as error:
                assert size != length
                assert "is cut off" in str(error)  # noqa: PT017
            else:
                assert size == length
                assert same(got, expected[:1])

    def test_more_behind_the_end(self, tmp_path):
        data = gzip.compress(pack(*samples(2)))
        (tmp_path / "a.gz").write_bytes(data + b"garbage")
        with pytest.raises(CorruptDataError, match="can't be decompressed"):
            list(SquirrelShards(tmp_path))
        (tmp_path / "a.gz").write_bytes(data + data)
        check(SquirrelShards(tmp_path), plain(samples(2)) * 2)

    def test_an_empty_shard(self, tmp_path):
        store = stores.SquirrelStore(str(tmp_path), serializer=serialization.MessagepackSerializer())
        with pytest.raises(TypeError):
            store.set([{"x": object()}], key="a")
        with pytest.raises(CorruptDataError, match=r"a\.gz', byte 0: it holds no sample: squirrel-core leaves such a shard"):
            list(SquirrelShards(tmp_path))

    def test_an_error_stays(self, tmp_path):
        (tmp_path / "a.gz").write_bytes(gzip.compress(pack({"a": 1}, {"b": 2})[:-1]))
        run = iter(IterableSource(SquirrelShards(tmp_path)))
        assert next(run) == {"a": 1}
        for _ in range(2):
            with pytest.raises(CorruptDataError, match="sample 1: it is cut off"):
                next(run)


class TestHarmfulMsgpack:
    PICKLE = b"c__builtin__\nopen\n(S'PWNED'\nS'w'\ntR."

    @pytest.mark.parametrize(
        "value",
        [
            array() | {b"kind": b"O", b"data": PICKLE},
            array() | {b"kind": "O", b"data": PICKLE},
            array() | {b"kind": b"V", b"type": [["x", "|O"]], b"data": b"A" * 8},
            array() | {b"kind": b"V", b"type": [["x", "<i8"]]},
            array() | {b"type": "|O", b"data": b"A" * 8},
            array() | {b"type": b"O", b"data": b"A" * 8},
            array() | {b"type": "object", b"data": b"A" * 8},
            array() | {b"type": [["x", "|O"]], b"data": b"A" * 8},
            {b"nd": False, b"type": "|O", b"data": b"A" * 8},
            {b"nd": False, b"type": "|V8", b"data": b"A" * 8},
        ],
    )
    def test_objects(self, tmp_path, value, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(StoreError, match=r"a\.gz', sample 1: it holds an array of dtype .* made of pickle"):
            read(tmp_path, pack({"good": 1}, {"x": [value]}))
        assert not (tmp_path / "PWNED").exists()

    @pytest.mark.parametrize(
        "value",
        [
            array() | {b"shape": [2**40]},
            array() | {b"shape": [-1]},
            array() | {b"shape": [2**32, 2**32]},
            array() | {b"shape": [2**62, 4]},
            array() | {b"shape": [2**63, 0]},
            array() | {b"shape": [1.0]},
            array() | {b"shape": [True]},
            array() | {b"shape": 1},
            array() | {b"shape": [1] * 100},
            array() | {b"data": bytes(9)},
            array() | {b"data": "12345678"},
            array() | {b"data": None},
            array() | {b"type": "nonsense"},
            array() | {b"type": "<i3"},
            array() | {b"type": "<i8,<i8"},
            array() | {b"type": None},
            array() | {b"type": "|S0", b"shape": [2**40], b"data": b""},
            array() | {b"type": "<U99999999999", b"shape": [0], b"data": b""},
            array() | {b"more": 1},
            {b"nd": True},
            {b"nd": 1, b"type": "<i8", b"shape": [1], b"data": bytes(8)},
            {b"nd": False, b"type": "<i8", b"data": bytes(16)},
            {b"complex": True, b"data": "1+2x"},
            {b"complex": True, b"data": "1" * 1000},
            {b"complex": True},
        ],
    )
    def test_lies(self, tmp_path, value):
        with pytest.raises(CorruptDataError, match=r"a\.gz', sample 0: it can't be decoded"):
            read(tmp_path, pack({"x": value}))

    @pytest.mark.parametrize(
        "data",
        [
            b"\xdd\x7f\xff\xff\xff" + b"\x01" * 10,
            b"\xdf\x7f\xff\xff\xff" + b"\x01" * 10,
            b"\xc6\x7f\xff\xff\xff" + b"\x01" * 10,
            b"\xdb\x7f\xff\xff\xff" + b"\x01" * 10,
            b"\x91" * 500 + b"\xdd\x7f\xff\xff\xff" * 500,
            b"\xdd\x00\x10\x00\x00" * 1000,
            b"\x91" * 100_000,
            b"\xc1",
            b"\x91\xc1",
            b"\xd4\x05\x00",
            b"\xa1\xff",
            b"\x81\x80\x01",
            b"\x82\xa1a\x01\xa1a\x02",
            b"\x81" * 100_000 + b"\x01",
        ],
    )
    def test_structures(self, tmp_path, data):
        tracemalloc.start()
        try:
            with pytest.raises(CorruptDataError, match=r"sample 1: it (is no msgpack|can't be decoded|is cut off)"):
                read(tmp_path, pack({"good": 1}) + data, serializer="msgpack")
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()

    def test_samples_that_are_too_large(self, tmp_path):
        for size in (2_000_000, 100_000, 400_000):
            data = pack(*({"a": number} for number in range(30_000)), {"b": np.random.default_rng(0).bytes(size)})
            with pytest.raises(CorruptDataError, match="sample 30000: it has more than max_sample_bytes=100000"):
                read(tmp_path, data, max_sample_bytes=100_000)
        assert len(read(tmp_path, data, max_sample_bytes=400_010)) == 30_001

    def test_a_bomb(self, tmp_path):
        bomb = gzip.compress(b"\xc6\x0f\x00\x00\x00" + bytes(0x0F000000))
        (tmp_path / "a.gz").write_bytes(bomb)
        with pytest.raises(CorruptDataError, match="over 200 times its compressed size"):
            list(SquirrelShards(tmp_path))


class TestJson:
    def test_a_store(self, tmp_path, monkeypatch):
        # Squirrel-core's encoder names a type that numpy 2 has no more.
        monkeypatch.setattr(np, "float_", np.float64, raising=False)
        store = stores.SquirrelStore(str(tmp_path), serializer=serialization.JsonSerializer())
        written = [{"n": number, "x": np.arange(6, dtype="f4").reshape(2, 3), "list": [1, None]} for number in range(7)]
        store.set(written, key="a")
        store.set(written, key="b")
        check(SquirrelShards(tmp_path), written * 2)
        assert same(list(store.get("a")), written)

    def test_the_serializer_is_seen(self, tmp_path):
        assert read(tmp_path, b'{"a": 1}\n') == [{"a": 1}]
        assert read(tmp_path, b'{"a": 1}\n', serializer="json") == [{"a": 1}]
        assert read(tmp_path, b"1\n2\n", serializer="json") == [1, 2]
        assert read(tmp_path, b"\x01\x02", serializer="msgpack") == [1, 2]
        with pytest.raises(StoreError, match="say serializer='msgpack' or serializer='json'"):
            read(tmp_path, b"1\n2\n")
        with pytest.raises(ValueError, match="serializer must be"):
            SquirrelShards(tmp_path, serializer="pickle")

    def test_what_only_looks_like_an_array(self, tmp_path):
        line = {"data": [1], "type": "x", "shape": [1], "more": 1}
        assert read(tmp_path, json.dumps(line).encode() + b"\n") == [line]

    @pytest.mark.parametrize(
        ("value", "error"),
        [
            ({"data": ["x"], "type": "|O", "shape": [1]}, StoreError),
            ({"data": [1], "type": "|V4", "shape": [1]}, StoreError),
            ({"data": [1], "type": "no", "shape": [1]}, CorruptDataError),
            ({"data": [1], "type": "<i4", "shape": [2]}, CorruptDataError),
            ({"data": [1], "type": "<i4", "shape": [-1]}, CorruptDataError),
            ({"data": [1], "type": "<i4", "shape": "1"}, CorruptDataError),
            ({"data": [1, [2]], "type": "<i4", "shape": [2]}, CorruptDataError),
            ({"data": [None], "type": "<i4", "shape": [1]}, CorruptDataError),
            ({"data": [300], "type": "|u1", "shape": [1]}, CorruptDataError),
        ],
    )
    def test_lies(self, tmp_path, value, error):
        with pytest.raises(error, match=r"a\.gz', line 2"):
            read(tmp_path, b"{}\n" + json.dumps({"x": value}).encode() + b"\n")
