"""FilesystemStore: one file per sample, and no key that can do harm."""

import errno
import json
import multiprocessing
import os
import pickle
import stat
import threading
import uuid
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import fsspec
import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch import IterableSource, SampleEncodingError, SampleNotFoundError, StoreError, Written
from squirrel_torch.errors import CorruptDataError
from squirrel_torch.storage.filesystem import FilesystemStore
from squirrel_torch.testing import check_store

HOSTILE = [
    ".",
    "..",
    "../x",
    "/etc/x",
    "a/../../b",
    "a/b",
    "a\x00b",
    ".hidden",
    ".x.tmp",
    "a\nb",
    "\x1b[31m",
    "é",
    "\ud800",
    "%",
    "%2F",
]


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "samples") if request.param == "local" else f"memory://{uuid.uuid4().hex}/samples"


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


class TestFiles:
    def test_set_get_replace_delete(self, url):
        store = FilesystemStore(url)
        assert store.set({"label": 3, "size": (1, 2)}, key="a") == "a"
        assert store.get("a") == {"label": 3, "size": (1, 2)}
        store.set(4, key="a")
        assert store.get("a") == 4
        assert len(store) == 1
        del store["a"]
        assert "a" not in store
        assert len(store) == 0

    def test_what_is_in_them(self, tmp_path):
        FilesystemStore(tmp_path).set({"label": 3}, key="a")
        FilesystemStore(tmp_path, format="json").set({"label": 3}, key="a")
        FilesystemStore(tmp_path, format="raw").set(b"label", key="a")
        assert files(tmp_path) == ["a.bin", "a.json", "a.msgpack"]
        assert msgpack.unpackb((tmp_path / "a.msgpack").read_bytes()) == {"label": 3}
        assert (tmp_path / "a.json").read_text() == '{"label": 3}'
        assert (tmp_path / "a.bin").read_bytes() == b"label"

    def test_reading_makes_no_folder(self, tmp_path):
        store = FilesystemStore(tmp_path / "a" / "b")
        assert len(store) == 0
        assert list(store) == list(store.keys()) == []
        assert "x" not in store
        with pytest.raises(SampleNotFoundError):
            store.get("x")
        assert not files(tmp_path)
        store.set(1)
        assert len(store) == 1

    def test_they_can_be_read_by_whom_the_umask_lets(self, tmp_path):
        before = os.umask(0o022)
        try:
            FilesystemStore(tmp_path).set(1, key="a")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.msgpack").stat().st_mode) == 0o644

    def test_the_order_is_that_of_the_keys(self, url):
        store = FilesystemStore(url)
        keys = ["b", "a/b", "a", "A", "é", ".", "a.b", "10", "9", "😀"]
        for key in keys:
            store.set(key, key)
        assert list(store) == list(store.keys()) == sorted(keys)

    def test_files_that_are_not_ours_are_no_samples(self, url):
        store = FilesystemStore(url, format="json")
        store.set(1, key="ours")
        filesystem, root = fsspec.core.url_to_fs(url)
        names = [
            ".0a.tmp",
            ".json",
            ".x.json",
            "x.msgpack",
            "x",
            "a b.json",
            "%2f.json",
            "%FF.json",
            "%61.json",
            "é.json",
            "a.json.bak",
        ]
        for name in names:
            filesystem.pipe_file(f"{root}/{name}", b"2")
        filesystem.makedirs(f"{root}/folder.json")
        filesystem.pipe_file(f"{root}/folder.json/inside.json", b"3")
        assert list(store.keys()) == ["ours"]
        assert len(store) == 1
        for key in ["", "x", "folder", "folder.json/inside", ".x", "/", "\ufffd"]:
            assert key not in store
            with pytest.raises(SampleNotFoundError):
                store.get(key)
            with pytest.raises(SampleNotFoundError):
                del store[key]
        assert list(store) == [1]
        assert filesystem.cat_file(f"{root}/folder.json/inside.json") == b"3"

    def test_files_that_others_wrote_are_samples(self, tmp_path):
        (tmp_path / "cat.json").write_text(json.dumps({"label": 1}, indent=2))
        store = FilesystemStore(tmp_path, format="json")
        assert list(store.keys()) == ["cat"]
        assert store.get("cat") == {"label": 1}

    def test_sink_and_prefetch(self, url):
        store = FilesystemStore(url)
        assert IterableSource(range(50)).sink(store) == Written(rows=50)
        assert sorted(IterableSource(store).collect()) == list(range(50))
        keys = list(store.keys())
        assert IterableSource(keys).prefetch(store, max_workers=3).collect() == list(store)

    def test_arrays_and_tensors(self, url):
        store = FilesystemStore(url)
        store.set({"x": np.zeros((2, 3), ">f4"), "y": torch.ones(2, dtype=torch.bfloat16)}, key="a")
        back = store.get("a")
        assert back["x"].dtype == ">f4"
        assert back["y"].dtype is torch.bfloat16


