"""Parquet and Arrow files."""

import datetime
import decimal
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import product

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from squirrel_torch import CorruptDataError, IterableSource, StoreError, StreamLoader
from squirrel_torch.storage.formats import ArrowFiles, ParquetFiles
from tests.storage.formats.support import check, cut_everywhere, outcome, right_or_error, same
from tests.support import PYARROW

ROWS = 53


def table(rows=ROWS, first=0):
    numbers = range(first, first + rows)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "text": [f"text {n}" if n % 5 else None for n in numbers],
            "vector": pa.array([np.arange(n % 4, dtype="f4") + n for n in numbers], pa.list_(pa.float32())),
        }
    )


def expected(rows=ROWS, first=0):
    return [
        {"id": n, "text": f"text {n}" if n % 5 else None, "vector": np.arange(n % 4, dtype="f4") + n}
        for n in range(first, first + rows)
    ]


def write_parquet(path, table, size=10, **options):
    pq.write_table(table, path, row_group_size=size, **options)


def write_file(path, table, size=10):
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=size)


def write_stream(path, table, size=10):
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=size)


def write_feather(path, table):
    pyarrow.feather.write_feather(table, str(path), compression="zstd", chunksize=10)


KINDS = {
    "parquet": (ParquetFiles, write_parquet),
    "arrow": (ArrowFiles, write_file),
    "feather": (ArrowFiles, write_feather),
    "arrows": (ArrowFiles, write_stream),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param, *KINDS[request.param]


class TestRows:
    def test_several_files(self, tmp_path, kind):
        suffix, reader, write = kind
        write(tmp_path / f"b.{suffix}", table(7, 53))
        write(tmp_path / f"a.{suffix}", table())
        write(tmp_path / f"c.{suffix}", table(0))
        check(reader(tmp_path), expected(60))
        check(reader(str(tmp_path / f"[ab].{suffix}")), expected(60))
        check(reader([tmp_path / f"b.{suffix}", tmp_path / f"a.{suffix}"]), expected(7, 53) + expected())

    def test_columns(self, tmp_path, kind):
        suffix, reader, write = kind
        write(tmp_path / f"a.{suffix}", table())
        check(reader(tmp_path, columns=["vector", "id"]), [{"vector": row["vector"], "id": row["id"]} for row in expected()])
        with pytest.raises(ValueError, match="has no column 'nothing'; it has 'id', 'text', 'vector'"):
            list(reader(tmp_path, columns=["nothing"]))
        for wrong in ("id", []):
            with pytest.raises(ValueError, match="columns must be a list"):
                reader(tmp_path, columns=wrong)

    def test_on_another_filesystem(self, tmp_path, kind):
        suffix, reader, write = kind
        write(tmp_path / "a", table())
        memory = fsspec.filesystem("memory")
        memory.pipe(f"/tables-{suffix}/deep/a.{suffix}", (tmp_path / "a").read_bytes())
        made = reader(f"memory://tables-{suffix}")
        assert made.files == [f"memory:///tables-{suffix}/deep/a.{suffix}"]
        check(made, expected())

    def test_arrays_can_be_written_and_hold_no_others(self, tmp_path, kind):
        suffix, reader, write = kind
        write(tmp_path / f"a.{suffix}", table())
        for sample in reader(tmp_path):
            assert sample["vector"].flags.writeable
            assert sample["vector"].base is None

    def test_two_columns_of_one_name(self, tmp_path, kind):
        suffix, reader, write = kind
        write(tmp_path / f"a.{suffix}", pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]))
        with pytest.raises(StoreError, match="several columns of the name 'x'"):
            list(reader(tmp_path))

    def test_no_columns(self, tmp_path, kind):
        suffix, reader, write = kind
        if suffix == "parquet":
            pytest.skip("a Parquet file without columns has no rows")
        batch = pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))
        write(tmp_path / f"a.{suffix}", pa.Table.from_batches([batch]))
        check(reader(tmp_path), [{}] * 2 if list(reader(tmp_path)) else [])

    def test_workers_of_a_data_loader(self, tmp_path, kind):
        suffix, reader, write = kind
        write(tmp_path / f"a.{suffix}", table())
        made = reader(tmp_path, columns=["id"])
        chain = IterableSource(made).split_by_worker().to_torch_iterable()
        got = [sample["id"] for sample in DataLoader(chain, batch_size=None, num_workers=2)]
        assert sorted(got) == list(range(ROWS))

    def test_in_another_process(self, tmp_path, kind):
        suffix, reader, write = kind
        write(tmp_path / f"a.{suffix}", table())
        made = reader(tmp_path)
        list(made)
        with ProcessPoolExecutor(1) as pool:
            assert same(pool.submit(list, made).result(), expected())


