"""The cache of remote shards, when many processes want it at a time, when it is small, and when somebody meddles with it."""

import fcntl
import os
import random
import stat
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from squirrel_torch import CorruptDataError, IterableSource, ShardStore, StoreError
from tests.faults.children import end, kill, outcome, start

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


class Counting(LocalFileSystem):
    """A remote filesystem in a local folder, that writes down what is read of it, whatever process it is in."""

    protocol = "counting"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(path.replace("counting://", ""))

    def cat_file(self, path, start=None, end=None, **kwargs):
        log = Path(path).parent.parent / "reads.log"
        with log.open("a") as file:
            is_whole = not start and end in (None, Path(path).stat().st_size)
            file.write(f"{Path(path).name} {'whole' if is_whole else 'range'}\n")
        if (log.parent / "slow").exists() and is_whole:
            time.sleep(0.2)
        return super().cat_file(path, start=start, end=end, **kwargs)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode=mode, **kwargs)


fsspec.register_implementation("counting", Counting, clobber=True)

SAMPLES = [{"n": n, "x": np.full(1000, n, np.uint8)} for n in range(12)]


@pytest.fixture
def url(tmp_path):
    """Six shards of about 2.5 kB."""
    with ShardStore(f"{tmp_path}/remote", shard_rows=2) as store:
        store.set_many(SAMPLES)
    return f"counting://{tmp_path}/remote"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def reads(url, kind="whole"):
    log = Path(url.removeprefix("counting://")) / "reads.log"
    lines = log.read_text().split("\n") if log.exists() else []
    return [line.split()[0] for line in lines if line.endswith(kind) and ".arrow" in line]


def numbers(store):
    return [row["n"] for row in store if (row["x"] == row["n"]).all()]


def copies(cache):
    return {path.name: path.stat().st_size for path in Path(cache).iterdir() if path.is_file()}


def read_at(url, at_time, **options):
    time.sleep(max(0, at_time - time.time()))
    return numbers(ShardStore(url, **options))


def test_processes_download_once(url, cache):
    (Path(url.removeprefix("counting://")) / "slow").touch()
    soon = time.time() + 0.2
    told = [end(child) for child in [start(lambda: read_at(url, soon, cache=cache)) for _ in range(8)]]
    assert [one.value for one in told] == [list(range(12))] * 8
    assert len(reads(url)) == len(set(reads(url))) == 6
    assert reads(url, "range") == []
    assert len(copies(cache)) == 6


def test_threads_download_once(url, cache):
    store = ShardStore(url, cache=cache)
    found = []
    threads = [threading.Thread(target=lambda: found.append(numbers(store))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(12))] * 6
    assert len(reads(url)) == 6


def test_a_second_store_downloads_nothing(url, cache):
    assert numbers(ShardStore(url, cache=cache)) == list(range(12))
    assert numbers(ShardStore(url, cache=cache)) == list(range(12))
    assert numbers(ShardStore(url, cache=cache).select([11, 0])) == [11, 0]
    assert len(reads(url)) == 6


SPOIL = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-900] + b"????" + path.read_bytes()[-896:]),
}


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_corrupt_copy_is_fetched_again_once(url, cache, spoil):
    numbers(ShardStore(url, cache=cache))
    path = sorted(cache.glob("*.arrow"))[2]
    SPOIL[spoil](path)
    assert numbers(ShardStore(url, cache=cache)) == list(range(12))
    assert len(reads(url)) == 7
    assert numbers(ShardStore(url, cache=cache)) == list(range(12))
    assert len(reads(url)) == 7


def test_processes_meet_a_corrupt_copy(url, cache):
    numbers(ShardStore(url, cache=cache))
    for path in cache.glob("*.arrow"):
        SPOIL["flipped"](path)
    soon = time.time() + 0.2
    told = [end(child) for child in [start(lambda: read_at(url, soon, cache=cache)) for _ in range(8)]]
    assert [one.value for one in told] == [list(range(12))] * 8
    assert len(reads(url)) == 12


def test_what_is_corrupt_at_its_source_is_an_error(url, cache):
    for path in (Path(url.removeprefix("counting://")) / "shards").iterdir():
        SPOIL["flipped"](path)
    with pytest.raises(CorruptDataError):
        list(ShardStore(url, cache=cache))
    assert copies(cache) == {}


