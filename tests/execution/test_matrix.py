"""`async_map`: every kind of executor, in every place, in fair weather and foul. Nothing is lost, hangs or is left behind."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from uuid import uuid4

import pytest

from tests.execution.matrix_worker import COUNT, HANGS, KINDS, MARK, REFUSED, mapped, marked, new_shared_memory, shared_memory
from tests.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.keeps_threads]

PLACES = ["main", "fork", "spawn", "forkserver"]
WORKERS = PLACES[1:]
ALL = [2 * x for x in range(COUNT)]
OWN_PROCESSES = {"process"}
LIVE_PROCESSES = {"live processes", "used processes"}
DASK = {"dask client", "dask address"}
SCENARIOS = ["full", "break", *REFUSED, "kill", "hang"]

# Seconds in which all processes of a job are gone. The worker of a DataLoader looks every 5 s for its parent.
GONE = 10.0


def ended(process):
    """Close a process and what it has started."""
    process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


class Job:
    """A process that runs scenarios; a new one when it was lost."""

    def __init__(self, address, folder):
        self.address = address
        self.folder = folder
        self.process = None

    def ask(self, what, timeout=60, **arguments):
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from tests.execution.matrix_worker import serve; serve()"],
                cwd=ROOT,
                env={**os.environ, MARK: str(uuid4()), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        self.process.stdin.write(json.dumps([what, arguments]).encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.close()
            pytest.fail(f"{arguments} hung for {timeout} s")
        line = self.process.stdout.readline()
        if not line:
            self.close()
            pytest.fail(f"{arguments} took the main process with it")
        reply = json.loads(line)
        if isinstance(reply, dict) and "broken" in reply:
            self.close()
            pytest.fail(reply["broken"])
        return reply

    def close(self):
        process, self.process = self.process, None
        if process is not None:
            ended(process)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    code = "import sys; from tests.execution.matrix_worker import cluster\nif __name__ == '__main__': cluster(sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path_factory.mktemp("dask"))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    yield process.stdout.readline().decode().strip()
    ended(process)


@pytest.fixture(scope="module")
def job(cluster, tmp_path_factory):
    job = Job(cluster, tmp_path_factory.mktemp("matrix"))
    yield job
    job.close()


def scenario(job, place, kind, what):
    report = job.ask(
        "scenario", place=place, kind=kind, scenario=what, address=job.address, folder=str(job.folder), scenarios=SCENARIOS
    )
    assert report["grown"] == []
    return report


def combinations(kinds=KINDS):
    # Where processes start slowly, those of a live pool that was used are the same as those of one that was not.
    slowly = {"spawn", "forkserver"}
    return [(place, kind) for place in PLACES for kind in kinds if not (place in slowly and kind == "used processes")]


each = pytest.mark.parametrize(("place", "kind"), combinations())

# A worker of a fork server begins as one that is spawned does: how it ends can be seen in one of them.
each_but_forkserver = pytest.mark.parametrize(("place", "kind"), [one for one in combinations() if one[0] != "forkserver"])


def refused():
    """Which item fails decides about chunks, not about how a worker was started: all where that is quick, else one in turns."""
    for number, (place, kind) in enumerate(combinations()):
        turn = list(REFUSED)[number % len(REFUSED)]
        yield from [(place, kind, which) for which in (REFUSED if place in ("main", "fork") else [turn])]


@each
def test_full_pass(job, place, kind):
    report = scenario(job, place, kind, "full")
    assert report["error"] is None
    assert report["given"] == ALL


@each_but_forkserver
def test_early_break(job, place, kind):
    report = scenario(job, place, kind, "break")
    assert report["error"] is None
    assert report["given"] == [0, 2, 4]
    assert report["closing"] < 3


@pytest.mark.parametrize(("place", "kind", "which"), list(refused()))
def test_error(job, place, kind, which):
    report = scenario(job, place, kind, which)
    name, message, note = report["error"]
    assert (name, message) == ("ValueError", str(-1 - REFUSED[which]))
    assert note.endswith(f", on item {REFUSED[which]}: {-1 - REFUSED[which]}")
    assert report["given"] == ALL[: REFUSED[which]]


@pytest.mark.parametrize(
    ("place", "kind"),
    combinations([kind for kind in KINDS if kind in OWN_PROCESSES | LIVE_PROCESSES | DASK]),
)
def test_killed_worker(job, place, kind):
    report = scenario(job, place, kind, "kill")
    if place == "main" and kind in LIVE_PROCESSES:
        assert report["error"][0] == "BrokenProcessPool"
        assert 'executor="process"' in report["error"][2]
        assert report["given"] == ALL[: len(report["given"])]
    else:
        assert report["error"] is None
        assert report["given"] == ALL


@each_but_forkserver
def test_hanging_item(job, place, kind):
    report = scenario(job, place, kind, "hang")
    name, message, _ = report["error"]
    assert name == "StageTimeout"
    described, _, stack = message.partition("was in:")
    callback = "hang_soon" if kind == "coroutines" else "hang"
    assert described.startswith(f"{callback} at matrix_worker.py:")
    assert f"for the item {HANGS}; " in described
    assert f" {callback}\n" in f"{stack}\n"
    assert report["given"] == ALL[:HANGS]
    assert 0.9 < report["hung"] < 5
    if kind in OWN_PROCESSES or (kind in LIVE_PROCESSES and place != "main"):
        assert not report["hangs on"]


def test_workers_leave_nothing(job):
    for place in WORKERS:
        scenario(job, place, "default", "full")
    assert job.ask("close") == []


@pytest.mark.parametrize(("place", "workers"), [("fork", 2), ("spawn", 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_pipeline(job, place, workers, kind):
    report = job.ask(
        "pipeline", place=place, kind=kind, workers=workers, address=job.address, folder=str(job.folder), timeout=100
    )
    for which in report.keys() & {"full", "again"}:
        given, error, _ = report[which]
        assert error is None
        assert (given if workers == 1 else sorted(given)) == ALL
    if "break" in report:
        given, error, _ = report["break"]
        assert error is None
        assert len(given) == 3
    given, (name, message, _), _ = report["error"]
    assert name == "ValueError"
    assert "ValueError: -8" in message
    assert "squirrel_torch: in stage" in message
    assert set(given) < set(ALL)
    assert report["grown"] == []


# -- the end of the main process ---------------------------------------------------------------------------------------

SCRIPT = """
import asyncio, multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from torch.utils.data import DataLoader
from squirrel_torch import IterableSource

