"""The other side of `test_matrix.py`: a process that runs scenarios, in itself and in workers of DataLoaders.

It reads requests from its input, a line of JSON each, and answers each with a line. It counts what every scenario leaves.
"""

import asyncio
import contextlib
import gc
import json
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path

from torch.utils.data import DataLoader, IterableDataset

from squirrel_torch import IterableSource

MARK = "SQUIRREL_TORCH_MATRIX"
"""The environment variable by which all processes of a job are known, orphans too."""

KINDS = (
    "default",
    "thread",
    "process",
    "numba",
    "live threads",
    "live processes",
    "used processes",
    "coroutines",
    "dask client",
    "dask address",
)
COUNT = 40
REFUSED = {"error first": 0, "error middle": 17, "error last": COUNT - 1}
HANGS, KILLS = 5, 11
PATIENCE = 5.0

released = threading.Event()
"""Lets the callbacks that hang in threads of this process go, when all has been seen."""


# -- callbacks ---------------------------------------------------------------------------------------------------------


def double(x):
    if x < 0:
        raise ValueError(x)
    return 2 * x


async def double_soon(x):
    await asyncio.sleep(0.001)
    return double(x)


def slow(x):
    time.sleep(0.002)
    return double(x)


def hang(x, folder):
    if x == HANGS:
        (folder / "hangs").write_text(str(os.getpid()))
        released.wait(60)
    return double(x)


async def hang_soon(x, folder):
    if x == HANGS:
        (folder / "hangs").write_text(str(os.getpid()))
        await asyncio.sleep(60)
    return double(x)


def kill(x, folder):
    """Take this process along at one item, once."""
    if x == KILLS:
        try:
            (folder / "killed").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return double(x)


def numbers(folder):
    """What a source gives: all of the numbers, or with one that is refused if a file says so."""
    items = list(range(COUNT))
    if (folder / "refuse").exists():
        items[7] = -8
    return iter(items)


# -- what there is -----------------------------------------------------------------------------------------------------


def marked(mark):
    """The live processes whose environment has `mark`, by id, with their command."""
    found, wanted = {}, f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command:  # else it is ending
                    found[int(folder.name)] = command[:200]
        except OSError:
            continue
    return found


def zombies():
    """Children that have ended and that nobody has waited for."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state == "Z" and int(parent) == os.getpid():
            found[int(file.parent.name)] = "zombie"
    return found


def shared_memory():
    return set(os.listdir("/dev/shm"))  # noqa: PTH208  # names


def mapped(processes):
    """The shared memory that these processes see."""
    found = set()
    for process in processes:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/maps").read_text().splitlines()
            found |= {line.rpartition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line}
    return found


def new_shared_memory(before, mark, seen=frozenset()):
    """What has come into /dev/shm since, without what belongs to others, as far as that can be told.

    Args:
        before: What was there.
        mark: The mark of our processes.
        seen: What our processes have been seen to map. Of semaphores nothing else says whose they are.
    """
    new = shared_memory() - before
    if not new:
        return new
    ours = set(marked(mark))
    seen = seen | mapped(ours)
    others = mapped({int(folder.name) for folder in Path("/proc").glob("[0-9]*")} - ours)
    return {name for name in new if name in seen or not (name.startswith("sem.") or name in others)}


def descriptors():
    found = {}
    for file in Path("/proc/self/fd").iterdir():
        try:
            found[file.name] = str(file.readlink())
        except OSError:  # the one that lists them
            continue
    return found


class Census:
    """What this process and its job have."""

    def __init__(self):
        self.mark = os.environ[MARK]
        self.threads = list(threading.enumerate())
        self.processes = {**marked(self.mark), **zombies()}
        self.descriptors = descriptors()
        self.memory = shared_memory()

    def grown(self, kept="nothing"):
        """What there is more of than there was, after a few seconds to settle."""
        end = time.monotonic() + PATIENCE
        while (grown := self._grown(kept)) and time.monotonic() < end:
            time.sleep(0.02)
            gc.collect()  # an error knows the run that raised it, which raises it again: a cycle
        return grown

    def _grown(self, kept):
        grown = []
        threads = list(threading.enumerate())
        if len(threads) > len(self.threads):
            grown.append(f"threads {[thread.name for thread in threads if thread not in self.threads]}")
        before, after = ([name for name in files.values() if kept not in name] for files in (self.descriptors, descriptors()))
        if len(after) > len(before):
            grown.append(f"descriptors {[name for name in after if name not in before]}")
        processes = {**marked(self.mark), **zombies()}
        grown += [f"process {processes[new]}" for new in processes.keys() - self.processes.keys()]
        grown += [f"memory {name}" for name in new_shared_memory(self.memory, self.mark)]
        return grown


def alive(process):
    """Whether there is a process of this number that has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- scenarios ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def dask_client(address):
    from distributed import Client

    return Client(address, set_as_default=False)


