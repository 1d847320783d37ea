"""The command, by real processes and by its entry point."""

import csv
import fcntl
import gzip
import io
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import tarfile
import termios
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from squirrel_torch import IterableSource, ShardStore
from squirrel_torch.cli import main
from squirrel_torch.cli.output import plain, show_sample, to_json
from tests.support import ROOT

COMMAND = [sys.executable, "-m", "squirrel_torch"]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1", **more}


def run(*arguments, cwd, **more):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def call(capsys):
    """The exit code and what was written, of a command in this process."""

    def called(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return called


def rows_of(number, count=10):
    return [{"id": number * count + row, "text": f"row {row}", "x": [row + 0.5] * 3} for row in range(count)]


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def lines(tmp_path):
    """A folder with four files of ten lines."""
    for number in range(4):
        write_jsonl(tmp_path / "lines" / f"{number}.jsonl", rows_of(number))
    return tmp_path / "lines"


@pytest.fixture
def store(tmp_path):
    """A dataset of 5 shards with 40 rows each."""
    store = ShardStore(tmp_path / "store", shard_rows=40, compression="zstd", metadata={"made by": "a test"})
    samples = [{"id": row, "x": np.arange(6, dtype=np.float32).reshape(2, 3) + row, "raw": bytes(20)} for row in range(200)]
    IterableSource(samples).sink(store, resume="first")
    return store


def shards_of(store):
    return [Path(store.url) / "shards" / shard.name for shard in store.manifest.shards]


# -- files of each format ---------------------------------------------------------------------------------------------


def make_parquet(folder, number):
    table = pa.table({"id": [number * 2, number * 2 + 1], "text": ["a", None], "x": [[1.0, 2.0], [3.0]]})
    pq.write_table(table, folder / f"{number}.parquet")


def make_arrow(folder, number):
    batch = pa.record_batch({"id": [number * 2, number * 2 + 1], "x": [[1, 2], [3, 4]]})
    with pa.ipc.new_file(folder / f"{number}.arrow", batch.schema) as writer:
        writer.write_batch(batch)


def make_webdataset(folder, number):
    with tarfile.open(folder / f"{number}.tar", "w") as archive:
        for row in (number * 2, number * 2 + 1):
            array = io.BytesIO()
            np.save(array, np.full((2, 2), row))
            for suffix, data in (("id", str(row).encode()), ("npy", array.getvalue()), ("jpg", b"\xff\xd8")):
                member = tarfile.TarInfo(f"{row:04}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def make_jsonl(folder, number):
    with gzip.open(folder / f"{number}.jsonl.gz", "wt") as file:
        for row in (number * 2, number * 2 + 1):
            file.write(json.dumps({"id": row, "sub": {"x": [row]}}) + "\n")


def make_csv(folder, number):
    with (folder / f"{number}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], [number * 2, "a, b"], [number * 2 + 1, 'c "d"']])


def make_squirrel(folder, number):
    from squirrel.serialization import MessagepackSerializer

    data = b"".join(MessagepackSerializer().serialize({"id": row, "x": np.ones(row)}) for row in (number * 2, number * 2 + 1))
    (folder / f"{number}.gz").write_bytes(gzip.compress(data))


def make_images(folder, number):
    (folder / "cats").mkdir(exist_ok=True)
    for row in (number * 2, number * 2 + 1):
        Image.new("RGB", (4, 3), (row, 0, 0)).save(folder / "cats" / f"{row}.png")


MAKERS = {
    "parquet": make_parquet,
    "arrow": make_arrow,
    "webdataset": make_webdataset,
    "jsonl": make_jsonl,
    "csv": make_csv,
    "squirrel": make_squirrel,
    "images": make_images,
}


@pytest.fixture(params=MAKERS)
def files(request, tmp_path):
    folder = tmp_path / request.param
    folder.mkdir()
    for number in range(2):
        MAKERS[request.param](folder, number)
    return request.param, folder


def test_every_format_is_shown_and_converted(files, tmp_path, call):
    name, folder = files
    code, out, _ = call("info", folder, "--json")
    told = json.loads(out)
    assert (code, told["format"], told["files"]) == (0, name, 4 if name == "images" else 2)
    assert told["rows"] in (4, None)
    assert told["bytes"] == sum(path.stat().st_size for path in folder.rglob("*.*"))
    code, out, _ = call("head", folder, "-n", 3, "--json")
    shown = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [one["row"] for one in shown] == [0, 1, 2]
    code, out, _ = call("head", folder, "--rows", "3,0", "--json")
    assert [json.loads(line)["row"] for line in out.splitlines()] == [3, 0]
    assert json.loads(out.splitlines()[1]) == shown[0]
    code, out, err = call("convert", folder, tmp_path / "out", "--jobs", 2)
    assert (code, err) == (0, "")
    assert out.startswith("4 rows in ")
    number = "path" if name == "images" else "id"
    expected = [f"cats/{row}.png" for row in range(4)] if name == "images" else [0, 1, 2, 3]
    found = [sample[number] for sample in ShardStore(tmp_path / "out")]
    assert (list(map(int, found)) if name == "csv" else found) == expected
    assert call("verify", tmp_path / "out", "--jobs", 1)[0] == 0


def test_one_file_of_a_format(tmp_path, call):
    make_csv(tmp_path, 0)
    source = tmp_path / "0.csv"
    code, out, _ = call("convert", source, tmp_path / "out", "--option", 'types={"id": "int"}', "--shard-rows", 1)
    assert (code, out.split(",")[0]) == (0, "2 rows in 2 shards")
    assert list(ShardStore(tmp_path / "out")) == [{"id": 0, "text": "a, b"}, {"id": 1, "text": 'c "d"'}]


def test_options_of_the_reader(tmp_path, call):
    make_parquet(tmp_path, 0)
    _, out, _ = call("head", tmp_path, "--option", 'columns=["id"]', "-n", 1)
    assert out == "row 0\n  id: 0\n"
    code, _, err = call("head", tmp_path, "--option", "column=1")
    assert (code, err) == (1, "squirrel-torch head: TypeError: ParquetFiles has no option 'column', it has columns\n")
    code, _, err = call("head", tmp_path, "--from", "csv", "--option", 'types={"id": "integer"}')
    assert (code, "must be one of int, float, bool, str, got 'integer'" in err) == (1, True)


# -- info, head, sample -----------------------------------------------------------------------------------------------


def test_info_of_a_dataset(store, call):
    code, out, _ = call("info", store.url)
    size = sum(path.stat().st_size for path in shards_of(store))
    assert code == 0
    assert out.splitlines() == [
        "format       shards",
        f"url          {store.url}",
        "rows         200",
        "shards       5",
        f"bytes        {size}",
        "compression  zstd",
        "keyed        none",
        "commits      1",
        "jobs         first",
        'metadata     {"made by": "a test"}',
        "schema",
        "  id   int",
        "  x    array float32[2, 3]",
        "  raw  bytes",
    ]
    told = json.loads(call("info", store.url, "--json")[1])
    assert (told["rows"], told["shards"], told["bytes"], told["commits"]) == (200, 5, size, 1)
    assert told["schema"]["names"] == ["id", "x", "raw"]
    assert "lines" not in told


def test_info_says_what_can_not_be_kept(tmp_path, call):
    pq.write_table(pa.table({"price": [Decimal("1.5")]}), tmp_path / "a.parquet")
    code, out, _ = call("info", tmp_path)
    assert code == 0
    assert "it can't be kept in shards: sample number 0: sample['price'] is a decimal.Decimal" in out


def test_head_is_short_and_readable(store, call):
    code, out, _ = call("head", store.url, "--rows", "7,199")
    assert code == 0
    assert out.splitlines() == [
        "row 7",
        "  id: 7",
        "  x: float32[2, 3] 7 8 9 10 11 12",
        r"  raw: bytes[20] b'\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00'...",
        "row 199",
        "  id: 199",
        "  x: float32[2, 3] 199 200 201 202 203 204",
        r"  raw: bytes[20] b'\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00'...",
    ]
    assert call("head", store.url, "-n", 3)[1].count("row ") == 3
    assert call("head", store.url, "-n", 1000)[1].count("row ") == 200
    assert call("head", store.url, "-n", 0)[1] == ""
    code, _, err = call("head", store.url, "--rows", "3,200")
    assert (code, "row 200 is not in the dataset, which has 200 rows" in err) == (1, True)


def test_a_row_that_files_without_an_index_do_not_have(lines, call):
    code, _, err = call("head", lines, "--rows", "3,40")
    assert (code, err) == (1, "squirrel-torch head: there is no row 40: the files have 40 rows, from 0 on\n")


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31mrow 99\u202egnp.exe\u2028\x7f"


@pytest.mark.parametrize("as_json", [False, True])
def test_hostile_text_does_not_reach_the_terminal(as_json, tmp_path, call):
    sample = {
        HOSTILE: HOSTILE,
        "deep": {HOSTILE: (HOSTILE, [HOSTILE], {HOSTILE: 1})},
        "array": np.array([HOSTILE]),
        "scalar": np.str_(HOSTILE),
        "bytes": HOSTILE.encode(),
    }
    store = ShardStore(tmp_path / "store", metadata={HOSTILE: HOSTILE})
    IterableSource([sample]).sink(store)
    write_jsonl(tmp_path / "lines" / "\x1b[31m.jsonl", [{HOSTILE: HOSTILE}, {HOSTILE: 1}])
    flag = ["--json"] if as_json else []
    written = ""
    for url in (tmp_path / "store", tmp_path / "lines"):
        for command in ("info", "head", "sample"):
            code, out, err = call(command, url, *flag)
            assert (code, err) == (0, "")
            written += out
    code, out, err = call("convert", tmp_path / "lines", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "is int, it was str" in err
    assert all(character.isprintable() for character in (written + err).replace("\n", ""))
    assert not any(line.startswith("row 99") for line in written.splitlines())
    assert "owned" in written


def test_values_are_shown_short():
    sample = {
        "text": "a" * 1000,
        "list": list(range(1000)),
        "tensor": torch.zeros(10, 10, dtype=torch.bfloat16),
        "small": torch.ones(2, dtype=torch.float8_e4m3fn),
        "complex": torch.ones(1, dtype=torch.complex64),
        "flags": torch.tensor([True]),
        "empty": np.zeros((0, 3)),
        "scalar": np.float32(1.5),
        "when": np.datetime64("2020-01-01"),
        "nothing": None,
        "odd": [{"a": {"b": {"c": {"d": {"e": 1}}}}}],
        "many": {f"field {number}": number for number in range(200)},
    }
    shown = "\n".join(show_sample(sample))
    assert len(shown) < 5000
    for line in (
        f"text: '{'a' * 80}'... (1000 characters)",
        "list: [0, 1, 2, 3, 4, 5, ... 994 more]",
        "tensor: tensor bfloat16[10, 10] 0 0 0 0 0 0 ...",
        "small: tensor float8_e4m3fn[2] 1 1",
        "complex: tensor complex64[1] (1+0j)",
        "flags: tensor bool[1] True",
        "empty: float64[0, 3]",
        "scalar: float32 1.5",
        "when: datetime64[D] 2020-01-01",
        "nothing: None",
        "odd: [{a: {b: {c: {1 inside}}}}]",
    ):
        assert f"  {line}\n" in shown, line
    assert "... 100 more fields" in shown
    assert json.dumps(to_json({**sample, "nan": float("nan")}), allow_nan=False)
    assert list(show_sample(5)) == ["  5"]
    assert list(show_sample({})) == ["  {}"]


@pytest.mark.parametrize("kind", ["store", "lines", "parquet"])
def test_a_sample_is_the_same_for_the_same_seed(kind, request, tmp_path, call):
    if kind == "parquet":
        pq.write_table(pa.table({"id": list(range(200))}), tmp_path / "a.parquet", row_group_size=30)
        url, most = tmp_path, 200
    else:
        found = request.getfixturevalue(kind)
        url, most = (found.url, 200) if kind == "store" else (found, 40)

    def drawn(*arguments):
        code, out, _ = call("sample", url, *arguments, "--json")
        assert code == 0
        shown = [json.loads(line) for line in out.splitlines()]
        assert all(one["row"] == one["sample"]["id"] for one in shown)
        return [one["row"] for one in shown]

    first = drawn("-n", 12)
    assert len(set(first)) == 12
    assert drawn("-n", 12, "--seed", 0) == first
    assert drawn("-n", 12, "--seed", 1) != first
    assert sorted(drawn("-n", 1000)) == list(range(most))
    assert {row for seed in range(40) for row in drawn("-n", 12, "--seed", seed)} > set(range(0, most, most // 4))


# -- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_verify_finds_all_that_is_broken(store, jobs, call):
    code, out, err = call("verify", store.url, "--jobs", jobs)
    assert (code, err) == (0, "")
    assert out.endswith(": 0 shards broken, 0 files not listed\n")
    first, second, third, fourth, fifth = shards_of(store)
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-10])
    third.unlink()
    fourth.write_bytes(fifth.read_bytes())  # sound, and another one
    (first.parent / "stray.arrow").write_bytes(b"")
    code, out, err = call("verify", store.url, "--jobs", jobs)
    assert (code, err) == (1, "")
    told = out.splitlines()
    assert any(str(first) in line and "checksum" in line for line in told)
    assert any(str(second) in line and "bytes" in line for line in told)
    assert any(str(third) in line and "missing" in line for line in told)
    assert any(str(fourth) in line for line in told)
    assert not any(str(fifth) in line for line in told)
    assert any("stray.arrow is not listed" in line for line in told)
    assert told[-1].endswith(": 4 shards broken, 1 file not listed")


def test_verify_does_not_tell_of_thousands_of_blocks(tmp_path, call):
    store = ShardStore(tmp_path / "store", shard_bytes="100MB")
    IterableSource([{"x": np.zeros(1 << 18, np.uint8)} for _ in range(40)]).sink(store)
    (path,) = shards_of(store)
    path.write_bytes(bytes(path.stat().st_size))
    code, out, _ = call("verify", store.url)
    assert code == 1
    assert len(out.splitlines()) == 8
    assert "more blocks are broken" in out


def test_verify_needs_a_dataset(lines, tmp_path, call):
    for url in (lines, tmp_path / "nothing"):
        code, out, err = call("verify", url)
        assert (code, out) == (1, "")
        assert err.startswith(f"squirrel-torch verify: there is no dataset at '{url}': no manifest in")


# -- convert ----------------------------------------------------------------------------------------------------------


def test_convert_keeps_the_order_of_files_and_rows(lines, tmp_path, call):
    target = tmp_path / "out"
    code, out, err = call("convert", lines, target, "--shard-rows", 4, "--jobs", 2, "--compression", "lz4")
    store = ShardStore(target)
    size = sum(path.stat().st_size for path in shards_of(store))
    assert (code, err) == (0, "")
    assert out == f"40 rows in 12 shards, {size} bytes, written to {target}\n"
    assert [sample["id"] for sample in store] == list(range(40))
    assert {shard.compression for shard in store.manifest.shards} == {"lz4"}
    assert not (target / "writing").exists()


def test_convert_creates_appends_and_overwrites(lines, tmp_path, call):
    target = tmp_path / "out"
    assert call("convert", lines, target)[0] == 0
    code, _, err = call("convert", lines, target)
    assert code == 1
    assert "there is a dataset of 40 rows" in err
    assert call("convert", f"{lines}/[01].jsonl", target, "--mode", "append")[0] == 0
    assert [sample["id"] for sample in ShardStore(target)] == [*range(40), *range(20)]
    write_jsonl(lines / "0.jsonl", [{"other": 1}])
    code, _, err = call("convert", f"{lines}/[01].jsonl", target, "--mode", "append", "--jobs", 1)
    assert code == 1
    assert re.search(r"'.*/0\.jsonl': sample\['id'\] is missing, it was there in what was written before", err)
    assert call("convert", lines / "1.jsonl", target, "--mode", "overwrite")[0] == 0
    assert [sample["id"] for sample in ShardStore(target)] == list(range(10, 20))
    assert "0 files not listed" in call("verify", target)[1]


def test_convert_from_a_dataset(store, tmp_path, call):
    target = tmp_path / "out"
    code, out, err = call("convert", store.url, target, "--shard-rows", 100, "--resume", "copy")
    assert (code, err) == (0, "")
    assert out.startswith("200 rows in 2 shards")
    copy = ShardStore(target)
    assert [sample["id"] for sample in copy] == list(range(200))
    assert copy.metadata == store.metadata
    with ShardStore(tmp_path / "keyed") as keyed:
        keyed.set({"a": 1}, key="k")
    code, _, err = call("convert", tmp_path / "keyed", tmp_path / "unkeyed")
    assert code == 0
    assert "these are not kept" in err


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"a": 1}, {"a": "x"}], "/1.jsonl', sample number 1: sample['a'] is str, it was int in the samples before"),
        ([{"a": "x"}], "sample['a'] is"),
        ([{"a": 1 << 70}], "/1.jsonl', sample number 0: the integer 1180591620717411303424 does not fit into 64 bits"),
    ],
)
@pytest.mark.parametrize("many", [True, False])
def test_what_can_not_be_kept_names_the_file(rows, expected, many, tmp_path, call):
    if not many and expected == "sample['a'] is":
        return
    write_jsonl(tmp_path / "in" / "0.jsonl", [{"a": 1}])
    write_jsonl(tmp_path / "in" / "1.jsonl", rows)
    source = tmp_path / "in" if many else tmp_path / "in" / "1.jsonl"
    code, out, err = call("convert", source, tmp_path / "out", "--jobs", 1)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert expected in err
    assert ".jsonl'" in err
    assert not list((tmp_path / "out").rglob("*.arrow"))


