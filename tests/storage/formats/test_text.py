"""JSON Lines and CSV."""

import bz2
import csv
import gzip
import io
import json
import tracemalloc

import fsspec
import pyarrow as pa
import pytest

from squirrel_torch import CorruptDataError, IterableSource, StoreError
from squirrel_torch.storage.formats import CsvFiles, JsonLines
from tests.storage.formats.support import check, cut_everywhere, flip_everywhere, right_or_error

SAMPLES = [{"id": number, "text": "é\n" * number, "nested": [None, {"x": [1.5, True]}]} for number in range(20)]
LINES = "".join(json.dumps(sample) + "\n" for sample in SAMPLES).encode()


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}


def read(tmp_path, data, make=JsonLines, **options):
    (tmp_path / "a").write_bytes(data)
    return list(make(tmp_path / "a", **options))


def csv_of(rows, **options):
    text = io.StringIO(newline="")
    csv.writer(text, **options).writerows(rows)
    return text.getvalue().encode()


class TestJsonLines:
    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_several_files(self, tmp_path, suffix):
        (tmp_path / f"b.jsonl{suffix}").write_bytes(COMPRESS[suffix](LINES))
        (tmp_path / f"a.ndjson{suffix}").write_bytes(COMPRESS[suffix](LINES))
        (tmp_path / f"c.jsonl{suffix}").write_bytes(COMPRESS[suffix](b""))
        (tmp_path / "notes.txt").write_text("not read")
        check(JsonLines(tmp_path), SAMPLES * 2)

    def test_on_another_filesystem(self):
        fsspec.filesystem("memory").pipe({"/lines/a.jsonl": LINES, "/lines/b.jsonl.gz": gzip.compress(LINES)})
        check(JsonLines("memory://lines"), SAMPLES * 2)

    def test_what_is_compressed_is_seen_in_the_content(self, tmp_path):
        assert read(tmp_path, gzip.compress(LINES)) == SAMPLES

    def test_ends_of_lines(self, tmp_path):
        assert read(tmp_path, b'{"a": 1}\r\n{"a": 2}\r\n') == [{"a": 1}, {"a": 2}]
        assert read(tmp_path, b'{"a": 1}\n{"a": 2}') == [{"a": 1}, {"a": 2}]
        assert read(tmp_path, b"\xef\xbb\xbf[1]\n[2]\n") == [[1], [2]]

    def test_any_value(self, tmp_path):
        values = read(tmp_path, b'1\n"a"\nnull\nNaN\n-Infinity\n[]\n')
        assert values[:3] == [1, "a", None]
        assert values[3] != values[3]
        assert values[4:] == [float("-inf"), []]

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_cut_at_every_byte(self, tmp_path, suffix):
        path = tmp_path / f"a.jsonl{suffix}"
        data = COMPRESS[suffix](LINES[: LINES.index(b"\n", 300) + 1])
        path.write_bytes(data)
        expected = [json.loads(line) for line in LINES[: LINES.index(b"\n", 300) + 1].splitlines()]
        if suffix:
            assert cut_everywhere(data, path, lambda: JsonLines(path), expected) == len(data)
            return
        for size in range(len(data)):
            path.write_bytes(data[:size])
            # Between two lines, or in front of an end of a line, nothing can be noticed.
            rows = data[:size].count(b"\n") + (data[size : size + 1] == b"\n")
            if data[:size].endswith(b"\n") or data[size : size + 1] == b"\n" or not size:
                assert list(JsonLines(path)) == expected[:rows]
            else:
                assert right_or_error(lambda: JsonLines(path), expected, size)

    def test_numbers_that_may_be_cut(self, tmp_path):
        with pytest.raises(CorruptDataError, match="line 2: the file ends behind the number 12"):
            read(tmp_path, b"1\n12")

    @pytest.mark.parametrize("suffix", [".gz", ".bz2"])
    def test_every_byte_changed(self, tmp_path, suffix):
        path = tmp_path / f"a.jsonl{suffix}"
        data = COMPRESS[suffix](b'{"a": 1}\n{"a": 2}\n')
        path.write_bytes(data)
        raised = flip_everywhere(data, path, lambda: JsonLines(path), [{"a": 1}, {"a": 2}])
        assert raised > 2 * len(data)

    @pytest.mark.parametrize(
        ("line", "what"),
        [
            (b"", "it is blank"),
            (b"  \r", "it is blank"),
            (b'{"a": 1', "it can't be decoded"),
            (b"{'a': 1}", "it can't be decoded"),
            (b'{"a": 1} {"a": 2}', "it can't be decoded: Extra data"),
            (b'{"a": {"b": 1, "b": 2}}', "it can't be decoded: the key 'b' stands twice in one object"),
            (b'"\xff"', "it can't be decoded: 'utf-8'"),
            (b"[" * 100_000 + b"]" * 100_000, "it can't be decoded: it is nested too deep"),
            (b"9" * 5000, "it can't be decoded"),
        ],
    )
    def test_wrong_lines(self, tmp_path, line, what):
        (tmp_path / "a").write_bytes(b"1\n" + line + b"\n3\n")
        run = iter(IterableSource(JsonLines(tmp_path / "a")))
        assert next(run) == 1
        for _ in range(2):
            with pytest.raises(CorruptDataError, match=f"/a', line 2: {what}"):
                next(run)

    def test_the_file_that_ends_within_a_line(self, tmp_path):
        with pytest.raises(CorruptDataError, match="line 2: it can't be decoded, and the file ends within the line"):
            read(tmp_path, b'{"a": 1}\n{"a": 2')

    def test_long_lines(self, tmp_path):
        with pytest.raises(CorruptDataError, match="line 2: it has more than max_sample_bytes=10 bytes"):
            read(tmp_path, b'"1"\n"34567890"\n', max_sample_bytes=10)
        assert read(tmp_path, b'"1"\n"34567890"\n', max_sample_bytes=11) == ["1", "34567890"]

    def test_limits(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(LINES)
        with pytest.raises(ValueError, match="max_ratio must be more than 0"):
            JsonLines(tmp_path, max_ratio=0)
        with pytest.raises(ValueError, match="max_sample_bytes must be more than 0"):
            JsonLines(tmp_path, max_sample_bytes=-1)


class TestCompressed:
    def test_members_one_after_the_other(self, tmp_path):
        (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(line + b"\n") for line in LINES.splitlines()))
        (tmp_path / "b.jsonl.bz2").write_bytes(bz2.compress(LINES) * 2)
        (tmp_path / "c.jsonl.zst").write_bytes(zstd(LINES) * 2)
        check(JsonLines(tmp_path), SAMPLES * 5)

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
    def test_large_ones(self, tmp_path, suffix):
        rows = [{"n": number, "x": "y" * (number % 1000)} for number in range(3000)]
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / f"a.jsonl{suffix}").write_bytes(
            COMPRESS[suffix](data[: len(data) // 2]) + COMPRESS[suffix](data[len(data) // 2 :])
        )
        assert list(JsonLines(tmp_path)) == rows

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
    @pytest.mark.parametrize("more", [b"\0", b"x" * 20, b"\x1f\x8b"])
    def test_something_behind(self, tmp_path, suffix, more):
        (tmp_path / f"a.jsonl{suffix}").write_bytes(COMPRESS[suffix](LINES) + more)
        with pytest.raises(CorruptDataError, match="can't be decompressed"):
            list(JsonLines(tmp_path))

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
    @pytest.mark.parametrize("data", [b"", b"\x1f", LINES])
    def test_not_compressed(self, tmp_path, suffix, data):
        (tmp_path / f"a.jsonl{suffix}").write_bytes(data)
        with pytest.raises(CorruptDataError, match="byte 0: it does not begin as a compressed file does"):
            list(JsonLines(tmp_path))

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
    def test_bombs(self, tmp_path, suffix):
        block = b" " * (10 << 20)
        data = COMPRESS[suffix](block * 12)
        assert len(data) < 200_000
        (tmp_path / f"a.jsonl{suffix}").write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(CorruptDataError, match="over 200 times its compressed size"):
                list(JsonLines(tmp_path, max_sample_bytes=1 << 40))
            with pytest.raises(CorruptDataError, match="line 1: it has more than max_sample_bytes=1000000"):
                list(JsonLines(tmp_path, max_sample_bytes=10**6, max_ratio=1e9))
            assert tracemalloc.get_traced_memory()[1] < 190_000_000
        finally:
            tracemalloc.stop()

    def test_errors_of_the_filesystem_are_its_own(self, tmp_path, monkeypatch):
        class Broken(io.BytesIO):
            def read(self, size=-1):
                if self.tell() > 4:
                    raise OSError(5, "the disk is gone")
                return super().read(min(size, 8) if size >= 0 else size)

        for suffix in COMPRESS:
            data = COMPRESS[suffix](LINES)
            (tmp_path / f"a.jsonl{suffix}").write_bytes(data)
            reader = JsonLines(tmp_path / f"a.jsonl{suffix}")
            monkeypatch.setattr("squirrel_torch.storage.formats.inflate.open_file", lambda *_, data=data: Broken(data))
            with pytest.raises(OSError, match="the disk is gone"):
                list(reader)


ROWS = [["id", "name", "x"], ["1", 'a, "quoted"\nname', "1.5"], ["2", "", "-3e2"], ["3", "é", ""]]
EXPECTED = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]


class TestCsv:
    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_several_files(self, tmp_path, suffix):
        (tmp_path / f"b.csv{suffix}").write_bytes(COMPRESS[suffix](csv_of(ROWS)))
        (tmp_path / f"a.tsv{suffix}").write_bytes(COMPRESS[suffix](csv_of(ROWS, delimiter="\t")))
        (tmp_path / f"c.csv{suffix}").write_bytes(COMPRESS[suffix](csv_of(ROWS[:1])))
        check(CsvFiles(tmp_path), EXPECTED * 2)

    def test_on_another_filesystem(self):
        fsspec.filesystem("memory").pipe("/csv/a.csv", csv_of(ROWS))
        check(CsvFiles("memory://csv/*.csv"), EXPECTED)

    def test_types(self, tmp_path):
        (tmp_path / "a.csv").write_bytes(
            csv_of([["i", "f", "b", "s", "o"], ["-007", "1e3", "True", "5", "5"], ["", "", "", "", ""]])
        )
        reader = CsvFiles(tmp_path, types={"i": int, "f": float, "b": bool, "s": str})
        check(
            reader, [{"i": -7, "f": 1000.0, "b": True, "s": "5", "o": "5"}, {"i": None, "f": None, "b": None, "s": "", "o": ""}]
        )
        assert "types={'i': <class 'int'>" in repr(reader)

    @pytest.mark.parametrize(
        ("kind", "cell"), [(int, "1.0"), (int, "1_0"), (int, "٣"), (float, "x"), (float, "1_0"), (bool, "yes")]
    )
    def test_cells_that_are_not_of_their_type(self, tmp_path, kind, cell):
        with pytest.raises(CorruptDataError, match=f"/a', line 2: '{cell}' in the column 'x' is not of its type"):
            read(tmp_path, csv_of([["x"], [cell]]), CsvFiles, types={"x": kind})

    def test_header_and_delimiter(self, tmp_path):
        (tmp_path / "a.csv").write_bytes(csv_of(ROWS[1:], delimiter=";"))
        check(CsvFiles(tmp_path, header=["id", "name", "x"], delimiter=";"), EXPECTED)

    def test_ends_of_lines(self, tmp_path):
        for end in ("\n", "\r\n"):
            assert read(tmp_path, csv_of(ROWS, lineterminator=end), CsvFiles) == EXPECTED
        assert read(tmp_path, b"\xef\xbb\xbf" + csv_of(ROWS), CsvFiles) == EXPECTED
        with pytest.raises(CorruptDataError, match="line 4: the file ends within this line"):
            read(tmp_path, b"a,b\n1,2\n3,4\n5,6", CsvFiles)
        assert read(tmp_path, b"a,b\n1,2\n3,4", CsvFiles, open_end=True) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]

    def test_cut_at_every_byte(self, tmp_path):
        path = tmp_path / "a.csv"
        data = csv_of(ROWS)
        path.write_bytes(data)
        ends = [len(csv_of(ROWS[:count])) for count in range(1, 5)]
        for size in range(len(data)):
            path.write_bytes(data[:size])
            if size in ends:
                assert list(CsvFiles(path)) == EXPECTED[: ends.index(size)]
            else:
                assert right_or_error(lambda: CsvFiles(path), EXPECTED, size), size

    @pytest.mark.parametrize(
        ("row", "what"),
        [
            ("1,2,3", "it has 3 cells, there are 2 columns"),
            ("1", "it has 1 cells, there are 2 columns"),
            ("", "it is blank"),
            ('1,"a"b', "it is no CSV"),
            ('1,"a', "it is no CSV: unexpected end of data"),
            ("1\r2,3", "it is no CSV"),
            ("1,\udcff", "it is not UTF-8"),
        ],
    )
    def test_wrong_rows(self, tmp_path, row, what):
        (tmp_path / "a.csv").write_bytes(f"x,y\n1,2\n{row}\n".encode("utf-8", "surrogateescape"))
        run = iter(IterableSource(CsvFiles(tmp_path)))
        assert next(run) == {"x": "1", "y": "2"}
        for _ in range(2):
            with pytest.raises(CorruptDataError, match=rf"a\.csv', line 3: {what}"):
                next(run)

    @pytest.mark.parametrize("header", ["a,a", "a,", ""])
    def test_wrong_headers(self, tmp_path, header):
        with pytest.raises(CorruptDataError, match="line 1: columns must have names"):
            read(tmp_path, f"{header}\n1,2\n".encode(), CsvFiles)

    def test_an_empty_file(self, tmp_path):
        with pytest.raises(CorruptDataError, match="byte 0: it is empty"):
            read(tmp_path, b"", CsvFiles)
        assert read(tmp_path, b"", CsvFiles, header=["a"]) == []

    def test_wrong_arguments(self, tmp_path):
        (tmp_path / "a.csv").write_bytes(csv_of(ROWS))
        for options, what in (
            ({"types": {"id": list}}, "types must be int"),
            ({"delimiter": ",,"}, "delimiter must be one character"),
            ({"delimiter": '"'}, "delimiter must be one character"),
            ({"header": ["a", "a"]}, "columns must have names"),
        ):
            with pytest.raises(ValueError, match=what):
                CsvFiles(tmp_path, **options)
        with pytest.raises(ValueError, match=r"types names the column 'nothing'; .* has 'id', 'name', 'x'"):
            list(CsvFiles(tmp_path, types={"nothing": int}))

    def test_large_cells(self, tmp_path):
        assert csv.field_size_limit() == 131072
        data = csv_of([["x"], ["y" * 200_000]])
        with pytest.raises(StoreError, match=r"line 2: field larger than field limit.*call csv\.field_size_limit"):
            read(tmp_path, data, CsvFiles)
        csv.field_size_limit(300_000)
        try:
            assert read(tmp_path, data, CsvFiles) == [{"x": "y" * 200_000}]
        finally:
            csv.field_size_limit(131072)
