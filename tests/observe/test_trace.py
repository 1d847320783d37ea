"""Traces: what is in them, on which axis, and what becomes of them when something goes wrong."""

import asyncio
import json
import logging
import marshal
import multiprocessing
import os
import resource
import signal
import threading
from base64 import b64decode
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter, perf_counter_ns, sleep

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from squirrel_torch import IterableSource, PipelineError, StreamLoader, recording
from squirrel_torch.describe import describe_callable
from squirrel_torch.iterstream.run import Run
from squirrel_torch.loader.spans import BatchSpans
from squirrel_torch.observe import merge_traces, tracing
from squirrel_torch.observe.collected import Collected
from squirrel_torch.observe.sampler import Sampler, _Rows
from squirrel_torch.observe.spans import Span, Spans
from squirrel_torch.recording import CHUNK, INSTANT, Recorder
from tests.observe.trace_support import KINDS, Trace, ends
from tests.support import run_script


def stamped(item):
    """When it was called, in nanoseconds."""
    began = perf_counter_ns()
    sleep(0.001)
    return item, began, perf_counter_ns(), os.getpid()


async def stamped_later(item):
    began = perf_counter_ns()
    await asyncio.sleep(0.001)
    return item, began, perf_counter_ns(), os.getpid()


def doubled(item):
    return 2 * item


def check_chunks(trace, results):
    """The spans of chunks cover all items, and the calls of each."""
    spans = trace.spans("chunk")
    seen = [
        number
        for span in spans
        for number in range(span["args"]["first item"], span["args"]["first item"] + span["args"]["items"])
    ]
    assert sorted(seen) == [item for item, *_ in results]
    for span in spans:
        begin, end = ends(span)
        first, count = span["args"]["first item"], span["args"]["items"]
        assert begin <= results[first][1] + 1000, span
        assert end >= results[first + count - 1][2] - 1000, span
        # They have slept that long, and nothing else is in the span but the machine's other work.
        assert end - begin < results[first + count - 1][2] - results[first][1] + 50e6
        assert span["args"]["waited ms"] >= 0


class Keep:
    """An output that keeps all."""

    def __init__(self):
        self.spans = []

    def write(self, recorder, pid, count, events):
        assert pid == recorder.pid
        self.read = self.read or Spans(0.0)
        spans = list(self.read.of(events))
        self.spans += spans
        return True

    read = None


# -- async_map -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "lane"),
    [
        ("thread", ": thread "),
        ("process", ": process "),
        ("task", ": task"),
        ("threads of a pool", ": ThreadPoolExecutor-"),
        pytest.param("processes of a pool", ": process ", marks=pytest.mark.slow),
    ],
)
def test_chunks_are_where_their_items_were_worked_on(kind, lane, tmp_path):
    pool = {"threads of a pool": ThreadPoolExecutor, "processes of a pool": ProcessPoolExecutor}.get(kind)
    executor = kind if kind in ("thread", "process") else pool and pool(2)
    callback = stamped_later if kind == "task" else stamped
    chain = IterableSource(range(40)).async_map(callback, max_workers=None if pool else 2, executor=executor, buffer=20)
    with tracing(tmp_path / "trace.json"):
        results = list(chain)
    if pool:
        executor.shutdown()
    trace = Trace(tmp_path / "trace.json")
    check_chunks(trace, results)
    lanes = {trace.lane(span) for span in trace.spans("chunk")}
    assert all(name.startswith(describe_callable(callback) + lane) for name in lanes), lanes
    assert len(lanes) >= 2
    if "process" in kind:
        pids = {pid for *_, pid in results}
        assert os.getpid() not in pids
        assert {int(name.rpartition(" ")[2]) for name in lanes} == pids
    assert set(trace.processes) == {os.getpid()}
    counters = [event["args"] for event in trace.events if event["ph"] == "C"]
    assert {"items": 20} in counters
    in_flight = [args["in flight"] for args in counters if "in flight" in args]
    assert 0 < max(in_flight) <= 20
    assert in_flight[-1] == 0
    assert recording.recorder is None


def test_failures_and_attempts_are_told(tmp_path):
    tries = []

    def fails(item):
        tries.append(item)
        if item == 3 or tries.count(item) == 1:
            raise ValueError(item)
        return item

    chain = IterableSource(range(6)).async_map(fails, max_workers=1, retries=1, backoff=0, on_error="skip", chunksize=6)
    with tracing(tmp_path / "trace.json"):
        assert list(chain) == [0, 1, 2, 4, 5]
    args = [span["args"] for span in Trace(tmp_path / "trace.json").spans("chunk")]
    assert sum(one["items"] for one in args) == 6
    assert sum(one.get("failed", 0) for one in args) == 1
    assert sum(one.get("retries", 0) for one in args) == 6


