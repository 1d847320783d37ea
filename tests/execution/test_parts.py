"""The parts of the engine, each alone: shared memory, the size of chunks, the search for numbers."""

import os
import sys
import threading
from itertools import count, islice, pairwise
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch.execution.channel import Channel
from squirrel_torch.execution.sizing import ChunkSize
from squirrel_torch.execution.tuning import MOST_BUFFER, Knob, Tuner
from squirrel_torch.execution.waiting import Waiting
from squirrel_torch.execution.work import Chunk
from tests.support import run_script


@pytest.fixture
def channels():
    here, there = (Channel(end, os.getpid()) for end in Pipe())
    yield here, there
    here.close()
    there.close()


def descriptors():
    return list(Path("/proc/self/fd").iterdir())


def sent(channels, message):
    """What arrives; sent by a thread, as a pipe holds only so much."""
    here, there = channels
    sender = threading.Thread(target=here.send, args=(message,))
    sender.start()
    received = there.receive()
    sender.join()
    return received


ARRAYS = {
    "large": np.arange(1_000_000, dtype=np.float32),
    "small": np.arange(5),
    "empty": np.empty((0, 3)),
    "scalar": np.float32(3),
    "fortran": np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
    "view": np.arange(200_000)[::3],
    "structured": np.zeros(9_000, dtype=[("x", "i4"), ("y", "f8")]),
    "text": np.array(["a", "bc"] * 5000),
    "objects": np.array([{"a": 1}, None], dtype=object),
    "dates": np.arange("2020-01", "2520-01", dtype="datetime64[D]"),
}

TENSORS = {
    "large": torch.arange(1_000_000),
    "bfloat16": torch.ones(300, 300, dtype=torch.bfloat16),
    "bool": torch.ones(30_000, dtype=torch.bool),
    "complex": torch.ones(9_000, dtype=torch.complex64) * 1j,
    "conjugate": (torch.ones(9_000, dtype=torch.complex64) * 1j).conj(),
    "number": torch.tensor(3),
    "empty": torch.empty(0, 5),
    "part": torch.arange(90_000.0).reshape(300, 300)[::2, 1:],
    "channels last": torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(torch.ones(9_000)),
    "gradient": torch.ones(9_000, requires_grad=True),
    "sparse": torch.eye(100).to_sparse(),
}


class TestChannel:
    @pytest.mark.parametrize("name", ARRAYS)
    def test_arrays(self, channels, name):
        array = ARRAYS[name]
        for message in ([array], {"x": array, "again": array}):
            received = sent(channels, message)
            for value in received if type(received) is list else received.values():
                assert value.dtype == array.dtype
                np.testing.assert_array_equal(value, array)

    @pytest.mark.parametrize("name", TENSORS)
    def test_tensors(self, channels, name):
        tensor = TENSORS[name]
        (received,) = sent(channels, [tensor])
        assert type(received) is type(tensor)
        assert (received.dtype, received.shape, received.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad)
        assert torch.equal(received.to_dense(), tensor.to_dense())

    def test_what_was_received_is_the_receivers_own(self, channels):
        kept = [sent(channels, {"a": np.full(100_000, n), "t": torch.full((100_000,), n)}) for n in range(5)]
        for n, message in enumerate(kept):
            assert (message["a"] == n).all()
            assert (message["t"] == n).all()
            message["a"][0] = message["t"][0] = -1  # and can be written to

    def test_memory_is_used_again(self, channels):
        for size in (100_000, 50_000, 100_000):
            sent(channels, np.ones(size))
        before = len(descriptors())
        for _ in range(50):
            sent(channels, np.ones(100_000))
        assert len(descriptors()) == before
        sent(channels, np.ones(10_000_000))  # more memory in place of what was there
        assert len(descriptors()) == before

    def test_nothing_has_a_name(self, channels):
        before = set(Path("/dev/shm").iterdir())
        sent(channels, np.ones(1_000_000))
        assert set(Path("/dev/shm").iterdir()) == before

    def test_more_than_may_be_shared(self, channels, monkeypatch):
        monkeypatch.setattr(channels[0], "_room", 1 << 20)
        message = [np.full(300_000, n) for n in range(3)]
        for received, array in zip(sent(channels, message), message, strict=True):
            np.testing.assert_array_equal(received, array)
        assert (sent(channels, np.ones(100)) == 1).all()

    def test_lambdas(self, channels):
        factor = 3
        assert sent(channels, {"f": lambda x: factor * x, "a": np.ones(50_000)})["f"](2) == 6

    def test_what_can_not_be_pickled_sends_nothing(self, channels):
        with pytest.raises(TypeError, match="pickle"):
            channels[0].send([np.ones(50_000), threading.Lock()])
        assert sent(channels, "next") == "next"