class TestIndex:
    @pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
    def test_reads_only_the_group(self, tmp_path, suffix, monkeypatch):
        reader, write = KINDS[suffix]
        write(tmp_path / f"a.{suffix}", table())
        made = reader(tmp_path)
        loads = []
        load = type(made)._load
        monkeypatch.setattr(reader, "_load", lambda self, path, group: loads.append(group) or load(self, path, group))
        assert [made[row]["id"] for row in (0, 9, 10, 52, -1)] == [0, 9, 10, 52, 52]
        assert loads == [0, 1, 5]
        assert made[np.int64(3)]["id"] == 3

    @pytest.mark.parametrize("suffix", ["parquet", "arrow"])
    def test_from_many_threads(self, tmp_path, suffix):
        reader, write = KINDS[suffix]
        write(tmp_path / f"a.{suffix}", table())
        with ThreadPoolExecutor(8) as pool:
            rows = [row * 17 % ROWS for row in range(400)]
            assert [sample["id"] for sample in pool.map(reader(tmp_path).__getitem__, rows)] == rows

    def test_streams_have_none(self, tmp_path):
        write_stream(tmp_path / "a.arrows", table())
        reader = ArrowFiles(tmp_path)
        with pytest.raises(TypeError, match="is an IPC stream"):
            len(reader)
        with pytest.raises(TypeError, match="is an IPC stream"):
            reader[0]
        chain = IterableSource(reader).map(lambda sample: sample["id"])
        assert chain.explain().mode == "replayed"
        assert [number for batch in StreamLoader(chain, batch_size=7) for number in batch.tolist()] == list(range(ROWS))

    def test_the_kept_group_does_not_travel(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", table(10_000), size=10_000)
        reader = ParquetFiles(tmp_path)
        reader[0]
        assert len(pickle.dumps(reader)) < 1000

    @pytest.mark.parametrize("suffix", ["parquet", "arrow"])
    def test_a_file_that_was_replaced(self, tmp_path, suffix):
        reader, write = KINDS[suffix]
        path = tmp_path / f"a.{suffix}"
        write(path, table())
        made = reader(tmp_path)
        assert len(made) == ROWS
        write(path, table(35))
        with pytest.raises(CorruptDataError, match="was it replaced"):
            list(made)
        with pytest.raises(CorruptDataError, match=r"was (it|the file) replaced"):
            made[50]


class TestValues:
    CASES = {
        "bool": (pa.bool_(), [True, None, False]),
        "int64": (pa.int64(), [2**63 - 1, None, -(2**63)]),
        "uint64": (pa.uint64(), [2**64 - 1, None, 0]),
        "int8": (pa.int8(), [1, 2, 3]),
        "float32": (pa.float32(), [1.5, None, float("nan")]),
        "float16": (pa.float16(), [np.float16(1.5), None, np.float16(2)]),
        "string": (pa.string(), ["a", None, "\U0001f600"]),
        "large_string": (pa.large_string(), ["a", None, ""]),
        "string_view": (pa.string_view(), ["a", None, "a text longer than twelve bytes"]),
        "binary": (pa.binary(), [b"\xff\0", None, b""]),
        "large_binary": (pa.large_binary(), [b"\xff\0", None, b""]),
        "fixed_binary": (pa.binary(2), [b"ab", None, b"cd"]),
        "null": (pa.null(), [None, None, None]),
        "struct": (pa.struct({"a": pa.int64(), "b": pa.string()}), [{"a": 1, "b": None}, None, {"a": None, "b": "x"}]),
        "texts": (pa.list_(pa.string()), [["a", None], None, []]),
        "structs": (pa.list_(pa.struct({"a": pa.int64()})), [[{"a": 1}, None], None, []]),
        "map": (pa.map_(pa.string(), pa.int64()), [[("a", 1), ("b", None)], None, []]),
        "decimal": (pa.decimal128(5, 2), [decimal.Decimal("1.50"), None, decimal.Decimal("-3.25")]),
        "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["a", None, "a"]),
    }

    @pytest.mark.parametrize(("name", "suffix"), list(product(CASES, ("parquet", "arrow"))))
    def test_as_they_were(self, tmp_path, name, suffix):
        if (name, suffix) == ("string_view", "parquet") and PYARROW < 21:
            pytest.skip("pyarrow writes them from version 21 on")
        kind, values = self.CASES[name]
        array = pa.array(values, pa.string()).dictionary_encode() if name == "dictionary" else pa.array(values, kind)
        reader, write = KINDS[suffix]
        write(tmp_path / f"a.{suffix}", pa.table({"x": pa.concat_arrays([array, array])}))
        values = [float(value) if isinstance(value, np.float16) else value for value in values]
        check(reader(tmp_path), [{"x": value} for value in values * 2])

    def test_times(self, tmp_path):
        moment = datetime.datetime(2020, 1, 2, 3, 4, 5, 678901)
        columns = {
            "us": pa.array([moment, None], pa.timestamp("us")),
            "zone": pa.array([moment, None], pa.timestamp("ms", "Europe/Berlin")),
            "date": pa.array([moment.date(), None], pa.date32()),
            "date64": pa.array([moment.date(), None], pa.date64()),
            "time": pa.array([moment.time(), None], pa.time64("us")),
            "time32": pa.array([moment.time().replace(microsecond=0), None], pa.time32("s")),
            "duration": pa.array([datetime.timedelta(1), None], pa.duration("ns")),
        }
        write_file(tmp_path / "a.arrow", pa.table(columns))
        first = {
            "us": np.datetime64("2020-01-02T03:04:05.678901"),
            "zone": np.datetime64("2020-01-02T03:04:05.678"),
            "date": np.datetime64("2020-01-02"),
            "date64": np.datetime64("2020-01-02T00:00:00.000"),
            "time": np.timedelta64(((3 * 60 + 4) * 60 + 5) * 10**6 + 678901, "us"),
            "time32": np.timedelta64((3 * 60 + 4) * 60 + 5, "s"),
            "duration": np.timedelta64(86400 * 10**9, "ns"),
        }
        got = list(ArrowFiles(tmp_path))
        assert got == [first, dict.fromkeys(first)]
        assert [value.dtype for value in got[0].values()] == [value.dtype for value in first.values()]

    @pytest.mark.parametrize("make", [pa.list_, pa.large_list, pa.list_view, lambda kind: pa.list_(kind, 2)])
    def test_lists_of_numbers(self, tmp_path, make):
        values = [[1, 2], None, [3, None], [2**60 + 1, 4]]
        array = pa.array(values, make(pa.int64()))
        write_file(tmp_path / "a.arrow", pa.table({"x": pa.concat_arrays([array, array]).slice(1)}), size=3)
        rows = [np.array([1, 2]), None, [3, None], np.array([2**60 + 1, 4])]
        check(ArrowFiles(tmp_path), [{"x": row} for row in (rows * 2)[1:]])

    def test_lists_of_lists(self, tmp_path):
        for suffix in ("parquet", "arrow"):
            reader, write = KINDS[suffix]
            array = pa.array([[[1], [2, 3]], None, [], [None, [4]]], pa.list_(pa.list_(pa.int32())))
            write(tmp_path / f"a.{suffix}", pa.table({"x": array}))
            one, two, four = (np.array(values, "i4") for values in ([1], [2, 3], [4]))
            check(reader(tmp_path), [{"x": [one, two]}, {"x": None}, {"x": []}, {"x": [None, four]}])

    def test_lists_of_booleans_and_times(self, tmp_path):
        columns = {
            "flags": pa.array([[True, False], []], pa.list_(pa.bool_())),
            "days": pa.array([[datetime.date(2020, 1, 2)], []], pa.list_(pa.date32())),
        }
        write_file(tmp_path / "a.arrow", pa.table(columns))
        first = {"flags": np.array([True, False]), "days": np.array(["2020-01-02"], "M8[D]")}
        check(ArrowFiles(tmp_path), [first, {name: value[:0] for name, value in first.items()}])

    def test_extension_types(self, tmp_path):
        tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype="f4").reshape(2, 3, 2))
        write_file(tmp_path / "a.arrow", pa.table({"t": tensors, "u": pa.array([b"0" * 16, None], pa.uuid())}))
        rows = np.arange(12, dtype="f4").reshape(2, 3, 2)
        check(ArrowFiles(tmp_path), [{"t": rows[0].copy(), "u": b"0" * 16}, {"t": rows[1].copy(), "u": None}])

    def test_rows_that_share_a_value_of_a_dictionary_do_not_share_an_array(self, tmp_path):
        array = pa.DictionaryArray.from_arrays(pa.array([0, 0, None]), pa.array([[1, 2]]))
        write_file(tmp_path / "a.arrow", pa.table({"x": array}))
        first, second, third = (sample["x"] for sample in ArrowFiles(tmp_path))
        first[:] = 0
        assert second.tolist() == [1, 2]
        assert third is None

    def test_runs(self, tmp_path):
        array = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", None]))
        write_file(tmp_path / "a.arrow", pa.table({"x": array}))
        assert [sample["x"] for sample in ArrowFiles(tmp_path)] == ["a", "a", None]

    def test_wide_rows_come_in_small_batches(self, tmp_path, monkeypatch):
        monkeypatch.setattr("squirrel_torch.storage.formats.tables._DECODED_BYTES", 10_000)
        data = [bytes([n]) * 3000 for n in range(40)]
        write_parquet(tmp_path / "a.parquet", pa.table({"x": data}), size=40, compression="none", use_dictionary=False)
        check(ParquetFiles(tmp_path), [{"x": value} for value in data])

    @pytest.mark.parametrize("suffix", ["parquet", "arrow", "arrows"])
    def test_large_groups_come_in_parts(self, tmp_path, suffix, monkeypatch):
        monkeypatch.setattr("squirrel_torch.storage.formats.tables._MOST_ROWS", 4)
        reader, write = KINDS[suffix]
        write(tmp_path / f"a.{suffix}", table(), 40)
        check(reader(tmp_path), expected())