@pytest.mark.parametrize("what", ["file", "folder", "nothing"])
def test_a_link_is_not_followed(url, cache, tmp_path, what):
    numbers(ShardStore(url, cache=cache))
    target = tmp_path / "target"
    for path in cache.glob("*.arrow"):
        if what == "file":
            target.write_bytes(path.read_bytes())
        elif what == "folder":
            target.mkdir(exist_ok=True)
        path.unlink()
        path.symlink_to(target)
    before = target.read_bytes() if what == "file" else None
    assert numbers(ShardStore(url, cache=cache)) == list(range(12))
    assert what != "file" or target.read_bytes() == before
    assert what != "nothing" or not target.exists()
    assert not any(path.is_symlink() for path in cache.iterdir())
    assert len(reads(url)) == 12


def test_a_folder_in_the_place_of_a_copy(url, cache):
    numbers(ShardStore(url, cache=cache))
    path = min(cache.glob("*.arrow"))
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="can't map"):
        numbers(ShardStore(url, cache=cache))


def test_the_folder_is_for_this_user_alone(url, tmp_path):
    before = os.umask(0)
    try:
        numbers(ShardStore(url, cache=tmp_path / "a" / "cache"))
    finally:
        os.umask(before)
    folder = tmp_path / "a" / "cache"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(not stat.S_IMODE(path.stat().st_mode) & 0o077 for path in folder.rglob("*"))


def test_a_cache_that_can_not_be_used(url, tmp_path):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        try:
            found = numbers(ShardStore(url, cache=cache))
        except StoreError as error:
            assert str(cache) in str(error)  # noqa: PT017
        else:
            assert found == list(range(12))


class TestLimit:
    def size(self, url):
        return max(path.stat().st_size for path in (Path(url.removeprefix("counting://")) / "shards").iterdir())

    def test_is_kept(self, url, cache):
        limit = 3 * self.size(url)
        stop, seen = threading.Event(), []

        def watch():
            while not stop.is_set():
                try:
                    seen.append(sum(copies(cache).values()))
                except FileNotFoundError:
                    continue

        def work(seed):
            rng = random.Random(seed)
            for _ in range(4):
                store = ShardStore(url, cache=cache, cache_limit=limit)
                ids = [rng.randrange(12) for _ in range(8)]
                assert numbers([store.row(number) for number in ids]) == ids
            return "right"

        watcher = threading.Thread(target=watch)
        watcher.start()
        children = [start(work, seed) for seed in range(8)]
        told = [end(child) for child in children]
        stop.set()
        watcher.join()
        assert [one.value for one in told] == ["right"] * 8, told
        assert max(seen) > 0
        # One more may be seen: a copy that was asked for its size before it went, and the one that came for it.
        assert max(seen) <= limit + self.size(url)
        assert sum(copies(cache).values()) <= limit
        assert not [name for name in copies(cache) if name.startswith("tmp-")]

    def test_what_was_used_longest_ago_goes_first(self, url, cache):
        limit = 3 * self.size(url)
        names = [shard.checksum for shard in ShardStore(url).manifest.shards]
        for number in (0, 2, 4, 0):  # shards 0, 1, 2, 0
            store = ShardStore(url, cache=cache, cache_limit=limit)
            store.row(number)
            store.refresh()
            del store
            time.sleep(0.02)
        ShardStore(url, cache=cache, cache_limit=limit).row(6)
        assert {name.partition("-")[0] for name in copies(cache)} == {names[0], names[2], names[3]}

    def test_what_is_in_use_stays(self, url, cache):
        limit = 2 * self.size(url)
        holder = ShardStore(url, cache=cache, cache_limit=limit)
        holder.row(0)
        holder.row(2)
        held = set(copies(cache))
        assert len(held) == 2
        other = ShardStore(url, cache=cache, cache_limit=limit)
        assert numbers(other) == list(range(12))
        assert set(copies(cache)) == held
        assert reads(url, "range")
        assert holder.row(1)["n"] == 1
        holder.refresh()
        other.refresh()
        assert ShardStore(url, cache=cache, cache_limit=limit).row(8)["n"] == 8
        assert set(copies(cache)) != held

    def test_in_use_by_another_process(self, url, cache):
        limit = self.size(url)
        reading, writing = os.pipe()

        def hold():
            store = ShardStore(url, cache=cache, cache_limit=limit)
            store.row(0)
            os.write(writing, b"x")
            time.sleep(60)

        pid, told = start(hold)
        os.read(reading, 1)
        held = set(copies(cache))
        assert numbers(ShardStore(url, cache=cache, cache_limit=limit)) == list(range(12))
        assert set(copies(cache)) == held
        kill(pid)
        for one in (told, reading, writing):
            os.close(one)
        assert ShardStore(url, cache=cache, cache_limit=limit).row(11)["n"] == 11
        assert set(copies(cache)) != held

    @pytest.mark.parametrize("limit", [1, 100, "1KB"])
    def test_without_room_ranges_are_read(self, url, cache, limit):
        store = ShardStore(url, cache=cache, cache_limit=limit)
        assert numbers(store) == list(range(12))
        assert numbers(store.select([11, 3])) == [11, 3]
        assert numbers(IterableSource(store)) == list(range(12))
        assert reads(url) == []
        assert not cache.exists() or copies(cache) == {}