@pytest.mark.slow
def test_without_shared_memory(tmp_path):
    code = """
import resource
import numpy as np
from squirrel_torch import IterableSource

# No file may be larger than a few pages: the memory of results can't be had.
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
stream = IterableSource([np.full(500_000, n) for n in range(10)]).async_map(lambda x: x + 1, executor="process", max_workers=2)
assert [(x[0], x[-1], len(x)) for x in stream] == [(n + 1, n + 1, 500_000) for n in range(10)]
print("ok")
"""
    assert run_script(code, tmp_path) == "ok\n"


class TestWaiting:
    @given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
    def test_it_is_a_queue(self, steps):
        waiting, numbers, plain = Waiting(), count(), []
        for put, take in steps:
            new = list(islice(numbers, put))
            waiting.put(iter(new))
            plain += new
            some, plain = plain[:take], plain[take:]
            assert waiting.take(len(some)) == some
            assert len(waiting) == len(plain)

    def test_what_was_taken_is_not_kept(self):
        things = [{number} for number in range(100)]
        waiting = Waiting()
        waiting.put(iter(things))
        before = [sys.getrefcount(thing) for thing in things[:10]]
        waiting.take(10)
        assert [sys.getrefcount(thing) for thing in things[:10]] == [references - 1 for references in before]

    def test_items_can_be_taken_while_the_next_is_made(self):
        waiting = Waiting()
        taken = []

        def items():
            for number in range(1000):
                yield number
                if number % 3 == 2:
                    taken.extend(waiting.take(number % 4))

        waiting.put(items())
        assert taken + waiting.take(len(waiting)) == list(range(1000))

    def test_items_before_an_error_are_in(self):
        def items():
            yield from range(5)
            raise ValueError

        waiting = Waiting()
        with pytest.raises(ValueError):
            waiting.put(items())
        assert waiting.take(5) == list(range(5))


class TestChunkSize:
    def test_fast_items_travel_together(self):
        sizing = ChunkSize(20e-6, workers=4, buffer=100, fixed=None)
        sizes = []
        for _ in range(30):
            sizing.measured(sizing.size, sizing.size * 1e-7)
            sizes.append(sizing.size)
        assert sizes[:7] == [1] * 7, "first it is seen what they cost"
        assert all(later <= 4 * size for size, later in pairwise(sizes))
        assert sizes[-1] == 50, "half of what may be in flight"

    def test_what_any_chunk_costs_is_no_time_of_its_items(self):
        sizing = ChunkSize(200e-6, workers=2, buffer=10_000, fixed=None)
        for _ in range(30):
            sizing.measured(1, 20e-6)
        assert sizing.size == 4, "and not more than was tried"
        for _ in range(30):
            sizing.measured(sizing.size, 20e-6 + sizing.size * 1e-6)
        assert 1900 < sizing.size <= 2001, "2 ms of 1 us each"

    def test_it_grows_to_four_times_what_was_tried(self):
        sizing = ChunkSize(200e-6, workers=2, buffer=1000, fixed=None)
        for _ in range(20):
            sizing.measured(1, 15e-6)
        assert sizing.size == 4

    def test_larger_chunks_know_better_than_small_ones(self):
        sizing = ChunkSize(200e-6, workers=2, buffer=1000, fixed=None)
        for _ in range(8):
            sizing.measured(1, 1e-3)  # the callback had to be loaded
        assert sizing.size == 3
        sizing.measured(4, 201e-6)
        sizing.measured(16, 201e-6)
        assert sizing.size == 12, "and not first when all eight are forgotten"

    def test_slow_items_travel_alone(self):
        sizing = ChunkSize(20e-6, workers=4, buffer=100, fixed=None)
        for _ in range(30):
            sizing.measured(sizing.size, sizing.size * 1e-3)
        assert sizing.size == 1

    def test_two_slow_items_among_fast_ones_are_enough(self):
        sizing = ChunkSize(20e-6, workers=4, buffer=1000, fixed=None)
        for _ in range(30):
            sizing.measured(sizing.size, sizing.size * 1e-7)
        assert sizing.size > 100
        sizing.measured(sizing.size, 0.5)
        assert sizing.size > 100, "it may have had to wait for its turn"
        sizing.measured(sizing.size, 0.5)
        assert sizing.size == 1
        for _ in range(6):
            sizing.measured(1, 1e-7)
        assert sizing.size == 1, "as long as they are two of the last"
        sizing.measured(1, 1e-7)
        assert sizing.size == 4

    def test_all_workers_have_something_to_do(self):
        sizing = ChunkSize(20e-6, workers=4, buffer=100, fixed=None)
        for _ in range(30):
            sizing.measured(sizing.size, sizing.size * 5e-6)
        assert sizing.size == 20

    def test_a_number_fixes_it(self):
        sizing = ChunkSize(20e-6, workers=4, buffer=100, fixed=7)
        for _ in range(30):
            sizing.measured(7, 1)
        assert sizing.size == 7
        assert ChunkSize(20e-6, workers=4, buffer=5, fixed=7).size == 5

    def test_what_is_left_of_a_chunk(self):
        chunk = Chunk(0, list(range(8)), 1.0)
        assert chunk.size == 8
        chunk.rest = [Chunk(3, [3], 1.0)]
        chunk.outcome.values = [0, 1, 2]
        assert chunk.size == 3


