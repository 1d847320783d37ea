"""Shards and manifests that are broken, made to harm, half written, raced for, or on storage that fails."""

import copy
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import xxhash
from fsspec.implementations.memory import MemoryFileSystem

from squirrel_torch import CorruptDataError, DatasetExistsError, IterableSource, ShardStore, StoreError
from squirrel_torch.storage.shards import written as shard_module
from squirrel_torch.storage.shards.field import Field, field_from_json
from squirrel_torch.storage.shards.manifest import Manifest, _sum, latest
from tests.faults.children import end, kill, outcome, start
from tests.support import PYARROW

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

SAMPLES = [{"n": n, "s": f"text {n}", "x": np.full(3, n, np.int16), "v": np.arange(float(n)), "l": [n] * n} for n in range(5)]


def plain(rows):
    return [{**row, "x": row["x"].tolist(), "v": row["v"].tolist()} for row in rows]


RIGHT = plain(SAMPLES)


def make(folder, samples=SAMPLES, block_rows=2, **options):
    """A small dataset of small blocks."""
    before, shard_module._MOST_ROWS = shard_module._MOST_ROWS, block_rows
    try:
        with ShardStore(folder, **options) as store:
            store.set_many(samples)
    finally:
        shard_module._MOST_ROWS = before
    return store


def shards(folder):
    return sorted((Path(folder) / "shards").iterdir())


def manifests(folder):
    return sorted((Path(folder) / "manifest").iterdir())


def check_read(folder, verify):
    """The right data or a StoreError, and the error before any sample of a block that is bad."""
    store, rows = ShardStore(folder, verify=verify), []
    try:
        for row in store:
            rows.append(row)
    except StoreError:
        assert plain(rows) == RIGHT[: len(rows)]
        return False
    assert plain(rows) == RIGHT
    return True


class TestBytes:
    @pytest.mark.slow
    @pytest.mark.parametrize("compression", [None, "lz4"])
    @pytest.mark.parametrize("verify", ["shard", "block"])
    def test_every_byte_flipped(self, tmp_path, verify, compression):
        make(tmp_path, compression=compression)
        (path,) = shards(tmp_path)
        data = path.read_bytes()
        passed = 0
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
            passed += check_read(tmp_path, verify)
        assert passed == 0 if verify == "shard" else passed < len(data) * 0.8  # what lies between blocks is not read
        path.write_bytes(data)
        assert check_read(tmp_path, verify)

    @pytest.mark.slow
    @pytest.mark.parametrize("verify", ["shard", "block"])
    def test_every_length(self, tmp_path, verify):
        make(tmp_path)
        (path,) = shards(tmp_path)
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            assert not check_read(tmp_path, verify)
        for more in (b"\0", b"x" * 4096, data):
            path.write_bytes(data + more)
            assert not check_read(tmp_path, verify)

    @pytest.mark.slow
    @pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
    def test_without_verification_nothing_dies(self, tmp_path, compression):
        make(tmp_path, compression=compression)
        (path,) = shards(tmp_path)
        data = path.read_bytes()

        def flipped_and_cut():
            for place in range(0, len(data), 1 if compression is None else 3):
                path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
                try:
                    for row in ShardStore(tmp_path, verify="never"):
                        repr(row)
                except StoreError:
                    pass
                except Exception as error:  # noqa: BLE001
                    return f"byte {place}: {type(error).__name__}: {error}"
            return None

        told = outcome(flipped_and_cut, seconds=60)
        assert (told.error, told.value) == (None, None)

    def test_swapped(self, tmp_path):
        make(tmp_path, shard_rows=2)
        one, other, _ = shards(tmp_path)
        data = one.read_bytes(), other.read_bytes()
        one.write_bytes(data[1])
        other.write_bytes(data[0])
        for verify in ("shard", "block"):
            with pytest.raises(CorruptDataError):
                list(ShardStore(tmp_path, verify=verify))

    @pytest.mark.parametrize("verify", ["shard", "block", "never"])
    def test_missing(self, tmp_path, verify):
        store = make(tmp_path, shard_rows=2, verify=verify)
        path = Path(tmp_path) / "shards" / store.manifest.shards[1].name
        path.unlink()
        rows = []
        with pytest.raises(CorruptDataError, match="is missing: the manifest lists it with 2 rows"):
            rows.extend(store)
        assert plain(rows) == RIGHT[: len(rows)]
        path.mkdir()
        with pytest.raises(StoreError):
            list(store)

    def test_the_error_names_the_file_and_the_rows(self, tmp_path):
        store = make(tmp_path)
        (path,) = shards(tmp_path)
        end_of_first = store.manifest.shards[0].ends[1]
        data = bytearray(path.read_bytes())
        data[end_of_first + 60] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptDataError, match=rf"{path.name} \(rows 0 to 4\) has another checksum"):
            list(ShardStore(tmp_path))
        rows = []
        with pytest.raises(CorruptDataError, match=rf"{path.name}, rows 2 to 3: .* another checksum"):
            rows.extend(ShardStore(tmp_path, verify="block"))
        assert ShardStore(tmp_path, verify="block").row(4)["n"] == 4

    def test_not_a_step_further_after_an_error(self, tmp_path):
        make(tmp_path, shard_rows=1)
        store = ShardStore(tmp_path)
        path = tmp_path / "shards" / store.manifest.shards[2].name
        path.write_bytes(path.read_bytes()[:-1])
        stream = IterableSource(store).map(lambda row: row["n"])
        rows = []
        with pytest.raises(CorruptDataError):
            rows.extend(stream)
        assert rows == [0, 1]

    @pytest.mark.slow
    def test_every_byte_of_the_manifest(self, tmp_path):
        make(tmp_path)
        (path,) = manifests(tmp_path)
        data = path.read_bytes()
        for place in range(len(data)):
            for content in (data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :], data[:place]):
                path.write_bytes(content)
                try:
                    rows = list(ShardStore(tmp_path))
                except StoreError:
                    continue
                assert plain(rows) == RIGHT
        for more in (b"x", data, b"\0"):
            path.write_bytes(data + more)
            with pytest.raises(CorruptDataError):
                list(ShardStore(tmp_path))


