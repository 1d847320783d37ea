"""Sizes, rates and their units."""

import collections

import numpy as np
import pytest
import torch

from squirrel_torch import metrics
from squirrel_torch.metrics import Meter, MetricsConf, metrics_iops, metrics_throughput, size_of


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


def test_a_meter_measures_from_report_to_report(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics, "perf_counter", lambda: now[0])
    meter = Meter(MetricsConf(throughput_unit="bytes"), "p ", window_size=2, every=1.0)
    assert not meter.add(b"12")
    now[0] += 0.5
    assert not meter.add(b"12"), "half a second is too early"
    now[0] += 1.5
    assert meter.add(b"12")
    assert meter.report() == {"p IOPS number/s": 1.5, "p throughput bytes/s": 3.0}
    assert not meter.pending
    now[0] += 2
    assert not meter.add(b"12"), "one item is less than a window"
    assert meter.pending
    assert meter.report() == {"p IOPS number/s": 0.5, "p throughput bytes/s": 1.0}


def test_a_clock_that_stands_still(monkeypatch):
    monkeypatch.setattr(metrics, "perf_counter", lambda: 1.0)
    meter = Meter(MetricsConf(), "", window_size=1, every=0)
    meter.add(1)
    assert meter.report()["IOPS number/s"] > 0
