"""Shards on S3, over a server on this machine, and in memory."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from squirrel_torch import CorruptDataError, DatasetExistsError, IterableSource, ShardStore, StoreError
from squirrel_torch.testing import check_store
from tests.storage.s3 import bucket, s3  # noqa: F401  # fixtures
from tests.support import run_script

pytestmark = [pytest.mark.keeps_threads, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*datetime:DeprecationWarning")]

COUNT = 200
SAMPLES = [{"n": n, "x": np.full(50, n, np.int32)} for n in range(COUNT)]


@pytest.fixture(params=["s3", "memory"])
def place(request):
    """A folder that is not there yet, and the options for it."""
    if request.param == "memory":
        yield f"memory://shards-{time.monotonic_ns()}/train", {}
    else:
        yield f"{request.getfixturevalue('bucket')}/train", request.getfixturevalue("s3")


@pytest.fixture
def train(bucket, s3):  # noqa: F811
    IterableSource(SAMPLES).sink(ShardStore(f"{bucket}/train", shard_rows=30, **s3))
    return f"{bucket}/train"


def numbers(rows):
    return [row["n"] for row in rows if (row["x"] == row["n"]).all()]


class TestAnyPlace:
    def test_it_keeps_the_contract(self, place):
        url, options = place
        check_store(lambda: ShardStore(f"{url}/{uuid4().hex}", **options))

    def test_written_and_read(self, place):
        url, options = place
        store = ShardStore(url, shard_rows=30, compression="lz4", metadata={"a": 1}, **options)
        written = IterableSource(SAMPLES).sink(store)
        assert (written.rows, len(written.shards)) == (COUNT, 7)
        assert numbers(store) == list(range(COUNT))
        assert numbers(ShardStore(url, **options).select([199, 0, 77, 0])) == [199, 0, 77, 0]
        assert ShardStore(url, **options).row(100)["n"] == 100
        assert store.metadata == {"a": 1}
        filesystem, root = fsspec.core.url_to_fs(url, **options)
        assert written.bytes == sum(filesystem.size(f"{root}/shards/{name}") for name in written.shards)
        assert [key in store for key in [*store.keys(), "x"]] == [True] * COUNT + [False]

    def test_batches(self, place):
        url, options = place
        with ShardStore(url, shard_rows=30, **options) as store:
            store.set_many(SAMPLES)
        batches = list(IterableSource(store).batched(64, default_collate, drop_last_if_not_full=False))
        assert [len(batch["n"]) for batch in batches] == [64, 64, 64, 8]
        assert torch.cat([batch["x"] for batch in batches])[:, 0].tolist() == list(range(COUNT))

    def test_the_manifest_is_replaced(self, place):
        url, options = place
        with ShardStore(url, **options) as store:
            store.set_many(SAMPLES[:5])
        reader = ShardStore(url, **options)
        assert len(reader) == 5
        with pytest.raises(DatasetExistsError):
            ShardStore(url, **options).set(SAMPLES[0])
        with ShardStore(url, mode="append", **options) as other:
            other.set_many(SAMPLES[5:9])
        assert len(reader) == 5
        reader.refresh()
        assert numbers(reader) == list(range(9))
        IterableSource(SAMPLES[20:22]).sink(ShardStore(url, mode="overwrite", **options))
        assert numbers(ShardStore(url, **options)) == [20, 21]
        with pytest.raises(CorruptDataError, match="was the dataset overwritten"):
            numbers(reader)
        reader.refresh()
        assert numbers(reader) == [20, 21]
        filesystem, root = fsspec.core.url_to_fs(url, **options)
        filesystem.invalidate_cache()
        assert len(filesystem.ls(f"{root}/shards")) == 1

    def test_shards_that_a_listing_does_not_know_yet(self, place):
        url, options = place
        with ShardStore(url, mode="append", **options) as store:
            store.set_many(SAMPLES[:5])
        filesystem, root = fsspec.core.url_to_fs(url, **options)
        assert len(filesystem.ls(f"{root}/shards")) == 1  # remembered by the filesystem, for all stores of this process
        if options:
            run_in_another_process(url, options)
        else:
            with ShardStore(url, mode="append", **options) as store:
                store.set_many(SAMPLES[5:9])
        assert numbers(ShardStore(url, **options)) == list(range(9))

    def test_a_missing_shard(self, place):
        url, options = place
        with ShardStore(url, shard_rows=3, **options) as store:
            store.set_many(SAMPLES[:5])
        filesystem, root = fsspec.core.url_to_fs(url, **options)
        filesystem.rm_file(f"{root}/shards/{store.manifest.shards[1].name}")
        with pytest.raises(CorruptDataError, match="is missing"):
            list(ShardStore(url, **options))

    def test_resume(self, place):
        url, options = place

        def stream(stop):
            for sample in SAMPLES:
                if sample["n"] == stop:
                    raise ZeroDivisionError
                yield sample

        with pytest.raises(ZeroDivisionError):
            IterableSource(lambda: stream(150)).sink(ShardStore(url, shard_rows=30, **options), resume="job")
        filesystem, root = fsspec.core.url_to_fs(url, **options)
        filesystem.invalidate_cache()
        before = {path.rpartition("/")[2] for path in filesystem.ls(f"{root}/shards", detail=False)}
        store = ShardStore(url, shard_rows=30, **options)
        written = IterableSource(lambda: stream(None)).sink(store, resume="job")
        assert before <= set(written.shards)
        assert before
        assert numbers(store) == list(range(COUNT))

    @pytest.mark.parametrize("mode", ["create", "append"])
    def test_two_writers_at_a_time(self, place, mode):
        url, options = place
        ready = threading.Barrier(2)

        def write(part):
            store = ShardStore(url, mode=mode, shard_rows=10, **options)

            def stream():
                yield from SAMPLES[part::2]
                ready.wait()

            try:
                return IterableSource(stream).sink(store).rows
            except DatasetExistsError:
                return None

        with ThreadPoolExecutor(2) as pool:
            told = list(pool.map(write, range(2)))
        rows = numbers(ShardStore(url, **options))
        parts = [list(range(0, COUNT, 2)), list(range(1, COUNT, 2))]
        if mode == "append":
            assert told == [100, 100]
            assert rows in (parts[0] + parts[1], parts[1] + parts[0])
        else:
            assert sorted(told, key=str) == [100, None]
            assert rows == parts[told.index(100)]


def run_in_another_process(url, options):
    code = """
