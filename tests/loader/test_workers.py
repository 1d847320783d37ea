"""Workers: what they hand over, how far they go ahead, and what is left of them."""

import gc
import logging
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, namedtuple
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from squirrel_torch import ClosedRunError, IterableSource, PipelineError, StageTimeout, WorkerDiedError
from squirrel_torch.execution.encoding import decode, encode
from squirrel_torch.loader.workers import END, Workers
from tests.execution.test_encoding import MESSAGES, same
from tests.support import run_script

METHODS = ["fork", pytest.param("spawn", marks=pytest.mark.slow), pytest.param("forkserver", marks=pytest.mark.slow)]


opened = WeakSet()


@pytest.fixture(autouse=True)
def closed(nothing_left_behind):
    """Close what a test that failed has left open: it is not what the next one should fail of."""
    yield
    for workers in list(opened):
        workers.close()


def passes(serve, count=1, **options):
    """Workers whose processes are copies of this one, unless told otherwise."""
    workers = Workers(serve, count, **{"start_method": "fork", **options})
    opened.add(workers)
    return workers


def rest(workers, worker=0):
    """What is left of a worker's pass."""
    return list(iter(lambda: workers.receive(worker), END))


def numbered(work, worker, count):
    """Batch n of a worker says who made it."""
    for n in range(work):
        yield n, {"worker": worker, "of": count, "x": torch.full((3,), n)}


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def has_names(pid):
    """Whether a process sees memory that has a name, which would stay when it is killed."""
    return "/dev/shm" in Path(f"/proc/{pid}/maps").read_text()