def test_a_broken_file_is_named(lines, tmp_path, call):
    (lines / "2.jsonl").write_text('{"id": 1, "te')
    code, _, err = call("convert", lines, tmp_path / "out", "--jobs", 2)
    assert code == 1
    assert err.startswith(f"squirrel-torch convert: '{lines}/2.jsonl', line 1: it can't be decoded, and the file ends within")
    assert len(err.splitlines()) == 1
    code, _, err = call("convert", lines, tmp_path / "out", "--jobs", 2, "--traceback")
    assert code == 1
    assert "Traceback (most recent call last):" in err.splitlines()


def test_the_target_may_not_be_inside_of_the_source(lines, tmp_path, call):
    code, _, err = call("convert", lines, lines / "out")
    assert code == 1
    assert "is inside of the source" in err
    assert call("convert", lines, tmp_path / "lines2")[0] == 0


def test_resume_reads_a_file_again_if_it_has_changed(lines, tmp_path, call):
    target = tmp_path / "out"
    (lines / "3.jsonl").write_text("{")
    arguments = ("convert", lines, target, "--resume", "a", "--jobs", 1)
    assert call(*arguments)[0] == 1
    code, _, err = call("head", target)
    assert code == 1
    assert "was begun and never committed" in err
    write_jsonl(lines / "0.jsonl", rows_of(7, 20))
    write_jsonl(lines / "3.jsonl", rows_of(3))
    code, _, err = call(*arguments)
    assert (code, err) == (0, "2 of 4 files have been written by an earlier run of 'a'\n")
    assert [sample["id"] for sample in ShardStore(target)] == [*range(140, 160), *range(10, 40)]
    assert call("verify", target)[1].endswith("0 shards broken, 0 files not listed\n")
    code, _, err = call(*arguments[:-2], "--mode", "append")
    assert (code, "the job 'a' has been committed" in err) == (1, True)