# -- manifests that are made to harm ----------------------------------------------------------------------------------


def forged(folder, change, right_sum=True):
    """The manifest in `folder`, changed, and with the checksum that it should have then."""
    (path,) = manifests(folder)
    content = json.loads(path.read_bytes())["content"]
    result = change(content)
    if isinstance(result, bytes):
        path.write_bytes(result)
        return
    content = content if result is None else result
    path.write_text(json.dumps({"checksum": _sum(content) if right_sum else "0" * 32, "content": content}))


def at(*path):
    """Sets a value at a place of the content."""
    *path, value = path

    def change(content):
        for one in path[:-1]:
            content = content[one]
        content[path[-1]] = value

    return change


def nested(depth, kind="[", inside="1"):
    close = {"[": "]", '{"a":': "}"}[kind]
    return (kind * depth + inside + close * depth).encode()


def raw(place, text):
    """The bytes of a sound manifest, in which the value at `place` (a marker) is `text`; its sum is right where it can be."""

    def change(content):
        marked = json.dumps({"checksum": "0" * 32, "content": {**content, place: "MARK"}}).encode()
        return marked.replace(b'"MARK"', text)

    return change


def shard_of(**values):
    def change(content):
        content["shards"][0].update(values)

    return change


DEEP = [[]]
for _ in range(900):
    DEEP = [DEEP]