import sys, json
from squirrel_torch import ShardStore
import numpy as np
with ShardStore(sys.argv[1], mode="append", **json.loads(sys.argv[2])) as store:
    store.set_many([{"n": n, "x": np.full(50, n, np.int32)} for n in range(5, 9)])
"""
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run_script(code, Path(folder), url, json.dumps(options))


class TestS3:
    def test_written_by_processes(self, bucket, s3):  # noqa: F811
        store = ShardStore(f"{bucket}/train", shard_rows=30, **s3)
        assert IterableSource(SAMPLES).sink(store, executor="process", max_workers=2).rows == COUNT
        assert numbers(store) == list(range(COUNT))

    @pytest.mark.parametrize("start", ["fork", "spawn"])
    @pytest.mark.parametrize("cached", [False, True])
    def test_data_loader(self, train, s3, start, cached, tmp_path):  # noqa: F811
        store = ShardStore(train, cache=tmp_path / "cache" if cached else None, **s3)
        assert store.row(3)["n"] == 3  # its filesystem is open when workers are forked
        stream = IterableSource(store).split_by_worker().batched(16, default_collate, drop_last_if_not_full=False)
        loader = DataLoader(stream.to_torch_iterable(), batch_size=None, num_workers=2, multiprocessing_context=start)
        assert sorted(n for batch in loader for n in batch["n"].tolist()) == list(range(COUNT))

    def test_cache(self, train, s3, tmp_path):  # noqa: F811
        store = ShardStore(train, cache=tmp_path, **s3)
        assert numbers(store) == list(range(COUNT))
        filesystem, root = fsspec.core.url_to_fs(train, **s3)
        filesystem.rm(f"{root}/shards", recursive=True)
        assert numbers(ShardStore(train, cache=tmp_path, **s3)) == list(range(COUNT))
        next(tmp_path.glob("*.arrow")).unlink()
        with pytest.raises(CorruptDataError, match="is missing"):
            numbers(ShardStore(train, cache=tmp_path, **s3))

    def test_changed_bytes(self, train, s3):  # noqa: F811
        filesystem, root = fsspec.core.url_to_fs(train, **s3)
        name = ShardStore(train, **s3).manifest.shards[2].name
        data = bytearray(filesystem.cat_file(f"{root}/shards/{name}"))
        data[2000] ^= 1
        filesystem.pipe_file(f"{root}/shards/{name}", bytes(data))
        rows = []
        with pytest.raises(CorruptDataError, match=f"{name}, rows 0 to 29"):
            rows.extend(ShardStore(train, **s3))
        assert numbers(rows) == list(range(60))
        filesystem.pipe_file(f"{root}/shards/{name}", bytes(data[:-1]))
        with pytest.raises(CorruptDataError, match="bytes"):
            list(ShardStore(train, **s3))

    def test_the_server_refuses_to_replace(self, bucket, s3):  # noqa: F811
        """What the commit rests on: If-None-Match."""
        filesystem, root = fsspec.core.url_to_fs(f"{bucket}/file", **s3)
        filesystem.pipe_file(root, b"one", mode="create")
        with pytest.raises(OSError):
            filesystem.pipe_file(root, b"two", mode="create")
        assert filesystem.cat_file(root) == b"one"

    def test_no_server(self, s3):  # noqa: F811
        options = {
            **s3,
            "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"},
            "config_kwargs": {"retries": {"max_attempts": 1}},
        }
        with pytest.raises(StoreError, match="s3://nowhere/x") as caught:
            list(ShardStore("s3://nowhere/x", attempts=1, **options))
        assert "secret" not in str(caught.value)

    def test_no_bucket(self, s3):  # noqa: F811
        with pytest.raises(StoreError):
            list(ShardStore("s3://no-such-bucket-here/x", attempts=1, **s3))