@pytest.mark.slow
def test_killed_while_downloading(url, cache):
    limit = 7 * max(path.stat().st_size for path in (Path(url.removeprefix("counting://")) / "shards").iterdir())
    rng = random.Random(0)
    for _ in range(40):
        pid, reading = start(lambda: numbers(ShardStore(url, cache=cache, cache_limit=limit)))
        time.sleep(rng.uniform(0, 0.06))
        kill(pid)
        os.close(reading)
        for path in cache.glob("*.arrow"):
            if rng.random() < 0.7:
                path.unlink()
    assert numbers(ShardStore(url, cache=cache, cache_limit=limit)) == list(range(12))


def test_what_a_dead_process_has_left_is_not_counted_for_ever(url, cache):
    (cache / "locks").mkdir(parents=True)
    size = max(path.stat().st_size for path in (Path(url.removeprefix("counting://")) / "shards").iterdir())
    for number in range(3):
        (cache / f"tmp-{number:032x}").write_bytes(bytes(2 * size))
    assert numbers(ShardStore(url, cache=cache, cache_limit=6 * size)) == list(range(12))
    assert not [name for name in copies(cache) if name.startswith("tmp-")]
    assert len(reads(url)) == 6


def test_forked_readers_give_their_copies_back(url, cache):
    size = max(path.stat().st_size for path in (Path(url.removeprefix("counting://")) / "shards").iterdir())
    store = ShardStore(url, cache=cache, cache_limit=size)
    store.row(0)
    held = set(copies(cache))
    told = outcome(lambda: numbers(store))
    assert told.value == list(range(12))
    store.refresh()
    assert ShardStore(url, cache=cache, cache_limit=size).row(11)["n"] == 11
    assert set(copies(cache)) != held


def test_what_is_not_ours_is_not_touched(url, cache):
    cache.mkdir()
    for name in ("thesis.pdf", "tmp-notes.txt", "tmp-" + "g" * 32):
        (cache / name).write_bytes(b"1" * 100_000)
        os.utime(cache / name, (1, 1))
    assert numbers(ShardStore(url, cache=cache, cache_limit=9000)) == list(range(12))
    kept = set(copies(cache))
    assert {"thesis.pdf", "tmp-notes.txt", "tmp-" + "g" * 32} < kept


@pytest.mark.parametrize("folder", ["", "s3://bucket/cache"])
def test_a_cache_is_a_local_folder(url, folder):
    with pytest.raises(ValueError, match="cache must be a folder"):
        ShardStore(url, cache=folder)


def test_without_room_blocks_are_counted_and_fetched_together(tmp_path):
    with ShardStore(f"{tmp_path}/remote", shard_rows=40) as store:
        store.set_many([{"n": n, "x": np.full(300_000, n, np.uint8)} for n in range(80)])
    url = f"counting://{tmp_path}/remote"
    store = ShardStore(url, cache=tmp_path / "cache", cache_limit=1000)
    assert numbers(store) == list(range(80))
    # Blocks of three rows; ranges of up to 4 MB hold four of them.
    assert len(reads(url, "range")) <= 12
    reader = store._read()
    assert reader.window <= 128
    assert [row["n"] for row in store.select(np.arange(80)[::-1])] == list(range(80))[::-1]
    assert reader._held > 20_000_000


def test_blocks_of_a_closed_copy_are_let_go(url, cache):
    store = ShardStore(url, cache=cache, cache_limit=8000)
    for row in range(12):
        assert store.row(row)["n"] == row
    reader = store._read()
    assert {index for index, _ in reader._blocks} <= set(reader._open)
    assert len(reader._open) <= 2


def test_a_child_that_reads_nothing_keeps_nothing_in_use(url, cache):
    store = ShardStore(url, cache=cache)
    assert store.row(0)["n"] == 0
    (copy,) = (path for path in Path(cache).iterdir() if path.suffix == ".arrow")
    pid, reading = start(lambda: time.sleep(30))
    store._read().close()
    deadline = time.monotonic() + 10  # the child may not have begun yet
    with copy.open("rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    kill(pid)
    os.close(reading)