class Clock:
    """Seconds as the tuner sees them."""

    now = 0.0

    def __call__(self):
        return self.now


class TestTuner:
    def climb(self, monkeypatch, rate, *, workers="auto", buffer="auto", waiting=0.9, most=64, windows=60, cheap=False):
        """What is chosen, if items come at `rate(workers, buffer)` a second."""
        clock, chosen = Clock(), {}
        monkeypatch.setattr("squirrel_torch.execution.tuning.perf_counter", clock)
        values = {"max_workers": 2 if workers == "auto" else workers, "buffer": 8 if buffer == "auto" else buffer}
        tuner = Tuner.of(workers, buffer, chosen)
        tuner.connect(
            Knob("max_workers", values["max_workers"], most, lambda value: values.update(max_workers=value)),
            Knob("buffer", values["buffer"], MOST_BUFFER, lambda value: values.update(buffer=value)),
            cheap=lambda: cheap,
        )
        for _ in range(windows):
            clock.now += 0.3
            tuner.took(round(0.3 * rate(**values)), 0.3 * waiting)
        assert {name: values[name] for name in chosen} == chosen
        return values

    def test_it_climbs_as_long_as_it_helps(self, monkeypatch):
        found = self.climb(monkeypatch, lambda max_workers, buffer: 1000 * min(max_workers, 16))
        assert found["max_workers"] == 16

    def test_never_beyond_the_bound(self, monkeypatch):
        found = self.climb(monkeypatch, lambda max_workers, buffer: 1000 * max_workers * buffer, most=24)
        assert found == {"max_workers": 24, "buffer": MOST_BUFFER}

    def test_it_stays_where_nothing_helps(self, monkeypatch):
        found = self.climb(monkeypatch, lambda max_workers, buffer: 5000, windows=61)
        assert found == {"max_workers": 2, "buffer": 8}

    def test_only_what_is_asked_for(self, monkeypatch):
        found = self.climb(monkeypatch, lambda max_workers, buffer: 1000 * min(buffer, 64), workers=3)
        assert found == {"max_workers": 3, "buffer": 64}
        found = self.climb(monkeypatch, lambda max_workers, buffer: 1000 * max_workers, buffer=100, most=8)
        assert found == {"max_workers": 8, "buffer": 100}

    def test_cheap_items_need_no_more_workers(self, monkeypatch):
        found = self.climb(monkeypatch, lambda max_workers, buffer: 1000 * max_workers * buffer, cheap=True)
        assert found == {"max_workers": 2, "buffer": MOST_BUFFER}

    def test_nothing_is_changed_while_the_consumer_does_not_wait(self, monkeypatch):
        found = self.climb(monkeypatch, lambda max_workers, buffer: 1000 * max_workers, waiting=0.01)
        assert found == {"max_workers": 2, "buffer": 8}

    def test_nothing_to_find(self):
        assert Tuner.of(None, 100, {}) is None