HOSTILE = {
    **{
        f"name {name!r}": shard_of(name=name)
        for name in (
            *("../../x", "..", ".", "/etc/passwd", "a\0b", "", " ", ".hidden", "a/b", "a\\b", "a\n", "x" * 201, "../shards/x"),
            *("ü", None, 3, [], "-x", "a.arrow\n", "~", "$HOME", "C:x", "memory://x"),
        )
    },
    **{
        f"{name} {value!r}": shard_of(**{name: value})
        for name in ("rows", "bytes", "schema", "block_rows")
        for value in (2**60, 2**70, 10**400, -1, True, False, 1.0, "5", None, [], {}, float("inf"))
        if (name, value) != ("schema", False)
    },
    **{
        f"{name} {value!r}"[:60]: shard_of(**{name: value})
        for name, values in {
            "ends": ([], [0], [1] * 5, [-1, 2, 3, 4], [3, 2, 1, 0], [1, 2, 3, 2**80], "abc", None, [0, 1, 2, True], [0.0] * 4),
            "sums": ("", "0" * 15, "g" * 48, "0" * 32, None, 5, "0" * 48 + "\n", "0" * 64, ["0" * 16] * 3),
            "xxh3": ("", "0" * 31, "G" * 32, None, 5, "0" * 32),
            "keyed": (1, None, "x"),
            "compression": ("gzip", 1, [], {}),
        }.items()
        for value in values
    },
    "bytes 1": shard_of(bytes=1),
    "more rows": shard_of(rows=6),
    "fewer rows": lambda content: (content["shards"][0].update(rows=4), content.update(rows=4))[2:] or None,
    "rows of all": at("rows", 6),
    "rows of all are true": at("rows", True),
    "number": at("number", 2),
    "another format": at("format", "x"),
    "a later version": at("version", 2),
    "version deep": at("version", DEEP),
    "a shard twice": lambda content: content.update(shards=content["shards"] * 2, rows=10),
    "shards is a dict": at("shards", {"a": 1}),
    "shards is text": at("shards", "abc"),
    "shards is none": at("shards", None),
    "shards is a number": at("shards", 7),
    "a shard is a list": at("shards", [[1]]),
    "a shard is deep": at("shards", [DEEP]),
    "a value is deep": shard_of(name=DEEP),
    "rows are deep": shard_of(rows=DEEP),
    "ends are deep": shard_of(ends=DEEP),
    "no schemas": at("schemas", []),
    "schemas is text": at("schemas", "abc"),
    "metadata is a list": at("metadata", []),
    "jobs is a number": at("jobs", 1),
    "jobs are numbers": at("jobs", [1]),
    "jobs is text": at("jobs", "abc"),
    "content is a list": lambda content: [],
    "content is empty": lambda content: {},
    "wrong sum": lambda content: json.dumps({"checksum": "0" * 32, "content": content}).encode(),
    "sum is a list": lambda content: json.dumps({"checksum": [], "content": content}).encode(),
    "more keys": lambda content: json.dumps({"checksum": _sum(content), "content": content, "x": 1}).encode(),
    "a key twice": lambda content: (
        json.dumps({"checksum": _sum(content), "content": content}).replace('"rows"', '"name"').encode()
    ),
    "a key twice, the last one right": lambda content: (
        json.dumps({"checksum": _sum(content), "content": content}).replace('"rows"', '"rows": 9, "rows"', 1).encode()
    ),
    "a million shards": at("shards", [{}] * 1_000_000),
    "a million names": at("shards", ["x"] * 1_000_000),
    "a million ends": shard_of(ends=list(range(1_000_000))),
    "a million sums": shard_of(sums="0" * 16_000_000),
    "empty": lambda content: b"",
    "zeros": lambda content: b"\0" * 100,
    "nan": raw("rows", b"NaN"),
    "infinity": raw("rows", b"-Infinity"),
    "a large float": raw("rows", b"1e999"),
    "a long number": raw("rows", b"1" * 1_000_000),
    "surrogates": raw("metadata", b'"\\ud800"'),
    "bad utf-8": raw("metadata", b'"\xff"'),
    **{
        f"deep {depth} {kind}": (lambda c, d=depth, k=kind: nested(d, k))
        for depth in (200, 900, 1000, 5000, 10**6)
        for kind in ("[", '{"a":')
    },
    **{f"metadata deep {depth}": raw("metadata", nested(depth)) for depth in (*range(900, 1010, 2), 10**5)},
}
FIELDS = {
    "kind": {"kind": "object"},
    "kind is a list": {"kind": []},
    "python objects": {"kind": "array", "dtype": "|O", "shape": [1], "ndim": 1},
    "records": {"kind": "array", "dtype": "|V8", "shape": [1], "ndim": 1},
    "fields of records": {"kind": "array", "dtype": "i4,O", "shape": [1], "ndim": 1},
    "long doubles": {"kind": "array", "dtype": "<f16", "shape": [1], "ndim": 1},
    "a wide text": {"kind": "array", "dtype": "<U536870911", "shape": [1], "ndim": 1},
    "a text of no width": {"kind": "array", "dtype": "<U0", "shape": [1], "ndim": 1},
    "negative": {"kind": "array", "dtype": "<f4", "shape": [-1], "ndim": 1},
    "large": {"kind": "array", "dtype": "<f4", "shape": [2**40], "ndim": 1},
    "larger": {"kind": "array", "dtype": "<f4", "shape": [2**31], "ndim": 1},
    "largest": {"kind": "array", "dtype": "<f4", "shape": [2**31 - 1], "ndim": 1},
    "large and none": {"kind": "array", "dtype": "<f4", "shape": [2**40, 0, 2**40], "ndim": 3},
    "overflow": {"kind": "array", "dtype": "<f4", "shape": [2**40, 2**40], "ndim": 2},
    "many dimensions": {"kind": "array", "dtype": "<f4", "shape": [1] * 100, "ndim": 100},
    "very many dimensions": {"kind": "array", "dtype": "<f4", "shape": [2**40] * 300_000, "ndim": 300_000},
    "another ndim": {"kind": "array", "dtype": "<f4", "shape": [1], "ndim": 2},
    "a true shape": {"kind": "array", "dtype": "<f4", "shape": [True], "ndim": 1},
    "an attribute of torch": {"kind": "tensor", "dtype": "load", "shape": [1], "ndim": 1},
    "quantized": {"kind": "tensor", "dtype": "quint8", "shape": [1], "ndim": 1},
    "one name twice": {"kind": "dict", "names": ["a", "a"], "parts": [{"kind": "int"}] * 2},
    "names missing": {"kind": "dict", "parts": [{"kind": "int"}] * 2},
    "names of a surrogate": {"kind": "dict", "names": ["\ud800"], "parts": [{"kind": "int"}]},
    "names that are none": {"kind": "dict", "names": [1], "parts": [{"kind": "int"}]},
    "a list of two": {"kind": "list", "parts": [{"kind": "int"}] * 2},
    "a list of nothing": {"kind": "list"},
    "an int with parts": {"kind": "int", "parts": [{"kind": "int"}]},
    "nullable 1": {"kind": "int", "nullable": 1},
    "unknown keys": {"kind": "int", "x": 1},
    "wide": {"kind": "tuple", "parts": [{"kind": "int"}] * 300_000},
    "another type": {"kind": "int"},
    "none": {"kind": "none", "nullable": True},
    "date without unit": {"kind": "scalar", "dtype": "<M8[1000000000000Y]"},
    "a command": {"kind": "scalar", "dtype": "__import__('os').system('touch PWNED')"},
}
NESTED = {"kind": "int"}
for _ in range(400):
    NESTED = {"kind": "list", "parts": [NESTED]}
FIELDS["deep"] = NESTED
_deep = {"kind": "int"}
for _ in range(64):
    _deep = {"kind": "list", "parts": [_deep]}
FIELDS["deeper than arrow reads"] = _deep
HOSTILE.update({f"field: {name}": at("schemas", 0, field) for name, field in FIELDS.items()})


def read_all(folder):
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))  # what goes wrong here must not take the machine along
    for verify in ("shard", "never"):
        store = ShardStore(folder, verify=verify)
        try:
            rows = list(store)
        except StoreError:
            if verify == "shard":
                len(store)  # its own error if the manifest is unsound
                store.schema  # noqa: B018
                raise
            continue
        if rows == [0, 1, 2, 3, 4]:
            return "the column of another type"
        if plain(rows) != RIGHT:
            return f"other data: {str(rows)[:200]}"
    return None


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    make(folder)
    return folder


def skip_before_pyarrow_24(name, what):
    if name == what and PYARROW < 24:
        pytest.skip("pyarrow compares columns without values with what they are read as from version 24 on: these are None")