def alive(pid):
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def within(seconds, condition):
    """Whether `condition` comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


class Counters:
    """Numbers that all processes see."""

    def __init__(self, count):
        self.tensor = torch.zeros(count, dtype=torch.int64).share_memory_()

    def add(self, place):
        self.tensor[place] += 1

    def __getitem__(self, place):
        return int(self.tensor[place])


class TestPasses:
    @pytest.mark.parametrize("method", METHODS)
    def test_every_worker_gives_its_batches_in_order(self, method):
        offset = 100

        def serve(work, worker, count):  # a local function: no other process could import it
            for n in range(work["batches"]):
                yield (worker, n), {"x": torch.full((1000, 3), offset + n), "count": count, "lambda": (lambda: n)()}

        workers = passes(serve, 3, start_method=method)
        for batches in (5, 0, 2):
            workers.start({"batches": batches}, [1, 2, 3])
            for worker in (2, 0, 1):
                received = rest(workers, worker)
                assert [ticket for ticket, _ in received] == [(worker, n) for n in range(batches)]
                for n, (_, batch) in enumerate(received):
                    assert torch.equal(batch["x"], torch.full((1000, 3), 100 + n))
                    assert (batch["count"], batch["lambda"]) == (3, n)
        workers.close()

    @pytest.mark.parametrize("method", METHODS)
    def test_what_a_worker_knows(self, method):
        threads = []

        def init(worker):
            threads.append(worker)

        def serve(work, worker, count):
            info = get_worker_info()
            about = (info.id, info.num_workers, info.seed, info.dataset)
            yield about, (torch.get_num_threads(), list(threads), random.random(), np.random.random(), torch.rand(1).item())

        workers = passes(serve, 2, start_method=method, dataset=[1, 2, 3], worker_init_fn=init)
        seen = []
        for seeds in ([7, 8], [9, 7]):
            workers.start(None, seeds)
            for worker in (0, 1):
                ((about, (torch_threads, began, *numbers)),) = rest(workers, worker)
                assert about == (worker, 2, seeds[worker], [1, 2, 3])
                assert torch_threads == 1
                assert began == [worker], "called once"
                seen.append(numbers)
        workers.close()
        assert seen[0] == seen[3], "the seed of the pass decides"
        assert len({number for numbers in seen for number in numbers}) == 9
        expected = (
            random.Random(7).random(),
            np.random.RandomState(7).random(),
            torch.rand(1, generator=torch.Generator().manual_seed(7)).item(),
        )
        assert seen[0] == list(expected)
        assert get_worker_info() is None

    def test_the_end_is_there_as_often_as_it_is_asked_for(self):
        workers = passes(numbered)
        workers.start(1, [0])
        assert workers.receive(0)[0] == 0
        assert [workers.receive(0) for _ in range(3)] == [END] * 3
        assert workers.poll(0)
        workers.start(1, [0])
        assert len(rest(workers)) == 1
        workers.close()

    def test_a_pass_is_given_up_for_another(self):
        closed, going = Counters(2), Counters(1)

        def serve(work, worker, count):
            try:
                for n in range(1000):
                    going.add(0)
                    yield (work, n), n
            finally:
                closed.add(worker)

        workers = passes(serve, 2, prefetch=3)
        pids = workers.pids
        for work in range(20):
            workers.start(work, [0, 0])
            for n in range(work % 4):
                assert workers.receive(0) == ((work, n), n)
            if work % 3 == 0:
                assert workers.receive(1) == ((work, 0), 0)
        workers.start(20, [0, 0])
        assert [workers.receive(worker) for worker in (0, 1)] == [((20, 0), 0)] * 2
        assert workers.pids == pids
        assert going[0] < 21 * 2 * 7
        workers.close()
        # A pass that was given up before the worker saw it has not begun.
        assert 1 <= closed[0] <= 21
        assert 1 <= closed[1] <= 21

    def test_orders_that_are_larger_than_a_pipe_holds(self):
        begun, go = multiprocessing.get_context("fork").Event(), multiprocessing.get_context("fork").Event()

        def serve(work, worker, count):
            if work is None:
                begun.set()
                assert go.wait(20)
            else:
                yield 0, work.sum()

        workers = passes(serve)
        workers.start(None, [0])
        assert begun.wait(20)
        workers.start(np.ones(10_000_000), [0])  # nobody listens yet
        assert not workers.poll(0)
        go.set()
        assert workers.receive(0) == (0, 10_000_000)
        workers.close()

    def test_poll(self):
        go = multiprocessing.get_context("fork").Event()

        def serve(work, worker, count):
            assert go.wait(20)
            yield 0, 0

        workers = passes(serve)
        assert not workers.poll(0)
        workers.start(None, [0])
        assert not workers.poll(0)
        go.set()
        assert within(20, lambda: workers.poll(0))
        assert workers.receive(0) == (0, 0)
        assert within(20, lambda: workers.poll(0))
        assert workers.receive(0) is END
        workers.close()

    def test_async_map_in_processes_of_its_own(self):
        def serve(work, worker, count):
            stream = IterableSource(range(work)).async_map(lambda x: (x * x, os.getpid()), executor="process", max_workers=2)
            for square, pid in stream:
                yield pid != os.getpid(), square

        workers = passes(serve, 2)
        workers.start(20, [0, 0])
        for worker in (0, 1):
            assert rest(workers, worker) == [(True, x * x) for x in range(20)]
        workers.close()

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"serve": 3}, TypeError, "serve must be callable, got 3"),
            ({"count": 0}, ValueError, "count must be at least 1, got 0"),
            ({"count": 1.5}, TypeError, "count must be an integer"),
            ({"prefetch": 0}, ValueError, "prefetch must be at least 1, got 0"),
            ({"most_bytes": 0}, ValueError, "most_bytes must be at least 1"),
            ({"timeout": -1}, ValueError, "timeout must be at least 0 seconds, got -1"),
            ({"worker_init_fn": 3}, TypeError, "worker_init_fn must be callable"),
            ({"start_method": "frok"}, ValueError, "start_method must be one of 'fork', .* got 'frok'"),
        ],
    )
    def test_wrong_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Workers(**{"serve": numbered, "count": 1, **arguments})

    def test_wrong_order(self):
        workers = passes(numbered, 2)
        with pytest.raises(PipelineError, match="call start"):
            workers.receive(0)
        with pytest.raises(ValueError, match="seeds must be 2, one for each worker, got 1"):
            workers.start(1, [0])
        with pytest.raises(ValueError, match=r"a seed must be from 0 to 2\*\*64 - 1, got -1"):
            workers.start(1, [0, -1])
        workers.close()
        workers.close()
        for call in (lambda: workers.receive(0), lambda: workers.poll(0), lambda: workers.start(1, [0, 0])):
            with pytest.raises(ClosedRunError, match="closed"):
                call()


class TestAhead:
    @pytest.mark.parametrize("prefetch", [1, 2, 5])
    @pytest.mark.parametrize("size", [1, 100_000])
    def test_never_more_than_prefetch(self, prefetch, size):
        made = Counters(2)

        def serve(work, worker, count):
            for n in range(work):
                made.add(worker)
                yield n, np.full(size, n)

        workers = passes(serve, 2, prefetch=prefetch)
        workers.start(12, [0, 0])
        for n in range(12):
            assert within(20, lambda n=n: made[0] == min(n + prefetch, 12))
            assert within(20, lambda: made[1] == prefetch)
            time.sleep(0.01)
            assert (made[0], made[1]) == (min(n + prefetch, 12), prefetch)
            assert workers.receive(0)[0] == n
        workers.close()

    def test_memory_is_used_again_and_grows(self):
        def serve(work, worker, count):
            for n, size in enumerate(work):
                yield n, np.full(size, n, np.uint8)

        sizes = [10, 5_000, 100_000, 3_000_000, 20, 3_000_000, *[200_000] * 50, 2_000_000]
        workers = passes(serve, 1, prefetch=3)
        memory = workers._workers[0]._memory
        workers.start(sizes, [0])
        gc.collect()  # what earlier tests left is closed now, not while descriptors are counted
        before = descriptors()
        kept = rest(workers)
        assert [(ticket, len(array), set(array.tolist())) for ticket, array in kept] == [
            (n, size, {n}) for n, size in enumerate(sizes)
        ]
        assert descriptors() == before
        assert memory.size <= 1 << 23, "two batches of 3 MB and a small one, rounded up"
        workers.close()

    def test_more_than_may_be_shared(self):
        def serve(work, worker, count):
            for n in range(6):
                yield n, [np.full(300_000, n), "x" * 100_000, torch.full((5,), n, dtype=torch.bfloat16)]

        workers = passes(serve, 1, most_bytes=1 << 16)
        workers.start(None, [0])
        for n, (ticket, (array, text, tensor)) in enumerate(rest(workers)):
            assert (ticket, len(array), set(array.tolist()), text) == (n, 300_000, {n}, "x" * 100_000)
            assert tensor.tolist() == [n] * 5
        assert workers._workers[0]._memory.size <= 1 << 16
        workers.start(None, [0])  # given up in the middle of a batch
        workers.start(None, [0])
        assert len(rest(workers)) == 6
        workers.start(None, [0])
        began = time.monotonic()
        workers.close()
        assert time.monotonic() - began < 0.4

    def test_no_batch_waits_for_the_next(self):
        received = multiprocessing.get_context("fork").Event()

        def serve(work, worker, count):
            yield 0, np.ones(3_000_000)  # more than a pipe holds
            assert received.wait(20)

        for most_bytes in (1, 1 << 30):
            workers = passes(serve, most_bytes=most_bytes)
            received.clear()
            workers.start(None, [0])
            assert workers.receive(0)[1].sum() == 3_000_000
            received.set()
            assert workers.receive(0) is END
            workers.close()

    @pytest.mark.slow
    def test_without_shared_memory(self, tmp_path):
        code = """