class TestFaults:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    def test_cut_at_every_byte(self, tmp_path, kind):
        reader, write = KINDS[kind]
        path = tmp_path / f"a.{kind}"
        write(path, table(12).select(["id", "text"]))
        data = path.read_bytes()
        made = reader(tmp_path)
        rows = [{"id": row["id"], "text": row["text"]} for row in expected(12)]
        assert cut_everywhere(data, path, lambda: made, rows) == len(data)

    @pytest.mark.parametrize("kind", KINDS)
    def test_more_behind_the_end(self, tmp_path, kind):
        reader, write = KINDS[kind]
        path = tmp_path / f"a.{kind}"
        write(path, table(25))
        data = path.read_bytes()
        for more in (b"\0", b"x" * 100, data):
            path.write_bytes(data + more)
            right_or_error(lambda: reader(tmp_path), expected(25), more[:1])
        if kind == "arrows":
            with pytest.raises(CorruptDataError, match="something follows the end"):
                list(reader(tmp_path))

    def test_a_stream_whose_writer_was_never_closed(self, tmp_path):
        path = tmp_path / "a.arrows"
        write_stream(path, table())
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(CorruptDataError, match="behind record batch 5: the end-of-stream marker is missing"):
            list(ArrowFiles(tmp_path))

    def test_checksums_of_pages(self, tmp_path):
        path = tmp_path / "a.parquet"
        write_parquet(path, table(25), write_page_checksum=True, compression="none", use_dictionary=False)
        data = path.read_bytes()
        place = data.index(b"text 13")
        path.write_bytes(data[:place] + b"TEXT" + data[place + 4 :])
        with pytest.raises(CorruptDataError, match=r"a\.parquet', row group 1.*(CRC|checksum)"):
            list(ParquetFiles(tmp_path))

    @pytest.mark.parametrize("kind", ["parquet", "arrow", "arrows"])
    def test_changed_bytes_never_end_early(self, tmp_path, kind):
        reader, write = KINDS[kind]
        path = tmp_path / f"a.{kind}"
        write(path, table(12))
        data = path.read_bytes()
        made = reader(tmp_path)
        for place in range(0, len(data), 5):
            changed = bytearray(data)
            changed[place] ^= 0x41
            path.write_bytes(changed)
            try:
                failed, samples = outcome(lambda: made)
            except ValueError as error:
                assert "column" in str(error)  # noqa: PT017  # a name has changed
                continue
            assert failed is not None or len(samples) == 12, place

    def test_offsets_that_lead_nowhere(self, tmp_path):
        offsets = np.array([0, 5, 2**30, 10], "i4")
        array = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(b"0123456789")])
        write_file(tmp_path / "a.arrow", pa.table({"x": array}))
        with pytest.raises(CorruptDataError, match=r"a\.arrow', record batch 0: it can't be read"):
            list(ArrowFiles(tmp_path))
        with pytest.raises(CorruptDataError, match="record batch 0"):
            ArrowFiles(tmp_path)[0]

    def test_text_that_is_no_utf8(self, tmp_path):
        array = pa.array([b"\xff"], pa.binary()).view(pa.string())
        for suffix in ("arrow", "parquet"):
            reader, write = KINDS[suffix]
            write(tmp_path / f"a.{suffix}", pa.table({"x": array}))
            with pytest.raises(CorruptDataError, match=r"batch 0|row group 0"):
                list(reader(tmp_path))

    def test_an_error_stays(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", table())
        (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing more PAR1")
        run = iter(IterableSource(ParquetFiles(tmp_path)))
        for _ in range(ROWS):
            next(run)
        for _ in range(2):
            with pytest.raises(CorruptDataError, match=r"b\.parquet"):
                next(run)

    def test_errors_of_the_filesystem_are_its_own(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", table())
        reader = ParquetFiles(tmp_path)
        (tmp_path / "a.parquet").unlink()
        with pytest.raises(FileNotFoundError):
            list(reader)

    def test_an_error_of_the_consumer_is_not_the_files(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", table())
        part = iter(ParquetFiles(tmp_path))
        next(part)
        with pytest.raises(ValueError, match="mine"):
            part.throw(ValueError("mine"))

    def test_feather_1(self, tmp_path):
        (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(100))
        with pytest.raises(StoreError, match="Feather version 1"):
            list(ArrowFiles(tmp_path))