class TestHostileManifests:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_is_refused(self, tmp_path, small, name):
        skip_before_pyarrow_24(name, "field: none")
        folder = tmp_path / "data"
        shutil.copytree(small, folder)
        forged(folder, HOSTILE[name])
        told = outcome(read_all, folder, seconds=20)
        if name == "xxh3 '" + "0" * 32 + "'" or told.error is not None:
            assert told.is_store_error, told
        else:
            assert told.value is None or name == "field: another type"  # the right data
        assert told.megabytes < 280  # pages of the parent count too, as they are touched
        assert told.seconds < 8
        assert os.listdir(tmp_path) == ["data"]  # noqa: PTH208

    def test_a_key_that_stands_twice(self, tmp_path):
        make(tmp_path)
        (path,) = manifests(tmp_path)
        path.write_bytes(path.read_bytes().replace(b'"rows"', b'"rows": 9, "rows"', 1))  # the last one counts, its sum is right
        with pytest.raises(CorruptDataError, match="twice"):
            list(ShardStore(tmp_path))

    def test_a_file_outside_is_never_read(self, tmp_path):
        make(tmp_path / "out")
        make(tmp_path / "out-evil", [{"n": 1}])
        (secret,) = shards(tmp_path / "out-evil")
        forged(tmp_path / "out", shard_of(name=f"../../out-evil/shards/{secret.name}"))
        with pytest.raises(CorruptDataError, match="not a shard"):
            list(ShardStore(tmp_path / "out"))

    @pytest.mark.parametrize("name", ["00000000.json", "99999999.json", "2.json", "00000002.json.tmp", "x", ".00000002.json"])
    def test_other_files_in_the_folder(self, tmp_path, name):
        make(tmp_path)
        (path,) = manifests(tmp_path)
        (path.parent / name).write_bytes(path.read_bytes())
        if name == "99999999.json":
            with pytest.raises(CorruptDataError, match="number"):
                list(ShardStore(tmp_path))
        else:
            assert plain(ShardStore(tmp_path)) == RIGHT


# -- shards that are made to harm, with checksums that are right ------------------------------------------------------