def test_a_job_of_sink_is_not_gone_on_with(lines, tmp_path, call):
    def broken():
        yield from rows_of(0)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        IterableSource(broken).sink(ShardStore(tmp_path / "out", shard_rows=2), resume="a")
    code, _, err = call("convert", lines, tmp_path / "out", "--resume", "a")
    assert (code, "was begun by another kind of writer" in err) == (1, True)


def wait_for(condition, process):
    end = time.monotonic() + 50
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_conversion_that_is_killed_goes_on(tmp_path, call):
    source, target = tmp_path / "in", tmp_path / "out"
    files, rows = 12, 8_000
    for number in range(files):
        write_jsonl(source / f"{number:02}.jsonl", rows_of(number, rows))
    arguments = ("convert", source, target, "--resume", "job", "--jobs", 2, "--shard-rows", 2_000)

    def done():
        return sorted((target / "writing" / "job").glob("0-of-1/*.json"))

    known = 0
    for least in (1, 4, 7):  # each run is killed further on
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda least=least: len(done()) >= least, process)
        process.kill()
        _, err = process.communicate()
        assert known == 0 or f"{known} of {files} files have been written by an earlier run of 'job'" in err
        assert not (target / "manifest").exists()
        time.sleep(0.2)  # what the processes of the run have been writing meanwhile
        known = len(done())
    assert 7 <= known < files
    # What is done is not read again: it would be seen, though it looks the same from outside.
    for path in done():
        origin = Path(json.loads(path.read_text())["origin"].split(" ", 3)[3])
        before = origin.stat()
        origin.write_bytes(b"?" * before.st_size)
        os.utime(origin, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, out, err = call(*arguments)
    assert (code, err) == (0, f"{known} of {files} files have been written by an earlier run of 'job'\n")
    assert out.startswith(f"{files * rows} rows in {files * 4} shards")
    store = ShardStore(target)
    assert [sample["id"] for sample in store] == list(range(files * rows))
    assert not list((target / "writing").rglob("*.json"))


@pytest.mark.slow
def test_an_interrupt_ends_it_at_once(tmp_path):
    source = tmp_path / "in"
    for number, lines in enumerate((10, 4_000_000, 4_000_000)):
        source.mkdir(exist_ok=True)
        (source / f"{number}.jsonl").write_text('{"id": 1}\n' * lines)
    arguments = map(str, ("convert", source, tmp_path / "out", "--jobs", 2))
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list((tmp_path / "out").rglob("*.arrow")), process)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5  # the files take longer
    assert (process.returncode, out, err) == (130, "", "squirrel-torch: interrupted\n")
    assert not (tmp_path / "out" / "manifest").exists()