class TestKeys:
    @given(
        keys=st.lists(
            st.text(st.characters(exclude_categories=()), min_size=1, max_size=20), min_size=2, max_size=8, unique=True
        )
    )
    def test_any_text_is_a_key_of_its_own(self, keys):
        store = FilesystemStore(f"memory://{uuid.uuid4().hex}")
        for number, key in enumerate(keys):
            store.set(number, key)
        assert sorted(store.keys()) == sorted(keys)
        assert [store.get(key) for key in keys] == list(range(len(keys)))

    def test_no_key_leaves_the_folder(self, tmp_path):
        folder = tmp_path / "out" / "samples"
        beside = tmp_path / "out" / "samples-evil"
        store = FilesystemStore(folder, format="json")
        for key in [*HOSTILE, "../samples-evil/x"]:
            store.set(key, key)
            assert store.get(key) == key
        assert files(tmp_path / "out") == ["samples"]
        assert not beside.exists()
        names = files(folder)
        assert len(names) == len(HOSTILE) + 1
        assert all(name.isascii() and name.isprintable() and not name.startswith(".") for name in names)
        for key in [*HOSTILE, "../samples-evil/x"]:
            del store[key]
        assert not files(folder)

    def test_files_above_are_not_reached(self, tmp_path):
        (tmp_path / "secret.json").write_text("1")
        store = FilesystemStore(tmp_path / "samples", format="json")
        store.set(1)
        for key in ("../secret", str(tmp_path / "secret"), "..//secret"):
            assert key not in store
            with pytest.raises(SampleNotFoundError):
                store.get(key)
            with pytest.raises(SampleNotFoundError):
                del store[key]
        assert (tmp_path / "secret.json").exists()

    def test_the_longest_key(self, tmp_path):
        store = FilesystemStore(tmp_path, format="json")
        for longest in ("x" * 250, "/" * 83, "é" * 41):
            store.set(1, longest)
            assert list(store.keys()) == [longest]
            with pytest.raises(StoreError, match=r"makes a file name of \d+ bytes, the limit is 255 bytes"):
                store.set(1, longest + longest[0])
            assert longest + longest[0] not in store
            with pytest.raises(SampleNotFoundError):
                store.get(longest + longest[0])
            del store[longest]

    def test_messages_show_keys_escaped_and_short(self, tmp_path):
        store = FilesystemStore(tmp_path)
        for action in (store.get, store.__delitem__, lambda key: store.set(1, key)):
            with pytest.raises(StoreError) as caught:
                action("\x1b[31m\n" * 100_000)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("key", ["", 3, b"bytes"])
    def test_wrong_keys(self, tmp_path, key):
        with pytest.raises(StoreError, match="a key must be a text"):
            FilesystemStore(tmp_path).set(1, key=key)
        assert not files(tmp_path)