def message_of(batch, compression=None):
    """The bytes of a batch as they stand in a file."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression, allow_64bit=True)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
        stop = sink.tell()
    return sink.getvalue().to_pybytes()[batch.schema.serialize().size : stop]


def forge_shard(folder, field, blocks, rows=None, block_rows=None, compression=None):
    """A dataset of one shard, whose blocks are bytes or arrays of any kind, and whose manifest calls all of it right."""
    (Path(folder) / "shards").mkdir(parents=True)
    (Path(folder) / "manifest").mkdir()
    data, ends = bytearray(b"ARROW1\0\0"), [8]
    count = 0
    for block in blocks:
        if isinstance(block, bytes):
            data += block
        else:
            array = block.array if isinstance(block, Unsound) else block
            batch = array if isinstance(array, pa.RecordBatch) else pa.RecordBatch.from_arrays([array], names=["value"])
            count += batch.num_rows
            message = message_of(batch, compression)
            if isinstance(block, Unsound):
                sound, wrong = block.sound.tobytes(), np.array(block.offsets, np.int64).tobytes()
                place = message.rindex(sound)
                message = message[:place] + wrong + message[place + len(sound) :]
            data += message
        ends.append(len(data))
    rows = count if rows is None else rows
    sums = tuple(xxhash.xxh3_64_hexdigest(bytes(data[a:b])) for a, b in pairwise(ends))
    entry = shard_module.ShardEntry(
        name="forged.arrow",
        rows=rows,
        size=len(data),
        checksum=xxhash.xxh3_128_hexdigest(bytes(data)),
        field=field,
        block_rows=block_rows or rows,
        ends=tuple(ends),
        sums=sums,
        keyed=False,
        compression=compression,
    )
    (Path(folder) / "shards" / entry.name).write_bytes(data)
    (Path(folder) / "manifest" / "00000001.json").write_bytes(Manifest(1, (entry,)).to_bytes())


def buffers(*arrays):
    return [
        None if one is None else pa.py_buffer(one if isinstance(one, bytes) else np.ascontiguousarray(one).tobytes())
        for one in arrays
    ]


@dataclass(frozen=True)
class Unsound:
    """An array whose offsets Arrow would refuse to write: they take the place of sound ones in the bytes."""

    array: pa.Array
    sound: np.ndarray
    offsets: list


def nones(count):
    """Without the memory that `pa.nulls` takes."""
    return pa.Array.from_buffers(pa.null(), count, [None])


def text(offsets, data=b"abcdef"):
    sound = np.zeros(len(offsets), np.int64)
    sound[-1] = len(data)
    array = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers(None, sound, data))
    return Unsound(array, sound, offsets)


def lists(offsets, values):
    kind = pa.large_list(values.type)
    sound = np.zeros(len(offsets), np.int64)
    sound[-1] = len(values)
    if 0 <= min(offsets) <= max(offsets) <= len(values) and sorted(offsets) == list(offsets):
        return pa.Array.from_buffers(kind, len(offsets) - 1, buffers(None, np.array(offsets, np.int64)), children=[values])
    array = pa.Array.from_buffers(kind, len(offsets) - 1, buffers(None, sound), children=[values])
    return Unsound(array, sound, offsets)


def varying(shapes, lengths, count=None):
    data = lists(np.cumsum([0, *lengths]), pa.array(np.zeros(sum(lengths) if count is None else count)))
    return pa.StructArray.from_arrays([data, pa.array(shapes, pa.large_list(pa.int64()))], names=["data", "shape"])


INTS = pa.array([1, 2, 3])
STR, INT, NONE = Field("str"), Field("int"), Field("none", nullable=True)
ANY = Field("array", dtype="<f8")
VECTOR = Field("array", dtype="<f8", ndim=1)
LIST = Field("list", parts=(INT,))
PAIR = Field("array", dtype="<f8", shape=(2,), ndim=1)
HUGE = 1 << 40


def bomb(claim):
    """A compressed block that claims to be of another size."""
    data = message_of(pa.RecordBatch.from_arrays([pa.array(np.zeros(4096, np.int64))], names=["value"]), "lz4")
    size = (4096 * 8).to_bytes(8, "little")
    assert data.count(size) >= 1
    place = data.rindex(size)
    return data[:place] + claim.to_bytes(8, "little", signed=True) + data[place + 8 :]


MESSAGE = message_of(pa.RecordBatch.from_arrays([INTS], names=["value"]))
SCHEMA_MESSAGE = pa.schema([pa.field("value", pa.int64())]).serialize().to_pybytes()
SHARDS = {
    "text beyond its data": (STR, [text([0, 3, 1 << 40])], {}),
    "text at negative offsets": (STR, [text([-8, 0, 3])], {}),
    "text that goes back": (STR, [text([0, 5, 3])], {}),
    "text that is no unicode": (STR, [text([0, 2], b"\xff\xfe")], {}),
    "text that is null": (STR, [pa.array(["a", None], pa.large_string())], {}),
    "lists at negative offsets": (LIST, [lists([-2, 0, 1], INTS)], {}),
    "lists beyond their data": (LIST, [lists([0, 2, HUGE], INTS)], {}),
    "lists that go back": (LIST, [lists([0, 3, 1], INTS)], {}),
    "lists of too little": (LIST, [lists([0, 2, 4], INTS)], {}),
    "arrays at negative offsets": (VECTOR, [lists([-4, 0], pa.array([1.0]))], {}),
    "arrays beyond their data": (VECTOR, [lists([0, 1 << 33], pa.array([1.0]))], {}),
    "arrays of nulls": (VECTOR, [lists([0, 2], pa.array([1.0, None]))], {}),
    "arrays of fixed size with nulls": (PAIR, [pa.array([[1.0, None]], pa.list_(pa.float64(), 2))], {}),
    "arrays that are null": (PAIR, [pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2))], {}),
    "a wrong fixed size": (PAIR, [pa.array([[1.0]], pa.list_(pa.float64(), 1))], {}),
    "shapes of another size": (ANY, [varying([[2, 2]], [3])], {}),
    "negative shapes": (ANY, [varying([[-1, -4]], [4])], {}),
    "one negative": (ANY, [varying([[-1]], [4])], {}),
    "shapes with a null": (ANY, [varying([[None]], [1])], {}),
    "shapes that are null": (ANY, [varying([None], [1])], {}),
    "shapes that are large and none": (ANY, [varying([[2**62, 2**62, 0]], [0])], {}),
    "shapes of many dimensions": (ANY, [varying([[1] * 100], [1])], {}),
    "shapes of another rank": (replace(ANY, ndim=2), [varying([[1]], [1])], {}),
    "tensors of many dimensions": (Field("tensor", dtype="float64"), [varying([[2**62, 2**62, 0]], [0])], {}),
    "fewer rows": (INT, [INTS], {"rows": 5}),
    "more rows": (INT, [INTS], {"rows": 2}),
    "another type": (STR, [INTS], {}),
    "another type of list": (LIST, [INTS], {}),
    "a struct for an int": (INT, [pa.array([{"a": 1}] * 3)], {}),
    "an int for a struct": (Field("dict", nullable=True, names=("a", "b"), parts=(INT, STR)), [INTS], {}),
    "no columns": (INT, [pa.RecordBatch.from_arrays([INTS], names=["a"]).select([])], {"rows": 3}),
    "bools for bytes": (Field("bytes"), [pa.array([True, False])], {}),
    "integers that are none": (NONE, [INTS], {}),
    "many nones": (NONE, [nones(HUGE)], {"block_rows": 1 << 41}),
    "some gigabytes of nones": (NONE, [nones(1 << 31)], {"block_rows": 1 << 31}),
    "lists of many nones": (Field("list", parts=(NONE,)), [lists([0, HUGE], nones(HUGE))], {}),
    "lists of some gigabytes of nones": (Field("list", parts=(NONE,)), [lists([0, 1 << 30], nones(1 << 30))], {}),
    "lists of many empty arrays": (
        Field("list", parts=(Field("array", dtype="<f8", shape=(0,), ndim=1),)),
        [
            lists(
                [0, 1 << 30],
                pa.Array.from_buffers(pa.list_(pa.float64(), 0), 1 << 30, [None], children=[pa.array([], pa.float64())]),
            )
        ],
        {},
    ),
    "noise": (INT, [random.Random(0).randbytes(400)], {"rows": 3}),
    "nothing": (INT, [b"\0" * 8], {"rows": 3}),
    "a mark alone": (INT, [b"\xff\xff\xff\xff"], {"rows": 3}),
    "the end of a stream": (INT, [b"\xff\xff\xff\xff\0\0\0\0"], {"rows": 3}),
    "a large message": (INT, [b"\xff\xff\xff\xff" + (2**31 - 1).to_bytes(4, "little") + bytes(64)], {"rows": 3}),
    "a negative message": (INT, [b"\xff\xff\xff\xff" + b"\xf0\xff\xff\xff" + bytes(64)], {"rows": 3}),
    "a schema": (INT, [SCHEMA_MESSAGE], {"rows": 3}),
    "a message that was cut": (INT, [MESSAGE[:-16]], {"rows": 3}),
    "a message without its data": (INT, [MESSAGE[:40]], {"rows": 3}),
    "a claim of exabytes": (INT, [bomb(1 << 62)], {"rows": 4096, "compression": "lz4"}),
    "a claim of terabytes": (INT, [bomb(1 << 40)], {"rows": 4096, "compression": "lz4"}),
    "a negative claim": (INT, [bomb(-5)], {"rows": 4096, "compression": "lz4"}),
    "a claim of little": (INT, [bomb(8)], {"rows": 4096, "compression": "lz4"}),
    "a claim of nothing": (INT, [bomb(0)], {"rows": 4096, "compression": "lz4"}),
}


def read_forged(folder):
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))  # what goes wrong here must not take the machine along
    for verify in ("shard", "block"):
        store = ShardStore(folder, verify=verify)
        try:
            return repr(list(store))[:200]
        except StoreError as error:
            last = error
    for use in (lambda: store.row(0), lambda: list(store.select([0])), lambda: list(store.keys())):
        with suppress(StoreError):
            use()
    raise last


class TestHostileShards:
    @pytest.mark.parametrize("name", SHARDS)
    def test_is_refused(self, tmp_path, name):
        skip_before_pyarrow_24(name, "integers that are none")
        field, blocks, options = SHARDS[name]
        forge_shard(tmp_path / "data", field, blocks, **options)
        told = outcome(read_forged, tmp_path / "data", seconds=20)
        assert told.is_store_error, told
        assert told.error == "CorruptDataError"
        assert told.megabytes < 280  # pages of the parent count too, as they are touched
        assert told.seconds < 8

    def test_what_is_forged_can_be_right(self, tmp_path):
        forge_shard(tmp_path, INT, [INTS])
        assert list(ShardStore(tmp_path)) == [1, 2, 3]
        forge_shard(tmp_path / "any", ANY, [varying([[2, 2], []], [4, 1])])
        assert [row.shape for row in ShardStore(tmp_path / "any")] == [(2, 2), ()]

    @pytest.mark.slow
    def test_every_byte_of_a_block_with_right_checksums(self, tmp_path):
        """What Arrow makes of messages that are noise."""
        field = field_from_json(latest(make(tmp_path / "right", SAMPLES, 8)._files).field.to_json())
        store = ShardStore(tmp_path / "right")
        (entry,) = store.manifest.shards
        (path,) = shards(tmp_path / "right")
        block = path.read_bytes()[entry.ends[0] : entry.ends[1]]

        def noise():
            for place in range(len(block)):
                folder = tmp_path / str(place)
                forge_shard(folder, field, [block[:place] + bytes([block[place] ^ 0xFF]) + block[place + 1 :]], rows=5)
                try:
                    for row in ShardStore(folder):
                        repr(row)
                except StoreError:
                    pass
                except Exception as error:  # noqa: BLE001
                    return f"byte {place}: {type(error).__name__}: {error}"
                shutil.rmtree(folder)
            return None

        told = outcome(noise, seconds=60)
        assert (told.error, told.value) == (None, None)


# -- writing that fails -----------------------------------------------------------------------------------------------


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


class TestDiskFull:
    SAMPLES = [{"n": n, "x": np.full(10_000, n, np.uint8)} for n in range(100)]

    @pytest.mark.parametrize("by", ["set", "sink", "resume"])
    def test_no_larger_files(self, tmp_path, by):
        def write():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            self.write(tmp_path, by, shard_rows=50)

        told = outcome(write)
        assert told.error == "StoreError"
        assert "can't write shard" in told.text
        assert ".arrow" in told.text
        assert not [name for name in tree(tmp_path) if not name.startswith("writing/")]
        assert len(ShardStore(tmp_path)) == 0

    @staticmethod
    def write(folder, by, **options):
        if by == "set":
            with ShardStore(folder, **options) as store:
                store.set_many(TestDiskFull.SAMPLES)
        else:
            IterableSource(TestDiskFull.SAMPLES).sink(ShardStore(folder, **options), resume="job" if by == "resume" else None)

    @pytest.mark.parametrize("by", ["set", "sink", "resume"])
    def test_a_disk_that_is_full(self, tmp_path, by):
        disk = tmp_path / "disk"
        disk.mkdir()
        if (
            os.geteuid()
            or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True).returncode
        ):
            pytest.skip("needs the right to mount")
        try:
            make(disk / "data", shard_rows=5, mode="append")
            with pytest.raises(
                StoreError, match=r"can't write shard .*\.arrow with \d+ samples from number \d+ on: .*No space"
            ):
                self.write(disk / "other", by, shard_rows=10)
            assert len(ShardStore(disk / "other")) == 0
            assert not [name for name in tree(disk / "other") if ".tmp" in name]
            filler = disk / "filler"
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(b"x" * 10**6)
            with pytest.raises(StoreError), ShardStore(disk / "data", mode="append") as store:
                store.set(SAMPLES[0])
            assert plain(ShardStore(disk / "data")) == RIGHT
            if by == "resume":
                filler.unlink()
        finally:
            subprocess.run(["umount", "-l", disk], check=True)


class TestKilled:
    COUNT = 1000

    def numbers(self):
        return ({"n": n} for n in range(self.COUNT))

    def job(self, folder, resume):
        IterableSource(self.numbers).sink(ShardStore(folder, shard_rows=20), resume=resume, max_workers=2)

    @pytest.mark.slow
    @pytest.mark.parametrize("resume", [None, "job"])
    def test_at_any_time(self, tmp_path, resume):
        begin = time.monotonic()
        assert outcome(self.job, tmp_path / "whole", resume).error is None
        usual = time.monotonic() - begin
        rng, found = random.Random(0), {"nothing": 0, "all": 0, "part": 0}
        for turn in range(35):
            folder = tmp_path / str(turn)
            pid, reading = start(self.job, folder, resume)
            time.sleep(rng.uniform(0, usual))
            kill(pid)
            os.close(reading)
            rows = list(ShardStore(folder)) if len(ShardStore(folder)) else []
            assert [row["n"] for row in rows] in ([], list(range(self.COUNT)))
            found["all" if rows else "nothing"] += 1
            if resume is None or rows:
                continue
            journal = [json.loads(path.read_bytes()) for path in folder.glob("writing/job/0-of-1/[!.]*.json")]
            done = {shard["name"] for one in journal for shard in one["shards"]}
            found["part"] += 0 < len(done) < 50
            store = ShardStore(folder, shard_rows=20)
            written = IterableSource(self.numbers).sink(store, resume=resume)
            assert done <= set(written.shards)
            assert [row["n"] for row in store] == list(range(self.COUNT))
            assert not list(folder.glob("writing/**/*.json"))
            shutil.rmtree(folder)
        assert found["nothing"]
        if resume:
            assert found["part"]

    @pytest.mark.slow
    def test_a_job_that_is_killed_again_and_again(self, tmp_path):
        rng = random.Random(1)
        for _ in range(30):
            pid, reading = start(self.job, tmp_path, "job")
            time.sleep(rng.uniform(0, 0.08))
            kill(pid)
            os.close(reading)
        try:
            self.job(tmp_path, "job")
        except DatasetExistsError as error:
            assert "has been committed" in str(error)  # noqa: PT017  # one of them came to its end
        assert [row["n"] for row in ShardStore(tmp_path)] == list(range(self.COUNT))


def append(folder, name, turns, mode="append"):
    for turn in range(turns):
        with ShardStore(folder, mode=mode, shard_rows=2) as store:
            store.set_many([f"{name} {turn} {n}" for n in range(3)])


def sink_once(folder, name, mode, at_time):
    time.sleep(max(0, at_time - time.time()))
    IterableSource([f"{name} {n}" for n in range(50)]).sink(ShardStore(folder, mode=mode, shard_rows=10))


class TestRaces:
    def test_one_of_two_creates(self, tmp_path):
        for turn in range(8):
            folder = tmp_path / str(turn)
            soon = time.time() + 0.1
            told = [end(child) for child in [start(sink_once, folder, name, "create", soon) for name in "ab"]]
            assert sorted(one.error or "" for one in told) == ["", "DatasetExistsError"]
            (winner,) = (name for name, one in zip("ab", told, strict=True) if one.error is None)
            assert list(ShardStore(folder)) == [f"{winner} {n}" for n in range(50)]

    @pytest.mark.parametrize("mode", ["append", "overwrite"])
    def test_two_at_a_time(self, tmp_path, mode):
        for turn in range(8):
            folder = tmp_path / str(turn)
            soon = time.time() + 0.1
            told = [end(child) for child in [start(sink_once, folder, name, mode, soon) for name in "ab"]]
            assert [one.error for one in told] == [None, None]
            parts = [[f"{name} {n}" for n in range(50)] for name in "ab"]
            both = [parts[0] + parts[1], parts[1] + parts[0]] if mode == "append" else parts
            assert list(ShardStore(folder)) in both

    @pytest.mark.slow
    def test_eight_append_five_times(self, tmp_path):
        children = [start(append, tmp_path, name, 5) for name in range(8)]
        assert [end(child).error for child in children] == [None] * 8
        rows = list(ShardStore(tmp_path))
        assert sorted(rows) == sorted(f"{name} {turn} {n}" for name in range(8) for turn in range(5) for n in range(3))
        assert ShardStore(tmp_path).manifest.number == 40
        assert all(rows[start : start + 3] == sorted(rows[start : start + 3]) for start in range(0, 120, 3))


# -- storage that fails -----------------------------------------------------------------------------------------------


class Flaky(MemoryFileSystem):
    """Fails as it is told: `plan` is asked with the verb, the path and what would be given."""

    protocol = "flaky"
    store = {}
    pseudo_dirs = [""]
    cachable = False
    plan = None
    calls = []

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def _do(self, verb, path, value):
        type(self).calls.append((verb, path))
        return value if self.plan is None else type(self).plan(verb, path, value)

    def cat_file(self, path, start=None, end=None, **kwargs):
        return self._do("read", path, super().cat_file(path, start=start, end=end, **kwargs))

    def size(self, path):
        return self._do("size", path, super().size(path))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._do("write", path, None)
        super().pipe_file(path, value, mode=mode, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        return self._do("list", path, super().ls(path, detail=detail, **kwargs))


def failing(verb, times, error=ConnectionResetError):
    left = [times]

    def plan(asked, path, value):
        if asked == verb and left[0]:
            left[0] -= 1
            raise error("flaky")
        return value

    return staticmethod(plan)


def spoilt(verb, spoil, folder="", times=10**9):
    left = [times]

    def plan(asked, path, value):
        if asked == verb and folder in path and left[0]:
            left[0] -= 1
            return spoil(value)
        return value

    return staticmethod(plan)


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    slept = []
    monkeypatch.setattr("squirrel_torch.storage.files.time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(Flaky, "store", {})
    monkeypatch.setattr(Flaky, "pseudo_dirs", [""])
    monkeypatch.setattr(Flaky, "calls", [])
    make("flaky://data", shard_rows=2)
    return lambda plan: monkeypatch.setattr(Flaky, "plan", plan) or slept


WAYS = {
    "iterated": lambda store: plain(store),
    "by number": lambda store: plain([store.row(number) for number in range(5)]),
    "selected": lambda store: plain(store.select(range(5))),
}


class TestFlakyStorage:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("cached", [False, True])
    @pytest.mark.parametrize("verb", ["read", "size", "list"])
    @pytest.mark.parametrize("times", [1, 4])
    def test_it_is_tried_again(self, flaky, tmp_path, way, cached, verb, times):
        slept = flaky(failing(verb, times))
        store = ShardStore("flaky://data", cache=tmp_path if cached else None)
        assert WAYS[way](store) == RIGHT
        if not (cached and verb == "size"):
            assert len(slept) == times
            assert slept == sorted(slept)
            assert all(0.05 <= one <= 10 for one in slept)

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("cached", [False, True])
    @pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError, OSError, EOFError])
    def test_at_last_it_is_an_error(self, flaky, tmp_path, way, cached, error):
        store = ShardStore("flaky://data", cache=tmp_path if cached else None, attempts=3)
        assert len(store) == 5
        slept = flaky(failing("read", 10**9, error))
        with pytest.raises(StoreError, match=f"can't read flaky://data/shards/.*tried 3 times: {error.__name__}: flaky"):
            WAYS[way](store)
        assert len(slept) >= 2

    def test_what_is_not_there_is_not_asked_for_again(self, flaky):
        slept = flaky(failing("read", 10**9, FileNotFoundError))
        with pytest.raises((StoreError, FileNotFoundError)):
            list(ShardStore("flaky://data"))
        assert slept == []
        flaky(failing("read", 10**9, PermissionError))
        with pytest.raises(StoreError, match="PermissionError"):
            list(ShardStore("flaky://data"))
        assert slept == []

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("cached", [False, True])
    @pytest.mark.parametrize("verify", ["shard", "block"])
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda data: data[:-1],
            lambda data: data[:0],
            lambda data: data + b"x",
            lambda data: bytes(len(data)),
            lambda data: data[1:] + b"x",
        ],
    )
    def test_wrong_bytes_are_never_given(self, flaky, tmp_path, way, cached, verify, spoil):
        store = ShardStore("flaky://data", cache=tmp_path if cached else None, verify=verify)
        assert len(store) == 5
        flaky(spoilt("read", spoil, "shards"))
        rows = []
        with pytest.raises(StoreError):
            rows.extend(store) if way == "iterated" else WAYS[way](store)
        assert plain(rows) == RIGHT[: len(rows)]

    @pytest.mark.parametrize("cached", [False, True])
    def test_a_short_read_is_tried_again(self, flaky, tmp_path, cached):
        flaky(spoilt("read", lambda data: data[: len(data) // 2], "shards", times=2))
        assert plain(ShardStore("flaky://data", cache=tmp_path if cached else None)) == RIGHT

    def test_a_manifest_that_is_short(self, flaky):
        flaky(spoilt("read", lambda data: data[:-5], "manifest"))
        with pytest.raises(StoreError):
            list(ShardStore("flaky://data"))

    def test_a_size_that_is_wrong(self, flaky):
        flaky(spoilt("size", lambda size: size - 1))
        with pytest.raises(CorruptDataError, match="bytes"):
            list(ShardStore("flaky://data"))

    @pytest.mark.parametrize("times", [1, 4])
    @pytest.mark.parametrize("by", ["set", "sink"])
    def test_writes_are_tried_again(self, flaky, times, by):
        slept = flaky(failing("write", times))
        store = ShardStore("flaky://new", shard_rows=2)
        if by == "set":
            with store:
                store.set_many(SAMPLES)
        else:
            IterableSource(SAMPLES).sink(store)
        assert len(slept) == times
        assert plain(ShardStore("flaky://new")) == RIGHT

    @pytest.mark.parametrize("by", ["set", "sink"])
    def test_writes_that_never_succeed(self, flaky, by):
        flaky(failing("write", 10**9))
        store = ShardStore("flaky://new", shard_rows=2, attempts=2)
        with pytest.raises(StoreError, match=r"can't write flaky://new/shards/.*tried 2 times"), store:
            store.set_many(SAMPLES) if by == "set" else IterableSource(SAMPLES).sink(store)
        flaky(None)
        assert len(ShardStore("flaky://new")) == 0

    def test_a_commit_whose_answer_is_lost(self, flaky):
        done = []

        class LosesAnswers(Flaky):
            def pipe_file(self, path, value, mode="overwrite", **kwargs):
                super().pipe_file(path, value, mode=mode, **kwargs)
                if "manifest" in path and not done:
                    done.append(path)
                    raise ConnectionResetError("the answer is lost")

        fsspec.register_implementation("flaky", LosesAnswers, clobber=True)
        with ShardStore("flaky://new") as store:
            store.set_many(SAMPLES)
        assert done
        assert plain(ShardStore("flaky://new")) == RIGHT
        assert ShardStore("flaky://new").manifest.number == 1

    def test_memory(self, flaky):
        del flaky
        with ShardStore("memory://faults/data", mode="overwrite", shard_rows=2) as store:
            store.set_many(SAMPLES)
        assert plain(store) == RIGHT
        with pytest.raises(DatasetExistsError):
            ShardStore("memory://faults/data").set(1)
        IterableSource(copy.deepcopy(SAMPLES)).sink(ShardStore("memory://faults/data", mode="append"))
        assert plain(ShardStore("memory://faults/data")) == RIGHT * 2