import resource
import numpy as np
from squirrel_torch.loader.workers import END, Workers

# No file may be larger than a few pages: memory for more than small batches can't be had.
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

def serve(work, worker, count):
    for n in range(10):
        yield n, np.full(500_000, n)

workers = Workers(serve, 2, start_method="fork")
workers.start(None, [0, 0])
for worker in (1, 0):
    received = list(iter(lambda: workers.receive(worker), END))
    assert [(n, x[0], x[-1], len(x)) for n, x in received] == [(n, n, n, 500_000) for n in range(10)]
print("ok")
"""
        assert run_script(code, tmp_path) == "ok\n"


Pair = namedtuple("Pair", ["a", "b"])


@dataclass
class Sample:
    x: torch.Tensor
    name: str


class TestHandOver:
    def sent(self, *batches, **options):
        def serve(work, worker, count):
            yield from enumerate(batches)

        workers = passes(serve, **options)
        workers.start(None, [0])
        received = [batch for _, batch in rest(workers)]
        workers.close()
        return received

    def test_nested(self):
        batch = {
            "pair": Pair(torch.arange(6).reshape(2, 3), [np.arange(3), (b"bytes", "text", 1.5, None)]),
            "sample": Sample(torch.ones(3, dtype=torch.bfloat16), "a"),
            3: {"large": b"x" * 300_000, "empty": {}},
        }
        (received,) = self.sent(batch)
        assert type(received["pair"]) is Pair
        assert torch.equal(received["pair"].a, batch["pair"].a)
        assert type(received["pair"].b[0]) is np.ndarray
        assert received["pair"].b[0].tolist() == [0, 1, 2]
        assert received["pair"].b[1] == (b"bytes", "text", 1.5, None)
        assert type(received["sample"]) is Sample
        assert torch.equal(received["sample"].x, torch.ones(3, dtype=torch.bfloat16))
        assert received["sample"].name == "a"
        assert received[3] == batch[3]

    @pytest.mark.filterwarnings("ignore:ComplexHalf")
    def test_anything(self):
        def serve(work, worker, count):
            for pickled, memory in work:
                yield len(memory), decode(pickled, memory, 0)

        workers = passes(serve, prefetch=3)

        @settings(max_examples=30)
        @given(st.lists(MESSAGES, max_size=6))
        def round_trip(messages):
            work = []
            for message in messages:
                encoded = encode(message)
                work.append((encoded.pickled, bytearray(encoded.size + 1)))
                encoded.write(work[-1][1], 0)
            workers.start(work, [0])
            received = rest(workers)
            assert [ticket for ticket, _ in received] == [len(memory) for _, memory in work]
            for (_, found), message in zip(received, messages, strict=True):
                same(found, message)

        round_trip()
        workers.close()

    def test_what_was_received_is_the_receivers_own(self):
        def serve(work, worker, count):
            x, a = torch.zeros(5000), np.zeros(5000)
            a.flags.writeable = False
            for n in range(10):
                x += 1
                yield n, {"x": x, "a": a, "small": torch.tensor(n)}

        workers = passes(serve)
        workers.start(None, [0])
        kept = [batch for _, batch in rest(workers)]
        workers.close()
        for n, batch in enumerate(kept):
            assert set(batch["x"].tolist()) == {n + 1}
            assert batch["small"].item() == n
            batch["x"].zero_()
            batch["a"][:] = -1  # also where the worker's must not be written to

    def test_a_local_class(self):
        @dataclass
        class Local:
            x: torch.Tensor
            a: np.ndarray

        first, second = self.sent(Local(torch.arange(3), np.ones(4000)), Local(torch.arange(2), np.ones(1)))
        assert type(first) is type(second)
        assert (first.x.tolist(), first.a.sum(), second.x.tolist()) == ([0, 1, 2], 4000, [0, 1])

    def test_what_can_not_be_pickled(self):
        def serve(work, worker, count):
            yield 0, torch.ones(3)
            yield 1, threading.Lock()

        workers = passes(serve)
        workers.start(None, [0])
        assert workers.receive(0)[1].tolist() == [1, 1, 1]
        with pytest.raises(TypeError, match=r"pickle '_thread\.lock'"):
            workers.receive(0)
        workers.close()

    def test_what_can_not_be_unpickled(self):
        class Bad:
            def __reduce__(self):
                return int, ("no number",)

        def serve(work, worker, count):
            yield 0, 0
            yield 1, Bad()
            yield 2, 2

        workers = passes(serve, prefetch=5)
        workers.start(None, [0])
        assert workers.receive(0) == (0, 0)
        for _ in range(2):
            with pytest.raises(ValueError, match="invalid literal"):
                workers.receive(0)
        workers.close()

    def test_default_collate_shares_nothing_by_itself(self):
        def serve(work, worker, count):
            samples = [{"x": torch.full((3,), float(n)), "a": np.full(2, n), "n": n} for n in range(4)]
            collated = default_collate(samples)
            yield [collated[key].is_shared() for key in "xan"], collated
            default_collate([torch.eye(2).to_sparse()] * 2)

        workers = passes(serve)
        workers.start(None, [0])
        shared, batch = workers.receive(0)
        assert shared == [False, False, False]
        assert batch["x"].tolist() == [[n] * 3 for n in range(4)]
        assert batch["a"].tolist() == [[n] * 2 for n in range(4)]
        assert batch["n"].tolist() == [0, 1, 2, 3]
        with pytest.raises(RuntimeError, match="sparse tensors are not currently supported"):
            workers.receive(0)

    def test_default_collate_of_arrays_gives_what_it_gives_elsewhere(self):
        table = np.arange(6).reshape(2, 3)
        stacks = [
            *([table.astype(name), 2 * table.astype(name)] for name in ("u1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "?")),
            [np.asfortranarray(table), table, table.T.reshape(2, 3)],
            [table[:, ::2], table[:, 1:]],
            [np.asfortranarray(table), np.asfortranarray(2 * table)],
            [np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)],
            [np.zeros((2, 0)), np.zeros((2, 0))],
            [np.array(3), np.array(4)],
            [np.arange(3), torch.arange(3)],
            [np.arange(3, dtype=np.int32), np.arange(3, dtype=np.float32)],
            [np.ma.array([1, 2]), np.ma.array([3, 4])],
            [table],
        ]

        def serve(work, worker, count):
            yield from ((0, {"a": default_collate(stack)}) for stack in stacks)

        workers = passes(serve)
        workers.start(None, [0])
        for stack, (_, batch) in zip(stacks, rest(workers), strict=True):
            expected = default_collate(stack)
            assert (batch["a"].dtype, batch["a"].shape) == (expected.dtype, expected.shape), stack
            assert batch["a"].tolist() == expected.tolist()

    @pytest.mark.parametrize(
        "arrays",
        [
            [np.zeros(3), np.zeros(4), np.zeros(2)],  # as many numbers as three of the first
            [np.zeros((2, 3)), np.zeros((3, 2))],
            [np.arange(3)[::-1], np.arange(3)[::-1]],
            [np.zeros(2, ">f8"), np.zeros(2, ">f8")],
            [np.array(["a"]), np.array(["b"])],
            [np.array([None]), np.array([None])],
        ],
        ids=["lengths", "shapes", "backwards", "byte order", "text", "objects"],
    )
    def test_default_collate_refuses_the_arrays_that_it_refuses_elsewhere(self, arrays):
        def serve(work, worker, count):
            yield 0, default_collate(arrays)

        with pytest.raises((TypeError, ValueError, RuntimeError)) as expected:
            default_collate(arrays)
        workers = passes(serve)
        workers.start(None, [0])
        with pytest.raises(expected.type, match=re.escape(str(expected.value))):
            workers.receive(0)

    def test_default_collate_joins_arrays_that_are_views_and_read_only(self):
        def serve(work, worker, count):
            rows = np.arange(6.0)
            rows.flags.writeable = False
            batch = default_collate([rows[:3], rows[3:]])  # torch's own warns, which is an error here
            batch += 1
            yield rows.tolist(), batch

        workers = passes(serve)
        workers.start(None, [0])
        before, batch = workers.receive(0)
        assert before == [0, 1, 2, 3, 4, 5]
        assert batch.tolist() == [[1, 2, 3], [4, 5, 6]]

    def test_what_a_user_does_with_tensors_counts_for_arrays_too(self):
        def serve(work, worker, count):
            default_collate_fn_map[torch.Tensor] = lambda tensors, collate_fn_map: [one.sum().item() for one in tensors]
            yield 0, default_collate([np.arange(3), np.arange(1, 4)])

        workers = passes(serve)
        workers.start(None, [0])
        assert workers.receive(0) == (0, [3, 6])

    def test_pinned_without_cuda_is_nothing(self):
        (received,) = self.sent({"x": torch.arange(5)}, pinned=True)
        assert received["x"].tolist() == [0, 1, 2, 3, 4]
        assert received["x"].is_pinned() == torch.cuda.is_available()


class OddError(Exception):
    def __init__(self, first, *, second):
        super().__init__(f"{first} and {second}")
        self.second = second


class TestErrors:
    @pytest.mark.parametrize("method", METHODS)
    def test_after_the_batches_before_it(self, method):
        def serve(work, worker, count):
            yield from ((n, n) for n in range(work))
            error = OddError("one", second=2)
            error.add_note("with a note")
            raise error

        workers = passes(serve, 2, start_method=method, prefetch=3)
        for batches in (0, 2, 7):
            workers.start(batches, [0, 0])
            assert [workers.receive(0) for _ in range(batches)] == [(n, n) for n in range(batches)]
            for _ in range(2):
                with pytest.raises(OddError, match="one and 2") as caught:
                    workers.receive(0)
                assert caught.value.second == 2
                assert caught.value.__notes__ == ["with a note"]
                assert "in serve" in str(caught.value.__cause__)
        workers.close()

    def test_of_worker_init_fn(self):
        def init(worker):
            if worker:
                raise OSError(f"no worker {worker}")

        workers = passes(numbered, 2, worker_init_fn=init)
        for _ in range(2):
            workers.start(3, [0, 0])
            assert len(rest(workers, 0)) == 3
            with pytest.raises(OSError, match="no worker 1"):
                workers.receive(1)
        workers.close()

    @pytest.mark.slow
    def test_of_loading(self):
        class Bad:
            def __call__(self, work, worker, count): ...

            def __reduce__(self):
                return int, ("no number",)

        workers = Workers(Bad(), 1, start_method="spawn")
        workers.start(3, [0])
        with pytest.raises(ValueError, match="invalid literal"):
            workers.receive(0)
        workers.close()

    def test_of_a_pass_that_is_given_up(self, tmp_path):
        def init(worker):
            logging.getLogger("squirrel_torch").addHandler(logging.FileHandler(tmp_path / "log"))

        def serve(work, worker, count):
            try:
                yield from ((work, n) for n in range(100))
            finally:
                raise ValueError(f"while closing {work}")

        workers = passes(serve, prefetch=1, worker_init_fn=init)
        for work in range(3):
            workers.start(work, [0])
            assert workers.receive(0) == (work, 0)
        workers.close()
        log = (tmp_path / "log").read_text()
        assert [f"ValueError: while closing {work}" in log for work in range(3)] == [True] * 3

    def test_work_that_can_not_be_pickled(self):
        workers = passes(numbered)
        workers.start(1, [0])
        with pytest.raises(TypeError, match="pickle"):
            workers.start(threading.Lock(), [0])
        assert len(rest(workers)) == 1, "nothing has changed"
        workers.close()


class TestDeath:
    @pytest.mark.parametrize("method", METHODS)
    def test_killed(self, method):
        def serve(work, worker, count):
            for n in range(3):
                yield n, np.full(50_000, n)
            if worker == work:
                os.kill(os.getpid(), signal.SIGKILL)

        workers = passes(serve, 2, start_method=method, prefetch=5)
        pid = workers.pids[1]
        workers.start(1, [0, 0])
        assert [array.sum() for _, array in rest(workers, 0)] == [0, 50_000, 100_000]
        assert within(20, lambda: not alive(pid))
        assert [workers.receive(1)[1].sum() for _ in range(3)] == [0, 50_000, 100_000], "what it had handed over is there"
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(WorkerDiedError, match=rf"worker 1 of 2 \(pid {pid}\) died: signal SIGKILL"):
                workers.receive(1)
            assert time.monotonic() - began < 1.2
        assert workers.poll(1)
        survivor = workers.pids[0]
        workers.start(-1, [0, 0])  # another one in its place
        assert [len(rest(workers, worker)) for worker in (0, 1)] == [3, 3]
        assert workers.pids[0] == survivor
        assert workers.pids[1] != pid
        workers.close()

    def test_killed_from_outside_while_it_is_waited_for(self):
        def serve(work, worker, count):
            yield 0, 0
            time.sleep(60)

        workers = passes(serve)
        workers.start(None, [0])
        assert workers.receive(0) == (0, 0)
        threading.Timer(0.05, os.kill, (workers.pids[0], signal.SIGKILL)).start()
        began = time.monotonic()
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            workers.receive(0)
        assert time.monotonic() - began < 1.2
        workers.close()

    def test_killed_while_it_has_nothing_to_do(self):
        workers = passes(numbered, prefetch=1)
        workers.start(5, [0])
        assert within(20, lambda: workers.poll(0))
        os.kill(workers.pids[0], signal.SIGKILL)
        assert within(20, lambda: not alive(workers.pids[0]))
        assert workers.receive(0)[0] == 0
        with pytest.raises(WorkerDiedError):
            workers.receive(0)
        workers.close()

    def test_killed_with_children_that_hold_its_line(self):
        def serve(work, worker, count):
            pid = os.fork()
            if not pid:
                time.sleep(60)
                os._exit(0)
            yield pid, 0
            os.kill(os.getpid(), signal.SIGKILL)

        workers = passes(serve)
        workers.start(None, [0])
        child, _ = workers.receive(0)
        try:
            began = time.monotonic()
            with pytest.raises(WorkerDiedError, match="SIGKILL"):
                workers.receive(0)
            assert time.monotonic() - began < 1.2
        finally:
            os.kill(child, signal.SIGKILL)
        workers.close()

    def test_exit(self):
        def serve(work, worker, count):
            yield 0, 0
            os._exit(7)

        workers = passes(serve)
        workers.start(None, [0])
        workers.receive(0)
        with pytest.raises(WorkerDiedError, match=r"died: exit code 7$"):
            workers.receive(0)
        workers.close()

    def test_timeout(self):
        go = multiprocessing.get_context("fork").Event()

        def hangs_here():
            assert go.wait(20)

        def hangs_there():
            time.sleep(60)

        def serve(work, worker, count):
            yield 0, 0
            hangs_here()
            hangs_there()

        workers = passes(serve, 2, timeout=0.05)
        workers.start(None, [0, 0])
        assert within(20, lambda: workers.poll(1))
        assert workers.receive(1) == (0, 0)

        def stack():
            with pytest.raises(StageTimeout, match=r"worker 1 of 2 .* has given no batch for 0\.05 s") as caught:
                workers.receive(1)
            assert caught.value.stack in str(caught.value)
            assert "serving.py" not in caught.value.stack
            return caught.value.stack

        assert "in hangs_here" in stack()
        assert stack().count("in hangs_here") == 1
        go.set()
        assert within(20, lambda: "in hangs_there" in stack())
        assert "in hangs_here" not in stack()
        began = time.monotonic()
        workers.close()
        assert 0.4 < time.monotonic() - began < 0.9

    @pytest.mark.slow
    def test_timeout_before_the_process_is_ready(self):
        workers = Workers(numbered, 1, start_method="spawn", timeout=0.01)
        workers.start(1, [0])
        with pytest.raises(StageTimeout, match="no stack could be had"):
            workers.receive(0)
        assert within(60, lambda: workers.poll(0)), "asking for its stack has not killed it"
        assert len(rest(workers)) == 1
        workers.close()


class TestEnd:
    def test_nothing_is_left(self):
        def use():
            workers = passes(numbered, 2)
            pids = workers.pids
            workers.start(5, [0, 0])
            rest(workers, 0)
            return workers, pids

        workers, pids = use()
        workers.close()
        gc.collect()
        before = descriptors(), threading.active_count()
        for _ in range(3):
            workers, pids = use()
            began = time.monotonic()
            workers.close()
            assert time.monotonic() - began < 0.4
            assert not any(map(alive, pids))
        workers, pids = use()
        os.kill(pids[1], signal.SIGKILL)
        workers.close()
        workers, pids = use()
        del workers
        gc.collect()
        assert not any(map(alive, pids))
        assert (descriptors(), threading.active_count()) == before
        assert not multiprocessing.active_children()

    def test_workers_hold_nothing_of_each_other(self):
        def held():
            gc.collect()
            targets = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
            return Counter(target.split(":")[0] for target in targets)

        def serve(work, worker, count):
            yield 0, held()

        before = held()
        others, workers = passes(serve, 2), passes(serve, 4)
        workers.start(None, [0] * 4)
        # Its end of the line, its memory and page, and two pipes in which parent and child see each other's end.
        own = Counter({"socket": 1, "/memfd": 2 if sys.version_info >= (3, 13) else 4, "pipe": 2})
        expected = {kind: before[kind] + own[kind] for kind in ("socket", "/memfd", "pipe")}
        for worker in range(4):
            ((_, found),) = rest(workers, worker)
            assert {kind: found[kind] for kind in expected} == expected
        workers.close()
        others.close()

    def test_a_fork_of_the_main_process_ends_nothing(self):
        workers = passes(numbered, 2)
        workers.start(3, [0, 0])
        pid = os.fork()
        if not pid:
            workers.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert [len(rest(workers, worker)) for worker in (0, 1)] == [3, 3]
        workers.close()

    def test_the_thread_that_opened_them_may_end(self):
        opened = []
        thread = threading.Thread(target=lambda: opened.append(passes(numbered, 2)))
        thread.start()
        thread.join()
        (workers,) = opened
        pids = workers.pids
        assert not within(0.1, lambda: not all(map(alive, pids)))
        workers.start(3, [0, 0])
        assert workers.pids == pids
        assert [len(rest(workers, worker)) for worker in (0, 1)] == [3, 3]
        workers.close()

    def test_generators_are_closed(self):
        closed = Counters(2)

        def serve(work, worker, count):
            try:
                yield from numbered(100, worker, count)
            finally:
                closed.add(worker)

        workers = passes(serve, 2)
        workers.start(None, [0, 0])
        workers.receive(0), workers.receive(1)
        workers.close()
        assert (closed[0], closed[1]) == (1, 1)


SCRIPT = """
import os, sys, time
import numpy as np
from squirrel_torch.loader.workers import END, Workers