class TestDamage:
    @pytest.mark.parametrize("form", ["msgpack", "json"])
    def test_it_names_the_key_and_the_folder(self, tmp_path, form):
        store = FilesystemStore(tmp_path, format=form)
        store.set({"a": 1}, key="x\n")
        (tmp_path / f"x%0A.{form}").write_bytes(b"\xff\n")
        with pytest.raises(CorruptDataError, match="is not what was written") as caught:
            store.get("x\n")
        assert r"'x\n'" in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    @pytest.mark.parametrize("form", ["msgpack", "json"])
    def test_every_byte_of_a_file(self, tmp_path, form):
        store = FilesystemStore(tmp_path, format=form)
        store.set({"a": [1, np.arange(3), (b"x", "é")]}, key="x")
        file = tmp_path / f"x.{form}"
        data = file.read_bytes()
        for position in range(len(data)):
            file.write_bytes(data[:position])
            with pytest.raises(CorruptDataError):
                store.get("x")
            file.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
            with suppress(CorruptDataError):
                store.get("x")

    def test_a_file_that_can_not_be_read(self, tmp_path, monkeypatch):
        store = FilesystemStore(tmp_path)
        store.set(1, key="a")

        def refuse(*args, **kwargs):
            raise PermissionError(errno.EACCES, "refused")

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(StoreError, match="refused") as caught:
            store.get("a")
        monkeypatch.undo()
        assert not isinstance(caught.value, SampleNotFoundError)

    def test_the_folder_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("x")
        store = FilesystemStore(tmp_path / "file")
        with pytest.raises(StoreError, match="can't keep 'a'"):
            store.set(1, key="a")
        assert (tmp_path / "file").read_text() == "x"


class TestWriting:
    @pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.replace"])
    def test_a_full_disk(self, tmp_path, monkeypatch, place):
        store = FilesystemStore(tmp_path)
        store.set("old", key="a\n")

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(place, full)
        for key in ("a\n", "b"):
            with pytest.raises(StoreError, match="No space left on device") as caught:
                store.set("new", key=key)
            assert repr(key) in str(caught.value)
            assert isinstance(caught.value.__cause__, OSError)
        monkeypatch.undo()
        assert files(tmp_path) == ["a%0A.msgpack"]
        assert store.get("a\n") == "old"

    def test_an_interrupt_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupt(descriptor):
            raise KeyboardInterrupt

        monkeypatch.setattr("os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            FilesystemStore(tmp_path).set(1)
        assert not files(tmp_path)

    def test_a_sample_that_can_not_be_kept_leaves_nothing(self, tmp_path):
        with pytest.raises(SampleEncodingError, match=r"sample\['f'\] is a builtin"):
            FilesystemStore(tmp_path / "samples").set({"f": len})
        assert not files(tmp_path)

    def test_readers_see_the_old_or_the_new_sample(self, tmp_path):
        store = FilesystemStore(tmp_path)
        store.set(b"0" * 100_000, key="a")
        done = threading.Event()

        def read():
            seen = set()
            while not done.is_set():
                seen |= {(len(data), len(set(data))) for data in [store.get("a")]}
            return seen

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            for number in range(30):
                store.set(b"%d" % (number % 10) * 100_000, key="a")
            done.set()
            assert {seen for reader in readers for seen in reader.result()} == {(100_000, 1)}
        assert files(tmp_path) == ["a.msgpack"]

    def test_a_flaky_write_is_tried_again(self, tmp_path, monkeypatch):
        synced, real = [], os.fsync

        def flaky(descriptor):
            synced.append(descriptor)
            if len(synced) == 1:
                raise OSError(errno.EIO, "flaky")
            real(descriptor)

        monkeypatch.setattr("os.fsync", flaky)
        store = FilesystemStore(tmp_path)
        store.set(1, key="a")
        assert list(store) == [1]


class TestProcesses:
    @pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_what_one_sets_is_there_for_the_others(self, tmp_path, method):
        store = FilesystemStore(tmp_path)
        store.set(0, key="before")
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            keys = list(pool.map(store.set, range(20)))
            assert list(pool.map(store.get, keys)) == list(range(20))
        assert len(set(keys)) == 20
        assert sorted(store) == [0, *range(20)]

    def test_a_copy(self, url):
        store = FilesystemStore(url, format="json")
        store.set(1, key="a")
        copy = pickle.loads(pickle.dumps(store))
        assert copy.get("a") == 1
        assert repr(copy) == repr(store)
        assert pickle.loads(pickle.dumps(store.keys())) is not None

    def test_each_process_opens_the_filesystem_for_itself(self, monkeypatch):
        store = FilesystemStore(f"memory://{uuid.uuid4().hex}")
        opened = []
        real = fsspec.core.url_to_fs
        monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *args, **options: opened.append(1) or real(*args, **options))
        assert opened == []
        store.set(1)
        store.set(2)
        assert opened == [1]
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert len(store) == 2
        assert opened == [1, 1]

    def test_memory_is_not_shared(self, tmp_path):
        assert FilesystemStore(tmp_path).shared
        assert FilesystemStore(str(tmp_path / "memory:")).shared
        assert not FilesystemStore("memory://x").shared
        assert not pickle.loads(pickle.dumps(FilesystemStore("memory://x"))).shared


