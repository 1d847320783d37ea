"""What `pipeline.profile` counts and times."""

import time
from time import thread_time

import numpy as np
import pytest

from squirrel_torch import IterableSource, Multiplexer, MultiplexingStrategy
from squirrel_torch.observe import Figures


def busy(milliseconds):
    """Computes in Python for so long."""

    def compute(item):
        end = thread_time() + milliseconds / 1e3
        while thread_time() < end:
            pass
        return item

    return compute


def wait(item):
    time.sleep(2e-3)
    return item


def stages_of(report):
    return {stage.place: stage for stage in report.figures.stages if not stage.branch}


def odd(number):
    return number % 2


def test_each_item_is_counted_at_each_place():
    report = IterableSource(range(1000)).filter(odd).map(str).batched(7, drop_last_if_not_full=False).profile()
    assert [stage.items for stage in report.figures.stages] == [1000, 500, 500, 72]
    assert all(stage.exact for stage in report.figures.stages)
    assert [stage.name for stage in report.figures.stages[1:3]] == ["filter(odd)", "map(str)"]
    assert all("test_profile.py" in stage.site for stage in report.figures.stages)


def test_it_ends_after_so_many_items():
    report = IterableSource(range(1000)).map(str).batched(10).profile(3)
    assert [stage.items for stage in report.figures.stages] == [30, 30, 3]


def test_it_ends_after_so_many_seconds():
    began = time.monotonic()
    report = IterableSource(range(100_000)).map(wait).profile(seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    assert 0 < report.figures.items < 2500


def test_each_stage_has_its_own_time():
    report = IterableSource(range(100)).map(busy(2)).map(wait).map(busy(1)).batched(10).profile()
    stages = stages_of(report)
    assert stages[1].cpu == pytest.approx(0.2, rel=0.2)
    assert stages[3].cpu == pytest.approx(0.1, rel=0.2)
    # Work between two waits is not taken for a part of them.
    assert stages[2].busy >= 0.2
    assert stages[2].cpu < 0.05
    assert stages[4].busy < 0.02
    assert report.figures.seconds >= 0.5


def test_how_large_items_are():
    chain = IterableSource(range(200)).map(lambda _: np.zeros(100, np.float32)).batched(5)
    stages = stages_of(chain.profile())
    assert [stages[place].size for place in range(3)] == [8, 400, 2000]


def test_calls_that_take_long_now_and_then():
    def slow_at_times(item):
        time.sleep(0.05 if item % 50 == 49 else 0.001)

    times = stages_of(IterableSource(range(100)).map(slow_at_times).profile())[1].times
    assert 0.0009 < times.quantile(0.5) < 0.01
    assert times.quantile(0.99) > 0.04


def test_items_with_generators_of_their_own_are_counted_once():
    def jitter(x, rng):
        return x + rng.random()

    report = IterableSource(range(40)).filter(lambda x: x % 2).map(jitter).map(float).batched(5).profile()
    assert [stage.items for stage in report.figures.stages] == [40, 20, 20, 20, 4]


def test_calls_elsewhere_are_counted_where_they_run():
    stage = stages_of(IterableSource(range(200)).async_map(wait, max_workers=3, retries=1).profile())[1]
    assert (stage.calls.place, stage.calls.workers, stage.calls.count) == ("thread", 3, 200)
    assert stage.calls.wall >= 0.4
    assert stage.calls.times.quantile(0.5) >= 0.0018
    assert stage.busy < stage.upstream


def test_branches_of_a_mix():
    branches = [IterableSource(range(30)).map(busy(1)), IterableSource(range(30)).map(busy(3))]
    mixed = Multiplexer(branches, MultiplexingStrategy.ROUND_ROBIN)
    figures = mixed.map(str).profile().figures
    assert [(stage.place, stage.items) for stage in figures.stages if not stage.branch] == [(0, 60), (1, 60)]
    maps = [stage for stage in figures.stages if stage.branch and stage.place == 1]
    assert [stage.items for stage in maps] == [30, 30]
    assert sorted(round(stage.cpu, 2) for stage in maps) == pytest.approx([0.03, 0.09], abs=0.02)


def test_an_epoch_is_not_taken():
    chain = IterableSource(range(100)).shuffle(100, seed=3)
    chain.profile(10)
    assert chain.collect() == IterableSource(range(100)).shuffle(100, seed=3).collect()


def test_errors_come_out_as_they_do():
    def fails(item):
        raise KeyError(item)

    with pytest.raises(KeyError) as caught:
        IterableSource([1]).map(fails).profile()
    assert "fails" in caught.value.__notes__[0]


@pytest.mark.parametrize(("arguments", "message"), [({"n": 0}, "n"), ({"seconds": 0}, "seconds")])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        IterableSource([1]).profile(**arguments)


def test_a_report_is_text_json_and_pictures(tmp_path):
    report = IterableSource(range(100)).map(wait).profile(50)
    assert "map(wait)" in str(report)
    assert "latency" in report.to_json()
    assert Figures.from_dict(report.figures.to_dict()) == report.figures
    for name in ("report.html", "report.svg", "report.json", "report.txt"):
        assert "map(wait)" in report.save(tmp_path / name).read_text()