def test_what_a_place_of_another_clock_did_lies_within_the_time_that_it_was_away():
    def chunk(sent, began, worked, back):
        spans = Spans(100.0)
        (span,) = spans.of(marshal.dumps([(CHUNK, "far", "", sent, began, worked, back, 0, 1, 0, 0)]))
        return span.begin / 1e9, span.end / 1e9, span.args.get("waited ms")

    assert chunk(101.0, 101.5, 0.25, 102.0) == (101.5, 101.75, 500)  # of the same machine
    for began in (5.0, 1000.0, 101.9, 0.0):
        assert chunk(101.0, began, 0.25, 102.0) == (101.75, 102.0, 750)
    assert chunk(101.0, 0.0, 5.0, 102.0) == (101.0, 102.0, 0)  # as it seems, it took longer than it was away
    assert chunk(0.0, 0.0, 5.0, 102.0) == (100.0, 102.0, None)  # it was sent before the recording began


# -- loaders -------------------------------------------------------------------------------------------------------------


def steps(trace, kind):
    return [(span["args"]["epoch"], span["args"]["step"]) for span in trace.spans(kind)]


@pytest.mark.slow
def test_workers_that_are_spawned_tell_of_all_too(tmp_path):
    chain = IterableSource(range(60)).async_map(doubled, max_workers=1).batched(5)
    loader = StreamLoader(chain, num_workers=1, multiprocessing_context="spawn")
    with loader.trace(tmp_path / "trace.json"):
        list(loader)
    trace = Trace(tmp_path / "trace.json")
    assert steps(trace, "step") == [(0, step) for step in range(12)]
    assert [span["name"] for span in trace.spans("batch")] == [f"batch {step}" for step in range(12)]
    assert sum(span["args"]["items"] for span in trace.spans("chunk")) == 60
    assert {trace.processes[span["pid"]].rpartition(", ")[2] for span in trace.spans("chunk")} == {"worker 0"}


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_and_the_batches_behind_them(workers, tmp_path):
    chain = IterableSource(range(60)).map(doubled).batched(5)
    loader = StreamLoader(chain, num_workers=workers, multiprocessing_context="fork" if workers else None)
    with loader.trace(tmp_path / "trace.json"):
        for _ in range(2):
            for _ in loader:
                sleep(0.002)
    trace = Trace(tmp_path / "trace.json")
    assert steps(trace, "step") == [(epoch, step) for epoch in range(2) for step in range(12)]
    waits = trace.spans("wait")
    assert steps(trace, "wait") == [(epoch, step) for epoch in range(2) for step in range(13)]
    assert [span["name"] for span in waits] == ([*["wait for batch"] * 12, "wait for end"]) * 2
    assert all(span["dur"] >= 2000 for span in trace.spans("step"))
    # Without a gap: where a wait ends the step begins.
    for before, behind in pairwise(sorted(trace.spans("wait")[:13] + trace.spans("step")[:12], key=lambda span: span["ts"])):
        assert ends(before)[1] == ends(behind)[0]
    batches = trace.spans("batch")
    assert all(span["name"] == f"batch {span['args']['step']}" for span in batches)
    assert sorted(span["args"]["step"] for span in batches) == sorted([*range(12)] * 2)
    # One axis: no batch is taken before it was made, and the first of them is made in the first wait.
    made = {}
    for span in batches:
        made.setdefault(span["args"]["step"], []).append(ends(span)[1])
    for span in waits:
        if span["name"] == "wait for batch":
            assert made[span["args"]["step"]][span["args"]["epoch"]] <= ends(span)[1]
    if workers:
        pids = {span["pid"] for span in batches}
        assert os.getpid() not in pids
        assert len(pids) == 4  # two in each pass
        names = sorted(trace.processes[pid].partition(", loader ")[2].partition(", ")[2] for pid in pids)
        assert names == ["worker 0", "worker 0", "worker 1", "worker 1"]
        assert len(trace.spans("pack")) == len(trace.spans("unpack")) == 24
        assert {trace.lane(span) for span in batches} == {"batches"}
        assert trace.spans("room")  # they are faster


def test_async_map_in_workers_is_told_too(tmp_path):
    chain = IterableSource(range(40)).async_map(doubled, max_workers=2).batched(5)
    loader = StreamLoader(chain, num_workers=2, multiprocessing_context="fork")
    with loader.trace(tmp_path / "trace.json"):
        assert len(list(loader)) == 8
    trace = Trace(tmp_path / "trace.json")
    chunks = trace.spans("chunk")
    assert sum(span["args"]["items"] for span in chunks) == 40
    assert len({span["pid"] for span in chunks} - {os.getpid()}) == 2