def opened(kind, address, stack):
    """The executor of a kind; `stack` closes it if it is a live one."""
    if kind == "live threads":
        return stack.enter_context(ThreadPoolExecutor(2))
    if kind in ("live processes", "used processes"):
        pool = stack.enter_context(ProcessPoolExecutor(2))
        if kind == "used processes":
            pool.submit(abs, 1).result()
        return pool
    if kind == "dask client":
        return dask_client(address)
    return {"default": None, "coroutines": None, "dask address": address}.get(kind, kind)


def chain(kind, scenario, executor, folder):
    """A stream in which something happens."""
    soon = kind == "coroutines"
    callback = double_soon if soon else double
    items = list(range(COUNT))
    options = {"executor": executor}
    if kind in ("default", "thread", "process", "coroutines"):
        options["max_workers"] = 2
    if scenario == "break":
        callback, items = (callback if soon or kind == "numba" else slow), range(1_000_000)
    elif scenario in REFUSED:
        items[REFUSED[scenario]] = -1 - REFUSED[scenario]
    elif scenario == "kill":
        callback = partial(kill, folder=folder)
        options["chunksize"] = 3
    elif scenario == "hang":
        callback = partial(hang_soon if soon else hang, folder=folder)
        options["timeout"] = 1
        if not soon:
            options["chunksize"] = 3
    return IterableSource(items).async_map(callback, **options)


def told(error):
    return [type(error).__name__, str(error), "".join(getattr(error, "__notes__", []))]


def read(stream, most=None):
    """What a stream gives, up to `most` items, and the error that ends it."""
    given, error = [], None
    iterator = iter(stream)
    try:
        for item in iterator:
            given.append(item)
            if len(given) == most:
                break
    except Exception as reason:  # noqa: BLE001  # whatever it is, it is told
        error = told(reason)
    began = time.monotonic()
    del iterator
    return given, error, time.monotonic() - began


