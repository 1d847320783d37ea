"""Finding files, and the reader that fits."""

import gzip
import inspect
import json
import multiprocessing
import pickle
import zipfile
from concurrent.futures import ProcessPoolExecutor

import fsspec
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from squirrel_torch import IterableSource, StoreError
from squirrel_torch.storage import Readable
from squirrel_torch.storage.formats import FORMATS, ArrowFiles, JsonLines, ParquetFiles, SquirrelShards, TarShards, open_files
from tests.storage.formats.test_webdataset import tar

LINE = b'{"a": 1}\n'


def names(reader, root):
    return [path.removeprefix(f"{root}/") for path in reader.files]


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in (
            "b.jsonl",
            "a.JSONL",
            "deep/c.ndjson",
            "deep/er/a.jsonl.gz",
            "notes.txt",
            "x.json",
            "_tmp/d.jsonl",
            ".e.jsonl",
        ):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(LINE) if name.endswith("gz") else LINE)
        return tmp_path

    def test_a_folder(self, folder):
        for url in (folder, str(folder), f"{folder}/", f"file://{folder}"):
            assert names(JsonLines(url), folder) == ["a.JSONL", "b.jsonl", "deep/c.ndjson", "deep/er/a.jsonl.gz"]

    def test_a_hidden_folder_that_is_named(self, folder):
        assert names(JsonLines(folder / "_tmp"), folder) == ["_tmp/d.jsonl"]

    def test_a_file_and_a_glob(self, folder):
        assert names(JsonLines(folder / "notes.txt"), folder) == ["notes.txt"]
        assert names(JsonLines(f"{folder}/*"), folder) == [".e.jsonl", "a.JSONL", "b.jsonl", "notes.txt", "x.json"]
        assert names(JsonLines(f"{folder}/**/*.ndjson"), folder) == ["deep/c.ndjson"]

    def test_a_file_whose_name_looks_like_a_glob(self, tmp_path):
        (tmp_path / "a[1].jsonl").write_bytes(LINE)
        assert len(JsonLines(tmp_path / "a[1].jsonl").files) == 1

    def test_a_list(self, folder):
        assert names(JsonLines([folder / "b.jsonl", folder / "deep"]), folder) == [
            "b.jsonl",
            "deep/c.ndjson",
            "deep/er/a.jsonl.gz",
        ]
        with pytest.raises(ValueError, match=r"b\.jsonl' is named twice"):
            JsonLines([folder / "b.jsonl", f"{folder}/*.jsonl"])
        with pytest.raises(ValueError, match="an empty list"):
            JsonLines([])

    def test_files_that_came_since_are_found(self, tmp_path):
        memory = fsspec.filesystem("memory")
        memory.pipe("/later/a.jsonl", LINE)
        assert len(JsonLines("memory://later").files) == 1
        memory.pipe("/later/b.jsonl", LINE)
        assert len(JsonLines("memory://later").files) == 2

    def test_a_relative_path(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        reader = JsonLines("deep")
        monkeypatch.chdir("/")
        assert len(list(reader)) == 2

    @pytest.mark.parametrize("url", ["nothing", "nothing*.jsonl", "empty"])
    def test_nothing_there(self, tmp_path, url):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "x.parquet").touch()
        with pytest.raises(FileNotFoundError, match="there is no file"):
            JsonLines(tmp_path / url)
        with pytest.raises(FileNotFoundError, match="there is no file"):
            JsonLines(f"memory://{url}")

    def test_chained_filesystems(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("in/b.jsonl", LINE)
            archive.writestr("in/a.jsonl", LINE * 2)
        for url in (f"zip://in/*.jsonl::{tmp_path}/x.zip", f"zip://in::file://{tmp_path}/x.zip"):
            reader = JsonLines(url)
            assert [path.partition("::")[0] for path in reader.files] == ["zip://in/a.jsonl", "zip://in/b.jsonl"]
            assert len(list(pickle.loads(pickle.dumps(reader)))) == 3

    def test_a_cache_in_front(self, tmp_path):
        fsspec.filesystem("memory").pipe({"/cached/a.jsonl": LINE, "/cached/b.jsonl": LINE})
        reader = JsonLines("simplecache::memory://cached/*.jsonl", simplecache={"cache_storage": str(tmp_path / "cache")})
        assert reader.files == ["simplecache::memory:///cached/a.jsonl", "simplecache::memory:///cached/b.jsonl"]
        assert list(reader) == [{"a": 1}] * 2
        assert len(list((tmp_path / "cache").iterdir())) == 2

    def test_options_of_the_filesystem_are_not_shown(self, folder):
        fsspec.filesystem("memory").pipe("/secrets/a.jsonl", LINE)
        reader = JsonLines("memory://secrets", secret="TOKEN")
        assert repr(reader) == "JsonLines('memory://secrets')"
        assert pickle.loads(pickle.dumps(reader))._storage_options == {"secret": "TOKEN"}
        with pytest.raises(TypeError, match="unknown arguments secret"):
            JsonLines(folder, secret="TOKEN")

    def test_errors_do_not_show_them(self, tmp_path):
        fsspec.filesystem("memory").pipe("/broken/a.jsonl", b"{")
        with pytest.raises(StoreError) as caught:
            list(JsonLines("memory://broken", secret="TOKEN"))
        assert "TOKEN" not in str(caught.value)


def first_of(reader):
    return next(iter(reader))


class TestProcesses:
    @pytest.mark.slow
    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_readers_travel(self, tmp_path, start):
        pq.write_table(pa.table({"x": list(range(10))}), tmp_path / "a.parquet")
        (tmp_path / "a.tar").write_bytes(tar(("a.cls", b"1")))
        (tmp_path / "a.jsonl").write_bytes(LINE)
        readers = [ParquetFiles(tmp_path), TarShards(tmp_path), JsonLines(tmp_path)]
        expected = [first_of(reader) for reader in readers]
        with ProcessPoolExecutor(1, multiprocessing.get_context(start)) as pool:
            assert list(pool.map(first_of, readers)) == expected

    def test_workers_of_a_data_loader(self, tmp_path):
        for number in range(3):
            (tmp_path / f"{number}.jsonl").write_text("".join(f"{json.dumps(number * 10 + row)}\n" for row in range(7)))
        chain = IterableSource(JsonLines(tmp_path)).split_by_worker().to_torch_iterable()
        got = list(DataLoader(chain, batch_size=None, num_workers=2))
        assert sorted(got) == sorted(number * 10 + row for number in range(3) for row in range(7))

    def test_map_style(self, tmp_path):
        pq.write_table(pa.table({"x": list(range(10))}), tmp_path / "a.parquet", row_group_size=3)
        got = [int(number) for batch in DataLoader(ParquetFiles(tmp_path), batch_size=4) for number in batch["x"]]
        assert got == list(range(10))


class TestOpenFiles:
    def make(self, folder):
        table = pa.table({"x": [1, 2]})
        pq.write_table(table, folder / "a.parquet")
        with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as writer:
            writer.write_table(table)
        with pa.ipc.new_stream(str(folder / "a.arrows"), table.schema) as writer:
            writer.write_table(table)
        (folder / "a.tar").write_bytes(tar(("a.cls", b"1")))
        (folder / "a.tar.gz").write_bytes(gzip.compress(tar(("a.cls", b"1"))))
        (folder / "a.jsonl").write_bytes(LINE)
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINE))
        (folder / "a.csv").write_bytes(b"x\n1\n")
        (folder / "a.gz").write_bytes(gzip.compress(msgpack.packb({"a": 1})))

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("a.parquet", "parquet"),
            ("a.arrow", "arrow"),
            ("a.tar", "webdataset"),
            ("a.tar.gz", "webdataset"),
            ("a.jsonl", "jsonl"),
            ("a.jsonl.gz", "jsonl"),
            ("a.csv", "csv"),
            ("a.gz", "squirrel"),
        ],
    )
    def test_by_name(self, tmp_path, name, kind):
        self.make(tmp_path)
        reader = open_files(tmp_path / name)
        assert type(reader) is FORMATS[kind]
        assert isinstance(reader, Readable)
        assert list(reader)
        assert type(open_files(f"{tmp_path}/{name}", format=kind)) is FORMATS[kind]

    @pytest.mark.parametrize(
        ("name", "reader"),
        [
            ("a.parquet", ParquetFiles),
            ("a.arrow", ArrowFiles),
            ("a.arrows", ArrowFiles),
            ("a.tar", TarShards),
            ("a.tar.gz", TarShards),
        ],
    )
    def test_by_content(self, tmp_path, name, reader):
        self.make(tmp_path)
        for other in ("data", "data.gz") if name.endswith("gz") else ("data",):
            (tmp_path / other).write_bytes((tmp_path / name).read_bytes())
            made = open_files(tmp_path / other)
            assert type(made) is reader
            assert list(made)

    def test_images(self, tmp_path):
        (tmp_path / "ape").mkdir()
        Image.fromarray(np.zeros((2, 2, 3), "u1")).save(tmp_path / "ape" / "a.png")
        (sample,) = open_files(tmp_path, decode=True)
        assert sample["image"].shape == (2, 2, 3)

    def test_folders(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(LINE)
        (tmp_path / "notes.txt").write_bytes(LINE)
        assert list(open_files(tmp_path)) == [{"a": 1}]
        (tmp_path / "a.csv").write_bytes(b"x\n1\n")
        with pytest.raises(StoreError, match=r"several formats \(.*jsonl: .*csv: .*give format= as one of 'parquet'"):
            open_files(tmp_path)
        assert list(open_files(tmp_path, "csv", types={"x": int})) == [{"x": 1}]

    def test_on_another_filesystem(self):
        fsspec.filesystem("memory").pipe("/opened/a.jsonl", LINE)
        assert list(open_files("memory://opened", storage_options={"skip_instance_cache": False})) == [{"a": 1}]

    def test_what_can_not_be_seen(self, tmp_path):
        (tmp_path / "data").write_bytes(b"something")
        with pytest.raises(StoreError, match=r"the format of '.*data' can't be seen .*b'somethin'.*give format="):
            open_files(tmp_path / "data")
        with pytest.raises(ValueError, match="there is no format 'xml': give format= as one of 'parquet', 'arrow'"):
            open_files(tmp_path / "data", "xml")
        with pytest.raises(FileNotFoundError):
            open_files(tmp_path / "nothing")

    def test_bare_gz_with_json(self, tmp_path):
        (tmp_path / "a.gz").write_bytes(gzip.compress(LINE))
        reader = open_files(tmp_path)
        assert type(reader) is SquirrelShards
        assert list(reader) == [{"a": 1}]


@pytest.mark.parametrize("reader", FORMATS.values())
def test_every_reader_says_what_it_takes(reader):
    documented = inspect.getdoc(reader)
    for name in inspect.signature(reader).parameters:
        assert f"{name}:" in documented
    assert "Raises:" in documented
