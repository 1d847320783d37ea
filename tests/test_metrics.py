"""Sizes, rates and their units."""

import collections
import threading

import numpy as np
import pytest
import torch

from squirrel_torch import metrics
from squirrel_torch.metrics import MetricsConf, Tally, Window, metrics_iops, metrics_throughput, rates, size_of


@pytest.mark.parametrize(
    ("item", "size"),
    [
        (np.zeros(250, np.float32), 1000),
        (np.float32(1), 4),
        (torch.zeros(250), 1000),
        (torch.zeros(3, dtype=torch.bfloat16), 6),
        (b"abc", 3),
        ("abc", 3),
        (None, 0),
        (1, 8),
        (True, 8),
        (1.5, 8),
        ([1, 2.0], 16),
        ((b"a", [b"bc"]), 3),
        ({"key": b"12345"}, 8),
        ({1, 2}, 16),
        (collections.OrderedDict(a=np.zeros(2)), 17),
        (memoryview(b"abcd"), 4),
    ],
    ids=repr,
)
def test_sizes(item, size):
    assert size_of(item) == size


def test_sizes_of_anything_else_are_found_without_pickling():
    class Unpicklable:
        def __reduce__(self):
            raise AssertionError("pickled")

    assert size_of(Unpicklable()) > 0
    assert size_of([lambda: None]) > 0


def test_units():
    assert metrics_iops(10, 4) == 2.5
    assert [metrics_throughput(2**30, 2, unit) for unit in ("bytes", "KB", "MB", "GB")] == [2.0**29, 2.0**19, 512.0, 0.5]
    with pytest.raises(ValueError, match="one of bytes, KB, MB, GB, got 'mb'"):
        MetricsConf(throughput_unit="mb")


def test_conf_as_a_dict():
    assert MetricsConf().asdict() == {"iops": True, "throughput": True, "throughput_unit": "MB"}


@pytest.fixture
def now(monkeypatch):
    """The time, to be set."""
    time = [100.0]
    monkeypatch.setattr(metrics, "perf_counter", lambda: time[0])
    return time


def passed(tally, meter, items):
    """Let items pass; the windows that ended with one of them."""
    return [tally.due() for item in items if meter.add(item)]


def test_a_tally_measures_from_window_to_window(now):
    tally = Tally(MetricsConf(), window_size=2, every=1.0)
    meter = tally.open()
    assert not meter.add(b"12")
    now[0] += 0.5
    assert not meter.add(b"12"), "half a second is too early"
    now[0] += 1.5
    assert passed(tally, meter, [b"12"]) == [Window(3, 6, 2.0)]
    now[0] += 2
    assert not meter.add(b"12"), "one item is less than a window"
    tally.close(meter)
    assert tally.rest() == Window(1, 2, 2.0)
    assert tally.rest() is None


def test_a_tally_of_items(now):
    tally = Tally(MetricsConf(throughput=False), window_size=50, every=1e9, every_items=3)
    meter = tally.open()
    counts = []
    for _ in range(10):
        now[0] += 0.25
        counts.append([window and (window.count, window.seconds) for window in passed(tally, meter, [b"12"])])
    assert counts == [[], [], [(3, 0.75)], [], [], [(3, 0.75)], [], [], [(3, 0.75)], []]
    assert tally.rest() == Window(1, 0, 0.25)


def test_a_tally_of_several_runs(now):
    tally = Tally(MetricsConf(), window_size=1, every=1.0)
    first = tally.open()
    now[0] += 1
    second = tally.open()
    assert passed(tally, second, [b"1"]) == [Window(1, 1, 1.0)], "the clock is that of the first"
    assert passed(tally, first, [b"1"] * 4) == []
    tally.close(first)
    assert passed(tally, second, [b"1"]) == []
    now[0] += 2
    assert passed(tally, second, [b"1"]) == [Window(6, 6, 2.0)], "those of the run that has ended are among them"
    tally.close(second)
    assert tally.rest() is None


@pytest.mark.parametrize("runs", [2, 3, 7])
def test_a_tally_of_items_of_several_runs(runs):
    tally = Tally(MetricsConf(throughput=False), window_size=1, every=0, every_items=100)
    meters = [tally.open() for _ in range(runs)]
    counts = [window.count for _ in range(1000) for meter in meters for window in passed(tally, meter, [1]) if window]
    assert all(100 <= count < 100 + runs for count in counts), counts
    assert sum(counts) + (rest.count if (rest := tally.rest()) else 0) == 1000 * runs


def test_windows_of_several_threads_add_up():
    tally = Tally(MetricsConf(), window_size=5, every=0)
    windows = []

    def run():
        meter = tally.open()
        for _ in range(20_000):
            if meter.add(b"123") and (window := tally.due()):
                windows.append(window)
        tally.close(meter)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    windows.append(tally.rest() or Window(0, 0, 0.0))
    assert sum(window.count for window in windows) == 80_000
    assert sum(window.size for window in windows) == 240_000


def test_rates_of_streams_that_flow_at_the_same_time():
    conf = MetricsConf(throughput_unit="bytes")
    windows = [Window(10, 30, 2.0), Window(1, 8, 4.0)]
    assert rates(conf, "p ", windows) == {"p IOPS number/s": 5.25, "p throughput bytes/s": 17.0}
    off = MetricsConf(iops=False, throughput=False)
    assert rates(off, "", windows) == {"IOPS number/s": 0, "throughput MB/s": 0}
    assert Window(1, 2, 3.0) + Window(10, 20, 30.0) == Window(11, 22, 33.0)


def test_a_clock_that_stands_still():
    assert rates(MetricsConf(), "", [Window(1, 1, 0.0)])["IOPS number/s"] > 0