def starts(x):
    with (Path(__file__).parent / "started").open("a") as file:
        file.write(f"{x}\\n")

def work(x):
    starts(x)
    time.sleep(0.1)
    return x

async def work_soon(x):
    starts(x)
    await asyncio.sleep(0.5 if x else 0)
    return x

def work_slowly(x):
    starts(x)
    time.sleep(0.5 if x else 0)
    return x

def work_long(x):
    starts(x)
    if x % 2:
        time.sleep(60)
    while x:
        pass
    return x

def stream(callback, executor, **options):
    return IterableSource(range(200)).async_map(callback, executor=executor, max_workers=2, chunksize=1, **options)

def main():
"""
MAIN = """

if __name__ == "__main__":
    main()
"""


class Script:
    """A script in a process group of its own, and all that it starts."""

    def __init__(self, body, folder):
        self.mark = str(uuid4())
        self.memory = shared_memory()
        self.started_file = folder / "started"
        file = folder / "script.py"
        file.write_text(SCRIPT + "".join(f"    {line}\n" for line in body.splitlines()) + MAIN)
        with (folder / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(file)],
                cwd=folder,
                env={**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def __enter__(self):
        assert self.process.stdout.readline() == b"ready\n"
        self.seen = mapped(marked(self.mark))
        return self

    def __exit__(self, *error):
        for process, command in marked(self.mark).items():
            if "resource_tracker" not in command:  # it ends when it has cleaned up
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        ended(self.process)

    @property
    def started(self):
        return len(self.started_file.read_text().splitlines()) if self.started_file.exists() else 0

    def left(self, seconds):
        """The processes and the shared memory that are still there after so many seconds."""
        end = time.monotonic() + seconds
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.02)
        return left

    def _left(self):
        return [*marked(self.mark).values(), *new_shared_memory(self.memory, self.mark, self.seen)]


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("method", WORKERS)
def test_killed_main_process(method, tmp_path):
    body = f"""
multiprocessing.set_start_method({method!r})
run = iter(stream(work_long, "process"))
next(run)
print("ready", flush=True)
next(run)
"""
    with Script(body, tmp_path) as script:
        until(lambda: script.started == 3)
        assert len(marked(script.mark)) >= 3
        script.process.kill()
        script.process.wait()
        assert script.left(GONE) == []
        assert script.started == 3


@pytest.mark.parametrize("method", ["fork", "spawn"])  # behind a fork server torch's own workers outlive their job
def test_killed_main_process_with_workers(method, tmp_path):
    body = f"""
dataset = stream(work, "process").to_torch_iterable()
items = iter(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context={method!r}))
next(items), next(items)
print("ready", flush=True)
time.sleep(60)
"""
    with Script(body, tmp_path) as script:
        until(lambda: script.started > 8)
        assert len(marked(script.mark)) >= 5
        script.process.kill()
        script.process.wait()
        assert script.left(GONE) == []


EXECUTORS = {
    "process": 'work_slowly, "process"',
    "coroutines": "work_soon, None",
    "live threads": "work_slowly, ThreadPoolExecutor(2)",
    "live processes": "work_slowly, ProcessPoolExecutor(2)",
}
ENDS = {
    "falls off its end": ("pass", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "exception": ("raise ValueError", 1),
    "Ctrl-C": ("time.sleep(60)", -signal.SIGINT),
}


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in EXECUTORS for how in ENDS if kind == "process" or how in ("falls off its end", "Ctrl-C")],
)
def test_end_of_the_interpreter(kind, how, tmp_path):
    statement, code = ENDS[how]
    body = f"""
import builtins
builtins.kept = run = iter(stream({EXECUTORS[kind]}))
next(run)
print("ready", flush=True)
{statement}
"""
    with Script(body, tmp_path) as script:
        started = script.started
        if how == "Ctrl-C":
            os.killpg(script.process.pid, signal.SIGINT)
        assert script.process.wait(5) == code
        assert script.left(2) == []
        # Those that were about to be started. Python's pool of processes keeps a few more in a pipe, and goes on with them.
        assert script.started <= started + (5 if kind == "live processes" else 2)