def happened(stream, scenario, folder):
    """What comes of a stream."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    given, error, closing = read(stream, 3 if scenario == "break" else None)
    ended = time.time()
    report = {"given": given, "error": error, "closing": closing}
    if scenario == "hang" and (folder / "hangs").exists():
        report["hung"] = ended - (folder / "hangs").stat().st_mtime
        process = int((folder / "hangs").read_text())
        report["hangs on"] = process != os.getpid() and alive(process)
    return report


_warm = set()


def tried(kind, scenario, make, folder):
    """The report of a scenario, with what has grown. `make` gives the stream of a scenario, and an ExitStack closes it."""
    if (kind, os.getpid()) not in _warm:  # what libraries open once
        _warm.add((kind, os.getpid()))
        with ExitStack() as stack:
            happened(make("full", stack), "full", folder)
    census = Census()
    with ExitStack() as stack:
        report = happened(make(scenario, stack), scenario, folder)
        released.set()
    report["grown"] = census.grown(kept="socket:" if kind == "dask client" else "nothing")  # those belong to the client
    released.clear()
    return report


class Laboratory(IterableDataset):
    """Runs scenarios in a worker of a DataLoader, as they are asked for. The streams were made in the main process."""

    def __init__(self, streams, tasks, folder):
        self.streams = streams
        self.tasks = tasks
        self.folder = folder

    def __iter__(self):
        multiprocessing.set_forkserver_preload(["squirrel_torch"])
        while (task := self.tasks.get()) is not None:
            kind, scenario = task
            yield tried(kind, scenario, partial(self._stream, kind), self.folder / f"{kind} {scenario}")

    def _stream(self, kind, scenario, stack):
        return self.streams[kind, scenario]


def identity(item):
    return item


class Worker:
    """A DataLoader with one worker that runs scenarios."""

    def __init__(self, place, address, folder, scenarios):
        self.stack = ExitStack()
        self.tasks = multiprocessing.get_context(place).SimpleQueue()
        streams = {}
        for kind in KINDS:
            executor = opened(kind, address, self.stack)
            for scenario in scenarios:
                streams[kind, scenario] = chain(kind, scenario, executor, folder / f"{kind} {scenario}")
        loader = DataLoader(
            Laboratory(streams, self.tasks, folder),
            batch_size=None,
            num_workers=1,
            prefetch_factor=1,
            collate_fn=identity,
            multiprocessing_context=place,
        )
        self.reports = iter(loader)

    def ask(self, kind, scenario):
        self.tasks.put((kind, scenario))
        return next(self.reports)

    def close(self):
        self.tasks.put(None)
        assert list(self.reports) == []
        del self.reports
        self.tasks.close()
        self.stack.close()


class Main:
    """The main process of a job: it answers requests."""

    def __init__(self):
        self.workers = {}

    def scenario(self, place, kind, scenario, address, folder, scenarios):
        """The report of one scenario."""
        folder = Path(folder) / place
        dask_client(address)  # kept: is no growth
        if place == "main":
            folder = folder / f"{kind} {scenario}"
            return tried(kind, scenario, lambda which, stack: chain(kind, which, opened(kind, address, stack), folder), folder)
        if not self.workers:
            self.census = Census()
        if place not in self.workers:
            self.workers[place] = Worker(place, address, folder, scenarios)
        return self.workers[place].ask(kind, scenario)

    def close(self):
        """End the workers that ran scenarios: what they leave."""
        while self.workers:
            self.workers.popitem()[1].close()
        return self.census.grown(kept="socket:")  # of the client

    def pipeline(self, place, kind, workers, address, folder):
        """Passes of an ordinary pipeline with a DataLoader: all, one that is left early, all again, one that fails."""
        folder = Path(folder) / f"pipeline {place} {kind}"
        folder.mkdir(parents=True, exist_ok=True)
        dask_client(address)  # kept: is no growth
        census = Census()
        with ExitStack() as stack:
            executor = opened(kind, address, stack)
            callback = double_soon if kind == "coroutines" else double
            dataset = IterableSource(partial(numbers, folder)).async_map(callback, executor=executor).to_torch_iterable()
            loader = DataLoader(
                dataset,
                batch_size=None,
                num_workers=workers,
                multiprocessing_context=place,
                persistent_workers=True,
                collate_fn=identity,
            )
            report = {"full": read(loader)}
            if place != "spawn":  # where processes of its own take seconds to start
                report.update({"break": read(loader, 3), "again": read(loader)})
            (folder / "refuse").touch()
            report["error"] = read(loader)
            loader._iterator._shutdown_workers()
            del loader, dataset
        report["grown"] = census.grown(kept="socket:")  # of the client
        return report


def serve():
    """Answer requests until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    multiprocessing.set_forkserver_preload(["squirrel_torch"])
    multiprocessing.resource_tracker.ensure_running()
    multiprocessing.forkserver.ensure_running()
    main = Main()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            reply = getattr(main, name)(**arguments)
        except BaseException:  # noqa: BLE001  # told
            reply = {"broken": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def cluster(folder):
    """A dask cluster with two processes, until the input ends."""
    import dask
    from distributed import LocalCluster

    dask.config.set({"temporary-directory": folder})
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as found:
        print(found.scheduler_address, flush=True)
        sys.stdin.read()