def serve(work, worker, count):
    for n in range(1000):
        yield n, np.full(50_000, n)
        if work:
            time.sleep(60)

def main(method, work=0):
    workers = Workers(serve, 2, start_method=method)
    workers.start(work, [0, 0])
    print(workers.receive(0)[0], workers.receive(1)[0], *workers.pids, flush=True)
    return workers
"""


@pytest.mark.slow
class TestMainProcess:
    @pytest.mark.parametrize(
        "how", ["kept = main('fork')", "kept = main('spawn')", "kept = main('fork', 1)", "sys.exit(main('fork') and 0)"]
    )
    def test_exits(self, how, tmp_path):
        out = run_script(f"{SCRIPT}\nif __name__ == '__main__':\n    {how}\n", tmp_path, timeout=60)
        assert out.split()[:2] == ["0", "0"]
        assert not any(alive(int(pid)) for pid in out.split()[2:])

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
    def test_is_killed(self, method, number, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(f"{SCRIPT}\nif __name__ == '__main__':\n    main('{method}', 1).receive(0)\n")
        with subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            line = process.stdout.readline()
            pids = [int(pid) for pid in line.split()[2:]]
            assert len(pids) == 2
            assert not any(has_names(pid) for pid in [process.pid, *pids])
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does it
            else:
                os.kill(process.pid, number)
            process.wait(10)
            assert within(1.5, lambda: not any(map(alive, pids)))
            errors = process.stderr.read()
        assert errors.count("Traceback") == (number == signal.SIGINT), errors

    def test_script_without_guard(self, tmp_path):
        code = f"""{SCRIPT}
from squirrel_torch import WorkerDiedError
try:
    main("spawn")
except WorkerDiedError as error:
    print(error)
"""
        out = run_script(code, tmp_path, timeout=60)
        assert "worker 0 of 2" in out
        assert "before it was ready: see what it wrote to stderr (start method 'spawn'" in out