def test_a_part_of_a_pass_and_many_passes_of_workers_that_stay(tmp_path):
    chain = IterableSource(range(80)).batched(2)
    loader = StreamLoader(chain, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    iterator = iter(loader)
    for _ in range(10):
        next(iterator)
    with loader.trace(tmp_path / "part.json"):
        for _ in range(20):
            next(iterator)
            sleep(0.02)  # workers tell of their batches from time to time
    assert len(list(iterator)) == 10
    part = Trace(tmp_path / "part.json")
    # The steps that were there when it began and when it ended are cut off.
    assert steps(part, "step") == [(0, step) for step in range(9, 30)]
    assert steps(part, "wait") == [(0, step) for step in range(10, 30)]
    told = [span["args"]["step"] for span in part.spans("batch")]
    assert told
    assert min(told) >= 10
    with loader.trace(tmp_path / "passes.json"):
        for _ in range(5):
            assert len(list(loader)) == 40
    passes = Trace(tmp_path / "passes.json")
    assert steps(passes, "step") == [(epoch, step) for epoch in range(1, 6) for step in range(40)]
    assert sorted(span["args"]["step"] for span in passes.spans("batch")) == sorted([*range(40)] * 5)
    assert len({span["pid"] for span in passes.spans("batch")}) == 2
    loader.close()


def test_a_worker_that_stays_waits_for_room_only_in_a_pass(tmp_path):
    loader = StreamLoader(
        IterableSource(range(40)).batched(2), num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    with loader.trace(tmp_path / "trace.json"):
        for left in (False, True, False):
            iterator = iter(loader)
            for number, _ in enumerate(iterator):
                sleep(0.002)
                if left and number == 5:
                    break
            iterator.close()
            sleep(0.15)
    loader.close()
    waits = Trace(tmp_path / "trace.json").spans("room")
    assert len(waits) > 5
    assert max(span["dur"] for span in waits) < 100e3


def test_copies_to_a_device_lie_in_the_waits(tmp_path):
    loader = StreamLoader(IterableSource(range(6)).map(torch.tensor), batch_size=2, device="meta")
    with loader.trace(tmp_path / "trace.json"):
        assert [batch.device.type for batch in loader] == ["meta"] * 3
    trace = Trace(tmp_path / "trace.json")
    for copy, wait in zip(trace.spans("copy"), trace.spans("wait")[:3], strict=True):
        assert ends(wait)[0] <= ends(copy)[0] <= ends(copy)[1] <= ends(wait)[1]


def test_a_trace_that_ends_while_a_batch_is_waited_for(tmp_path):
    trace = tracing(tmp_path / "trace.json")

    def ends_it(item):
        if item == 4:
            trace.__exit__(None, None, None)
        return item

    with trace:
        assert len(list(StreamLoader(IterableSource(range(8)).map(ends_it).batched(2)))) == 4
    assert steps(Trace(tmp_path / "trace.json"), "step") == [(0, 0), (0, 1)]


def test_a_worker_that_has_too_much_to_tell_tells_how_much_it_left_out():
    sent = []

    class Way:
        def send(self, kind, payload):
            sent.append((kind, payload))

    def events():
        found = [event for _, payload in sent for event in marshal.loads(b64decode(payload["events"]))]
        sent.clear()
        return [event[2] if event[0] == INSTANT else len(event[3]) for event in found]

    spans = BatchSpans(Way())
    spans.records(on=True)
    for _ in range(600):
        recording.recorder.span("lane", "stage", "x" * 20_000, 0.0, 1.0)
    recording.recorder.drain()  # 512 of them make more than 8 MB
    recording.recorder.span("lane", "stage", "y", 0.0, 1.0)
    spans.told(last=False)
    assert events() == [*[20_000] * 88, 1, "512 events before this were too many, and left out"]
    recording.recorder.span("lane", "stage", "z", 0.0, 1.0)
    spans.told(last=True)
    assert events() == [1]
    spans.records(on=False)
    assert recording.recorder is None


def test_an_epoch_that_is_a_number_of_numpy(tmp_path):
    loader = StreamLoader(IterableSource(range(4)).batched(2))
    loader.set_epoch(np.int64(3))
    with loader.trace(tmp_path / "trace.json"):
        list(loader)
    assert steps(Trace(tmp_path / "trace.json"), "step") == [(3, 0), (3, 1)]


def test_two_loaders_at_a_time_have_lanes_of_their_own(tmp_path):
    train, other = (StreamLoader(IterableSource(range(20)).batched(2)) for _ in range(2))
    with tracing(tmp_path / "trace.json"):
        for _ in zip(train, other, strict=True):
            pass
    trace = Trace(tmp_path / "trace.json")
    assert len({trace.lane(span) for span in trace.spans("step")}) == 2


def test_nothing_is_sent_when_nobody_records():
    from squirrel_torch.loader.workers import Workers

    loader = StreamLoader(IterableSource(range(20)).batched(2), num_workers=1, persistent_workers=True)
    list(loader)
    heard = []
    assert isinstance(loader._workers, Workers)
    loader._workers.handlers[recording.KIND] = lambda *told: heard.append(told)
    list(loader)
    assert heard == []
    with recording_to(Keep()):
        list(loader)
    assert heard
    del heard[:]
    list(loader)
    assert heard == []
    loader.close()


class recording_to:  # noqa: N801
    def __init__(self, output):
        self.output = output

    def __enter__(self):
        return recording.attach(self.output, "test")

    def __exit__(self, *error):
        recording.detach(self.output)


# -- the file ------------------------------------------------------------------------------------------------------------


def test_the_file_is_complete_or_not_there(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("old")
    with tracing(path) as trace:
        assert list(IterableSource(range(2000)).async_map(doubled, max_workers=1, chunksize=1)) == [*range(0, 4000, 2)]
        assert path.read_text() == "old"
    assert trace.path == path
    assert sum(span["args"]["items"] for span in Trace(path).spans("chunk")) == 2000
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]


def test_compressed(tmp_path):
    for name in ("trace.json", "trace.json.gz"):
        with tracing(tmp_path / name):
            list(IterableSource(range(500)).async_map(doubled, max_workers=1, chunksize=1))
    assert len(Trace(tmp_path / "trace.json.gz").spans("chunk")) == 500
    assert (tmp_path / "trace.json.gz").stat().st_size < (tmp_path / "trace.json").stat().st_size / 3


@pytest.mark.parametrize("place", ["callback", "consumer"])
def test_an_error_in_the_middle(place, tmp_path):
    def fails(item):
        if item == 50:
            raise KeyError(item)
        return item

    chain = IterableSource(range(100)).async_map(fails if place == "callback" else abs, max_workers=2, chunksize=1)

    def check(item):
        if item == 60:
            raise KeyError(item)

    with pytest.raises(KeyError), tracing(tmp_path / "trace.json"):
        list(map(check, chain))
    trace = Trace(tmp_path / "trace.json")
    assert [event["name"] for event in trace.events if event["ph"] == "i"] == ["ended by KeyError"]
    assert len(trace.spans("chunk")) >= 50
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]
    assert recording.recorder is None


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_the_size_is_bounded(name, tmp_path, caplog):
    with tracing(tmp_path / name, most_bytes=1 << 15), caplog.at_level(logging.WARNING):
        assert len(list(IterableSource(range(3000)).async_map(doubled, max_workers=2, chunksize=1))) == 3000
        assert recording.recorder is None  # nothing is recorded any more
    trace = Trace(tmp_path / name)
    size = len(json.dumps(trace.content))
    assert (tmp_path / name).stat().st_size <= 1 << 15
    assert size > 1 << 14
    (end,) = [event["name"] for event in trace.events if event["ph"] == "i"]
    assert end.startswith("trace ended here after ")
    assert end in caplog.text
    # The first part is what is kept.
    first = sorted(span["args"]["first item"] for span in trace.spans("chunk"))
    assert first[0] == 0
    assert first[-1] < len(first) + 50


def test_names_of_rows_and_processes_count_too(tmp_path):
    with tracing(tmp_path / "trace.json", most_bytes=1 << 15) as trace:
        for number in range(30):
            recording.recorder.processes[10**6 + number] = f"training process, loader 0, worker {number}"
        for number in range(200):
            recording.recorder.span(f"a row with a long name {number}", "stage", "x", perf_counter(), perf_counter())
    assert 1 << 14 < trace.path.stat().st_size <= 1 << 15
    assert 20 < len(Trace(trace.path).lanes) < 200


def test_memory_is_bounded(tmp_path):
    recorder = None
    with tracing(tmp_path / "trace.json") as trace:
        recorder = recording.recorder
        trace._file._began = 0.0
        for number in range(5000):
            recorder.span("lane", "stage", "x", float(number), number + 0.5)
            assert len(recorder._events) <= 512
    assert len(Trace(tmp_path / "trace.json").spans()) == 5000


def test_a_file_that_can_not_be_written_ends_no_stream(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), tracing(tmp_path / "full.json") as trace:
        trace._file._aside.close()
        trace._file._aside = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
        assert len(list(IterableSource(range(2000)).async_map(doubled, max_workers=1, chunksize=1))) == 2000
    assert "can't be written, and is given up" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_end_ends_no_training(tmp_path, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with caplog.at_level(logging.WARNING), tracing(tmp_path / "trace.json") as trace:
            list(IterableSource(range(2000)).async_map(doubled, max_workers=1, chunksize=1))
            recording.recorder.drain()
            so_far = os.fstat(trace._file._aside.fileno()).st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (so_far + 10_000, before[1]))  # the file itself is larger
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "trace.json can't be written, and is given up" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert recording.recorder is None


def killed(path):
    with tracing(path):
        list(IterableSource(range(2000)).async_map(doubled, max_workers=1, chunksize=1))
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_leaves_no_file(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "trace.json",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_workers_that_stay_keep_no_disk(tmp_path):
    loader = StreamLoader(
        IterableSource(range(4000)).batched(2), num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    with loader.trace(tmp_path / "trace.json"):
        assert len(list(loader)) == 2000
    (pid,) = loader._workers.pids
    kept = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if str(fd.readlink()).startswith(str(tmp_path))]
    assert [fd.stat().st_size for fd in kept] == [0]  # what events were put aside in, of which a fork has a copy
    loader.close()


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match=r'must end in "\.json" or "\.json\.gz", got .*trace\.txt'):
        tracing(tmp_path / "trace.txt")
    with pytest.raises(ValueError, match="most_bytes must be at least 16384, got 100"):
        tracing(tmp_path / "trace.json", most_bytes=100)
    with pytest.raises(FileNotFoundError), tracing(tmp_path / "missing" / "trace.json"):
        pass
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"), tracing(tmp_path / "folder.json"):
        pass
    assert recording.recorder is None
    trace = tracing(tmp_path / "trace.json")
    with trace, pytest.raises(PipelineError, match="is being written already"), trace:
        pass
    Trace(tmp_path / "trace.json")


def test_two_traces_at_a_time_and_one_object_twice(tmp_path):
    chain = IterableSource(range(10)).async_map(doubled, max_workers=1, chunksize=10)
    inner = tracing(tmp_path / "inner.json")
    with tracing(tmp_path / "outer.json"):
        list(chain)
        with inner:
            list(chain)
        list(chain)
    assert len(Trace(tmp_path / "outer.json").spans("chunk")) == 3
    assert len(Trace(tmp_path / "inner.json").spans("chunk")) == 1
    with inner:
        list(chain)
        list(chain)
    assert len(Trace(tmp_path / "inner.json").spans("chunk")) == 2


def test_a_trace_inside_another_begins_and_ends_in_the_steps_that_go_on(tmp_path):
    iterator = iter(StreamLoader(IterableSource(range(12)).batched(2)))
    with tracing(tmp_path / "outer.json"):
        next(iterator)
        next(iterator)
        began = perf_counter_ns()
        with tracing(tmp_path / "inner.json"):
            next(iterator)
            next(iterator)
        ended = perf_counter_ns()
        assert len(list(iterator)) == 2
    inner = Trace(tmp_path / "inner.json")
    assert steps(inner, "step") == [(0, 1), (0, 2), (0, 3)]
    assert all(began <= begin <= end <= ended for begin, end in map(ends, inner.spans()))
    assert steps(Trace(tmp_path / "outer.json"), "step") == [(0, step) for step in range(6)]


def leave(trace):
    """A child that leaves the block which its parent has entered."""
    assert recording.recorder is None
    trace.__exit__(None, None, None)


def test_a_fork_writes_nothing_into_the_file_of_its_parent(tmp_path):
    for name in ("trace.json", "trace.json.gz"):
        with tracing(tmp_path / name) as trace:
            list(IterableSource(range(600)).async_map(doubled, max_workers=1, chunksize=1))
            child = multiprocessing.get_context("fork").Process(target=leave, args=(trace,))
            child.start()
            child.join()
            assert child.exitcode == 0
            list(IterableSource(range(600)).async_map(doubled, max_workers=1, chunksize=1))
        assert len(Trace(tmp_path / name).spans("chunk")) == 1200


def traces_itself(path):
    with tracing(path):
        pass


def test_a_fork_tells_nothing_of_the_passes_of_its_parent(tmp_path):
    iterator = iter(StreamLoader(IterableSource(range(8)).batched(2)))
    next(iterator)
    child = multiprocessing.get_context("fork").Process(target=traces_itself, args=(tmp_path / "trace.json",))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert Trace(tmp_path / "trace.json").spans() == []


# -- the recorder --------------------------------------------------------------------------------------------------------


def test_samples_of_one_stage_become_one_span():
    keep = Keep()
    recorder = Recorder("test", [keep])
    looks = [0.99, 1.0, 1.01, 1.02, 1.03, 1.035, 1.05]
    seen = ["map", "map", "map", "batched", None, "batched"]
    for (begin, end), name in zip(pairwise(looks), seen, strict=True):
        if name is not None:
            recorder.sampled("stages", name, begin, end)
    recorder.drain()
    recorder.drain(last=True)
    recorder.drain(last=True)
    ms = 1_000_000
    assert [(span.name, span.begin, span.end) for span in keep.spans] == [
        ("map", 990 * ms, 1020 * ms),
        ("batched", 1020 * ms, 1030 * ms),
        ("batched", 1035 * ms, 1050 * ms),
    ]


def test_who_comes_later_hears_nothing_of_what_was_before_and_all_hear_of_the_last_sample():
    first, second = Keep(), Keep()
    with recording_to(first):
        recording.recorder.instant("lane", "before", 1.0)
        with recording_to(second):
            recording.recorder.sampled("stages", "map", 1.0, 2.0)
    assert [span.name for span in first.spans] == ["before", "map"]
    assert [span.name for span in second.spans] == ["map"]


def observed(chain, collected, then=lambda: None):
    for _ in Run(chain._links(), lambda: 0, observer=collected):
        then()


def test_stages_are_where_a_sampler_has_seen_them(tmp_path):
    took = {"reads": 0, "scales": 0, "apart": 0}

    def spend(kind, seconds):
        began = perf_counter_ns()
        sleep(seconds)
        took[kind] += perf_counter_ns() - began

    def reads(item):
        spend("reads", 0.01)
        return item

    def scales(item):
        spend("scales", 0.01)
        return item

    chain = IterableSource(range(30)).map(reads).async_map(doubled, max_workers=1, buffer=4).map(scales)
    collected = Collected()
    with tracing(tmp_path / "trace.json"), Sampler(collected, always=True):
        observed(chain, collected, partial(spend, "apart", 0.01))
    trace = Trace(tmp_path / "trace.json")
    seen = {}
    for span in trace.spans("stage"):
        key = trace.lane(span), span["name"]
        seen[key] = seen.get(key, 0) + span["dur"] * 1000
    # Both are there about as long as they have slept, each in the row of its thread, and nobody while the consumer sleeps.
    assert seen["stages before async_map", "map(reads)"] == pytest.approx(took["reads"], rel=0.3)
    assert seen["stages", "map(scales)"] == pytest.approx(took["scales"], rel=0.3)
    assert {row for row, _ in seen} == {"stages", "stages before async_map"}
    assert any(span["name"].endswith(", waiting for its calls") for span in trace.spans("stage"))
    steps = sum(ns for (row, _), ns in seen.items() if row == "stages")
    whole = max(ends(span)[1] for span in trace.spans("stage")) - min(ends(span)[0] for span in trace.spans("stage"))
    assert steps < whole - 0.7 * took["apart"]


def test_the_stages_of_a_loader_are_in_its_trace(tmp_path):
    loader = StreamLoader(IterableSource(range(60)).map(lambda item: sleep(0.005)).batched(5), num_workers=1)
    with loader.trace(tmp_path / "trace.json"):
        list(loader)
    spans = [span for span in Trace(tmp_path / "trace.json").spans("stage") if span["name"] == "map(<lambda>)"]
    assert sum(span["dur"] for span in spans) == pytest.approx(60 * 5e3, rel=0.4)


def test_threads_at_a_time_have_rows_of_their_own_and_later_ones_have_them_again(tmp_path):
    chain = IterableSource(range(5)).map(lambda item: sleep(0.01))
    collected = Collected()
    with tracing(tmp_path / "trace.json"), Sampler(collected, always=True):
        for _ in range(3):
            threads = [threading.Thread(target=observed, args=(chain, collected)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            sleep(0.01)  # a look
    trace = Trace(tmp_path / "trace.json")
    assert sorted({trace.lane(span) for span in trace.spans("stage")}) == ["stages", "stages (2)"]
    with Sampler(collected, always=True):
        with tracing(tmp_path / "trace.json"):
            observed(chain, collected)
        sleep(0.01)
        with tracing(tmp_path / "trace.json"):  # this thread lives on, but another trace knows nothing of it
            thread = threading.Thread(target=observed, args=(chain, collected))
            thread.start()
            thread.join()
    trace = Trace(tmp_path / "trace.json")
    assert {trace.lane(span) for span in trace.spans("stage")} == {"stages"}
    rows = _Rows()
    assert [rows.of(ident, "stages") for ident in (5, 6, 7, 6)] == ["stages", "stages (2)", "stages (3)", "stages (2)"]
    rows.keep({6, 7})
    assert [rows.of(ident, "stages") for ident in (8, 7, 6, 9)] == ["stages", "stages (3)", "stages (2)", "stages (4)"]


def test_what_overlaps_gets_lanes_of_its_own():
    times = [(1, 2), (1, 3), (2, 4), (3, 4), (4, 5)]
    events = [(CHUNK, "f", "", 0.0, float(begin), float(end - begin), float(end), 0, 1, 0, 0) for begin, end in times]
    lanes = [span.lane for span in Spans(0.0).of(marshal.dumps(events))]
    assert lanes == ["f: task", "f: task (2)", "f: task", "f: task (2)", "f: task"]


def test_names_and_numbers_are_written_as_json_has_them():
    span = Span("X", "lane", "a b", 'ü"\n', 1_000_000_001, 1_000_000_002, {"n": -3, "f": 0.12345, 't"': 'x"', "b": True})
    assert json.loads(span.to_json(1, 2)) == {
        "ph": "X",
        "cat": "a b",
        "name": 'ü"\n',
        "pid": 1,
        "tid": 2,
        "ts": 1_000_000.001,
        "dur": 0.001,
        "args": {"n": -3, "f": 0.123, 't"': 'x"', "b": 1},
    }


def test_many_threads_lose_nothing():
    keep = Keep()
    recorder = Recorder("test", [keep], full=16)

    def work(number):
        for index in range(2000):
            recorder.span(f"lane {number}", "stage", "x", float(index), index + 0.5)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.drain()
    assert len(keep.spans) == 8000
    for number in range(4):
        assert [span.begin // 10**9 for span in keep.spans if span.lane == f"lane {number}"] == [*range(2000)]


# -- several traces on one axis --------------------------------------------------------------------------------------------


def test_it_lies_on_the_axis_of_torch_profiler(tmp_path):
    loader = StreamLoader(IterableSource(range(20)).map(doubled).batched(5))
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler, loader.trace(tmp_path / "ours.json"):
        iterator = iter(loader)
        for step in range(4):
            with record_function(f"wait {step}"):
                next(iterator)
            with record_function(f"step {step}"):
                sleep(0.01)
        assert next(iterator, None) is None
    profiler.export_chrome_trace(str(tmp_path / "torch.json"))
    merge_traces([tmp_path / "torch.json", tmp_path / "ours.json"], tmp_path / "all.json")
    content = json.loads((tmp_path / "all.json").read_text())
    spans = {event["name"]: event for event in content["traceEvents"] if event.get("cat") == "user_annotation"}
    ours = [event for event in content["traceEvents"] if event.get("cat") in ("wait", "step")]
    assert len(ours) == 9
    most = 2000  # microseconds
    for event in ours[:-1]:
        theirs = spans[f"{event['cat']} {event['args']['step']}"]
        assert theirs["pid"] == event["pid"]
        assert theirs["tid"] != event["tid"]
        begin, end = (event["ts"], event["ts"] + event["dur"])
        if event["cat"] == "wait":  # ours is within the wait of the profiler, which is around it
            assert theirs["ts"] - most <= begin
            assert end <= theirs["ts"] + theirs["dur"] + most
        else:
            assert begin - most <= theirs["ts"]
            assert theirs["ts"] + theirs["dur"] <= end + most
    names = [event["args"]["name"] for event in content["traceEvents"] if event["name"] == "process_name"]
    assert names == ["training process"]
    first = min(event["ts"] for event in content["traceEvents"] if event["ph"] != "M")
    assert first == 0


def written(path, events, **more):
    content = {"baseTimeNanoseconds": 10**18, "traceEvents": events, **more}
    path.write_text(json.dumps(content))
    return path


def event(pid, ts, **more):
    return {"ph": "X", "name": "x", "cat": "step", "pid": pid, "tid": 1, "ts": ts, "dur": 1.0, **more}


def test_processes_and_ids_of_different_machines_are_told_apart(tmp_path):
    named = {"ph": "M", "name": "process_name", "pid": 7, "tid": 0, "ts": 0, "args": {"name": "rank 0"}}
    first = written(
        tmp_path / "a.json",
        [named, event(7, 1000.0), event(7, 1000.5, ph="s", id=5)],
        host_name="a",
        distributedInfo={"rank": 0},
        squirrel_torch=1,
    )
    second = written(
        tmp_path / "b.json",
        [event(7, 3.0), event(7, 4.0, ph="s", id=5), event("Spans", 3.0)],
        host_name="b",
        distributedInfo={"rank": 1},
        baseTimeNanoseconds=10**18 + 10**6,
    )
    python = {**named, "args": {"name": "python"}}
    third = written(tmp_path / "c.json", [python, event(7, 1002.0), event("Spans", 1002.0)], host_name="a")
    merge_traces([first, second, third], tmp_path / "all.json.gz")
    trace_file = tmp_path / "all.json.gz"
    import gzip

    content = json.loads(gzip.decompress(trace_file.read_bytes()))
    assert content["baseTimeNanoseconds"] == 10**18 + 10**6
    told = [(one["ph"], one["pid"], one["ts"], one.get("id")) for one in content["traceEvents"] if one["ph"] != "M"]
    other = 7 + (1 << 22)
    assert told == [
        ("X", 7, 0.0, None),
        ("s", 7, 0.5, 5),
        ("X", other, 3.0, None),
        ("s", other, 4.0, 5 + (1 << 40)),
        ("X", "Spans", 3.0, None),
        ("X", 7, 2.0, None),
        ("X", "Spans of rank None", 2.0, None),
    ]
    names = [one["args"]["name"] for one in content["traceEvents"] if one["ph"] == "M"]
    assert names == ["rank 0"]


def test_files_that_are_no_traces(tmp_path):
    out = tmp_path / "all.json"
    (tmp_path / "cut.json").write_text('{"traceEvents": [')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "cut.json.gz").write_bytes(b"\x1f\x8b\x08")
    for name in ("cut.json", "list.json", "cut.json.gz"):
        with pytest.raises(ValueError, match=f"{name} is no trace"):
            merge_traces([tmp_path / name], out)
    (tmp_path / "old.json").write_text('{"traceEvents": []}')
    with pytest.raises(ValueError, match="does not tell what its times are relative to"):
        merge_traces([tmp_path / "old.json"], out)
    with pytest.raises(ValueError, match="at least one trace"):
        merge_traces([], out)
    assert not out.exists()


RANKS = """
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function
from squirrel_torch import IterableSource, StreamLoader
from squirrel_torch.observe import merge_traces

dist.init_process_group("gloo")
loader = StreamLoader(IterableSource(i for i in range(40)).map(abs).batched(2), num_workers=1)
with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler, loader.trace("trace.json") as trace:
    for step, batch in enumerate(loader):
        with record_function("train"):
            dist.barrier()
        if step == 5:
            break
    for batch in loader:
        with record_function("train"):
            dist.barrier()
profiler.export_chrome_trace(f"torch{dist.get_rank()}.json")
dist.barrier()
if dist.get_rank() == 0:
    merge_traces(["trace.rank0.json", "trace.rank1.json", "torch0.json", "torch1.json"], "all.json")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_write_a_file_each(tmp_path):
    run_script(RANKS, tmp_path, torchrun=2)
    files = [Trace(tmp_path / f"trace.rank{rank}.json") for rank in range(2)]
    events = json.loads((tmp_path / "all.json").read_text())["traceEvents"]
    ours = [event for event in events if event["ph"] == "X" and event["cat"] in KINDS]
    assert len(ours) == sum(len(file.spans()) for file in files)
    processes = {one["pid"]: one["args"]["name"] for one in events if one["name"] == "process_name" and type(one["pid"]) is int}
    names = list(processes.values())
    assert sorted(set(names)) == ["rank 0", "rank 0, loader 0, worker 0", "rank 1", "rank 1, loader 0, worker 0"]
    assert names.count("rank 0") == names.count("rank 1") == 1  # that of torch.profiler is the same
    per_rank, trained = {}, {}
    for kind, found in (("step", per_rank), ("user_annotation", trained)):
        for event in sorted((one for one in events if one.get("cat") == kind), key=lambda one: one["ts"]):
            if event["name"] in ("step", "train"):
                found.setdefault(processes[event["pid"]], []).append(event)
    for found in per_rank.values():
        told = [(span["args"]["epoch"], span["args"]["step"]) for span in found]
        assert told[:7] == [*((0, step) for step in range(6)), (1, 0)]
        assert told[6:] == [(1, step) for step in range(len(told) - 6)]
    # What torch.profiler saw in a step lies in that step, of the same process.
    for rank, found in per_rank.items():
        for step, train in zip(found, trained[rank], strict=True):
            assert ends(step)[0] - 1_000_000 <= ends(train)[0]
            assert ends(train)[1] <= ends(step)[1] + 1_000_000
    # They meet at a barrier in each step: steps of one number overlap.
    for one, other in zip(*per_rank.values(), strict=True):
        assert max(ends(one)[0], ends(other)[0]) < min(ends(one)[1], ends(other)[1]) + 1_000_000
    assert {span["name"] for span in ours if span["cat"] == "ranks"} == {"wait for the other ranks"}