@pytest.mark.slow
def test_a_terminal_gets_a_progress_bar(lines, tmp_path):
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, "convert", str(lines), str(tmp_path / "out"), "--jobs", "2"],
        env=environment(), stdout=subprocess.PIPE, stderr=terminal, text=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # nobody has it open any more
        while more := os.read(controller, 1000):
            shown += more
    os.close(controller)
    out, _ = process.communicate(timeout=50)
    assert out.startswith("40 rows in 4 shards")
    assert b"4/4" in shown
    assert b"40 rows" in shown


# -- usage and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("info",),
        ("head", "x", "-n", "-1"),
        ("head", "x", "-n", "2", "--rows", "1"),
        ("head", "x", "--rows", "1,b"),
        ("head", "x", "--from", "nonsense"),
        ("verify", "x", "--jobs", "0"),
        ("convert", "x"),
        ("info", "x", "--storage-option", "secret"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, call):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "usage: squirrel-torch" in err
    assert "'secret'" not in err


def test_wrong_urls(tmp_path, call):
    for arguments, expected in (
        (("info", tmp_path / "nothing"), "there is no file or folder"),
        (("head", "nonsense://x"), "Protocol not known: nonsense"),
        (("head", tmp_path / "nothing", "--from", "shards"), "there is no dataset at"),
        (("sample", f"{tmp_path}/*.csv"), "there is no file that matches"),
        (("convert", tmp_path / "nothing", tmp_path / "out"), "there is no file or folder"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (1, "")
        assert expected in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit(store, lines, tmp_path, call):
    for arguments, expected in (
        (("info", lines, "--cache", tmp_path / "cache"), "--cache is for datasets in shards"),
        (("info", store.url, "--option", "columns=[]"), "is a dataset in shards"),
        (("info", store.url, "--storage-option", "mode=append"), "take no such storage options"),
        (("convert", lines, tmp_path / "out", "--shard-bytes", "much"), "shard_bytes must be a number of bytes"),
    ):
        code, _, err = call(*arguments)
        assert code == 1
        assert expected in err


def test_convert_refuses_ranks(lines, tmp_path, call, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call("convert", lines, tmp_path / "out")
    assert (code, "run it once" in err) == (1, True)


def test_other_filesystems_and_the_cache(store, tmp_path, call):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(f"{store.url}/", "/cli-test/", recursive=True)
    try:
        url = "memory://cli-test"
        told = json.loads(call("info", url, "--json", "--storage-option", 'unused={"a": 1}')[1])
        assert (told["rows"], told["url"]) == (200, url)
        assert call("head", url, "-n", 1, "--cache", tmp_path / "cache")[0] == 0
        assert list((tmp_path / "cache").glob("*.arrow"))
        assert call("verify", url, "--jobs", 1)[0] == 0
        assert call("convert", url, tmp_path / "out")[0] == 0
        assert len(ShardStore(tmp_path / "out")) == 200
    finally:
        memory.rm("/cli-test", recursive=True)


def test_plain_text():
    assert plain("täxt 日本") == "täxt 日本"
    assert plain("a\x1bb\n\u202e\ud800") == "a\\x1bb\\n\\u202e\\ud800"


@pytest.mark.slow
def test_a_terminal_that_knows_ascii_only(lines, tmp_path):
    write_jsonl(lines / "4.jsonl", [{"täxt": "日本"}])
    result = run("head", lines / "4.jsonl", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "row 0\n  t\\xe4xt: '\\u65e5\\u672c'\n"


@pytest.mark.slow
def test_a_reader_that_leaves_early(store, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "head", store.url, "-n", "200"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=50) == 141
    assert err == b""


# -- the document -----------------------------------------------------------------------------------------------------

GUIDE = ROOT / "docs" / "how-to" / "datasets-from-the-command-line.md"


def test_every_command_of_the_guide_runs(tmp_path, call, monkeypatch):
    """In their order; a block of text says what the commands before it answer."""
    text = GUIDE.read_text()
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(code, {})
    answer, commands = "", 0
    for kind, block in re.findall(r"^```(sh|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind == "text":
            assert block == answer
            continue
        answer = ""
        for line in block.splitlines():
            name, *arguments = shlex.split(line)
            assert name == "squirrel-torch"
            arguments, target = (arguments[:-2], arguments[-1]) if ">" in arguments else (arguments, None)
            code, out, err = call(*arguments)
            assert (code, err) == (0, ""), line
            answer += "" if target else out
            commands += 1
    assert commands == 10