class TestArguments:
    @pytest.mark.parametrize("form", ["pickle", "", None, ".json"])
    def test_formats(self, tmp_path, form):
        with pytest.raises(ValueError, match="format must be one of 'msgpack', 'json', 'raw'"):
            FilesystemStore(tmp_path, format=form)

    @pytest.mark.parametrize("url", ["", b"x"])
    def test_urls(self, url):
        with pytest.raises(ValueError, match="url must be a path or a URL that is not empty"):
            FilesystemStore(url)

    def test_secrets_are_in_no_message(self):
        store = FilesystemStore("memory://x", token="SECRET")
        with pytest.raises(SampleNotFoundError) as caught:
            store.get("a")
        assert "SECRET" not in repr(store) + str(caught.value)
        assert repr(store) == "FilesystemStore('memory://x', format='msgpack')"

    def test_a_path_is_where_it_was_when_the_store_was_made(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        store = FilesystemStore("samples")
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        store.set(1)
        assert files(tmp_path) == ["other", "samples"]
        assert not files(tmp_path / "other")

    def test_a_url_of_a_local_folder(self, tmp_path):
        FilesystemStore(f"file://{tmp_path}/x").set(1, key="a")
        assert FilesystemStore(tmp_path / "x").get("a") == 1


@pytest.fixture
def bucket(monkeypatch):
    """A bucket on a server of this process."""
    server_of = pytest.importorskip("moto.server").ThreadedMotoServer
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = server_of(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}"}
    name = f"samples-{uuid.uuid4().hex}"  # servers of one process share what they hold
    s3fs.S3FileSystem(**options).mkdir(name)
    yield f"s3://{name}/folder", options
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.slow
@pytest.mark.keeps_threads
class TestS3:
    def test_the_contract(self, bucket):
        url, options = bucket
        check_store(lambda: FilesystemStore(f"{url}/{uuid.uuid4().hex}", **options))

    def test_what_others_write_and_remove_is_seen(self, bucket):
        url, options = bucket
        store, other = FilesystemStore(url, **options), FilesystemStore(url, use_listings_cache=True, **options)
        store.set(1, key="a")
        assert list(other.keys()) == ["a"]
        store.set(2, key="b")
        assert list(other.keys()) == ["a", "b"]
        assert "b" in other
        del store["a"]
        assert list(other.keys()) == ["b"]
        assert "a" not in other
        with pytest.raises(SampleNotFoundError):
            del other["a"]

    def test_another_process(self, bucket):
        url, options = bucket
        store = FilesystemStore(url, **options)
        store.set(1, key="a")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            assert pool.submit(store.get, "a").result() == 1
            assert pool.submit(store.set, 2, "b").result() == "b"
        assert store.get("b") == 2
