"""Monitors under a StreamLoader: reports come in the process that trains, with the figures of all workers."""

import os
import threading
import time

import pytest

from squirrel_torch import IterableSource, MetricsConf, StreamLoader
from squirrel_torch.loader.reports import Reports
from squirrel_torch.metrics import Window
from tests.support import error_of, run_script

IOPS, BYTES = "IOPS number/s", "throughput bytes/s"
IN_BYTES = MetricsConf(throughput_unit="bytes")

CHAINS = {
    "planned": lambda: IterableSource(range(240)).map(lambda x: bytes(10)),
    "streamed": lambda: IterableSource(range(300)).filter(lambda x: x % 5).map(lambda x: bytes(10)),
    "dealt": lambda: IterableSource(range(300)).filter(lambda x: x % 5).take(240).map(lambda x: bytes(10)),
    "generator": lambda: IterableSource(lambda: iter(range(240))).map(lambda x: bytes(10)),
}


def passed_of(chain, workers, batch=4, **arguments):
    """The reports of a pass: (items per second, bytes per second, process, thread) of each, and all items."""
    reports = []

    def callback(report):
        reports.append((report[IOPS], report[BYTES], os.getpid(), threading.get_ident()))

    pipeline = chain().monitor(callback, metrics_conf=IN_BYTES, **arguments).batched(batch, drop_last_if_not_full=False)
    items = [item for one in StreamLoader(pipeline, num_workers=workers) for item in one]
    return reports, items


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("name", CHAINS)
def test_a_pass_reports_at_least_once_and_here(name, workers):
    reports, items = passed_of(CHAINS[name], workers)
    assert len(items) == 240
    assert len(reports) == 1
    ((iops, throughput, process, thread),) = reports
    assert (process, thread) == (os.getpid(), threading.get_ident())
    assert iops > 0
    assert throughput == pytest.approx(10 * iops, rel=1e-3)


class Counting(StreamLoader):
    """Counts what the workers say that has passed."""

    counted = 0

    def _reports(self, hands):
        reports = super()._reports(hands)
        take = hands.handlers["monitor"]

        def counting(worker, payload):
            self.counted += payload.get("window", [0])[0]
            take(worker, payload)

        hands.handlers["monitor"] = counting
        return reports


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("arguments", [{"every": 60}, {"every": 0}, {"every_items": 7}], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_all_that_has_passed_is_told(name, arguments, workers):
    chain = CHAINS[name]().monitor(lambda report: None, **arguments).batched(7, drop_last_if_not_full=False)
    loader = Counting(chain, num_workers=workers)
    assert sum(map(len, loader)) == 240
    assert loader.counted == 240


class TestRates:
    """A source that can't give more than a known number of items in a second, on a clock of its own in each worker."""

    @staticmethod
    def paced(rate):
        def pace(item):
            now = time.perf_counter()
            if not hasattr(pace, "due"):
                pace.due = now
            pace.due += 1 / rate
            while time.perf_counter() < pace.due:
                pass
            return item

        return pace

    @classmethod
    def worst(cls, workers, arguments):
        """How far the reports of a pass are off, at most, as a share of the rate that the consumer saw."""
        reports, times, count, each = [], [], 1000, 400
        chain = IterableSource(range(count)).map(cls.paced(each)).monitor(reports.append, **arguments).batched(10)
        for _ in StreamLoader(chain, num_workers=workers, prefetch_factor=1 if workers else None):
            times.append(time.perf_counter())
        # Without the time that workers need to start: from the first batch of each on.
        lanes = max(1, workers)
        rate = 10 * (len(times) - lanes) / (times[-1] - times[lanes - 1])
        assert len(reports) >= {60: 1, 0.2: 3}.get(arguments.get("every"), 5)
        return max(abs(report[IOPS] / rate - 1) for report in reports[:-1] or reports)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("workers", "arguments"),
        [(0, {"every": 60}), (0, {"every_items": 200}), (1, {"every": 0.2}), (2, {"every": 60}), (2, {"every_items": 200})],
        ids=str,
    )
    def test_against_the_clock_of_the_consumer(self, workers, arguments):
        # A machine that stands still for a moment does so in one window; the source is right only while it does not.
        assert any(self.worst(workers, arguments) < 0.03 for _ in range(5))


class TestSeveralWorkers:
    """What is told, given what the workers say and when."""

    @staticmethod
    def reports(workers, **arguments):
        told = []
        chain = IterableSource([1]).monitor(lambda report: told.append(report[IOPS]), **arguments)
        monitor = chain._stage
        reports = Reports([monitor], workers)

        def say(worker, count, seconds):
            reports.take(worker, {"monitor": monitor.token, "window": [count, 0, seconds]})

        return reports, say, told

    def test_rates_are_added_once_all_have_told(self):
        reports, say, told = self.reports(3)
        say(0, 100, 1.0)
        say(1, 20, 2.0)
        assert told == []
        say(2, 6, 3.0)
        assert told == [112.0]
        reports.end()
        assert told == [112.0]

    def test_one_that_is_slow_is_not_waited_for(self):
        reports, say, told = self.reports(2)
        say(0, 100, 1.0)
        say(0, 300, 1.0)
        assert told == [200.0], "the other has told nothing yet: nothing has passed there"
        say(1, 10, 1.0)
        say(0, 100, 1.0)
        assert told == [200.0, 110.0]
        say(0, 50, 1.0)
        say(0, 50, 1.0)
        assert told == [200.0, 110.0, 60.0], "its last rate is the best that is known"
        reports.end()
        assert told == [200.0, 110.0, 60.0]

    def test_one_that_has_ended_is_not_waited_for(self):
        reports, say, told = self.reports(2, every=0)
        say(0, 100, 1.0)
        say(1, 10, 1.0)
        say(0, 30, 1.0)
        reports.take(0, {"ended": True})
        assert told == [110.0]
        say(1, 20, 1.0)
        assert told == [110.0, 50.0]
        say(1, 20, 1.0)
        assert told == [110.0, 50.0, 20.0], "it has long ended"
        say(1, 7, 1.0)
        reports.take(1, {"ended": True})
        reports.end()
        assert told == [110.0, 50.0, 20.0, 7.0]

    def test_the_ends_of_workers_make_one_report(self):
        reports, say, told = self.reports(2, every=100)
        say(0, 100, 1.0)
        reports.take(0, {"ended": True})
        say(1, 100, 1.0)
        reports.take(1, {"ended": True})
        reports.end()
        assert told == [200.0]
        say(1, 100, 0.5)
        reports.end()
        assert told == [200.0, 300.0], "the other had ended just before"

    def test_items_are_those_of_all(self):
        _, say, told = self.reports(2, every_items=10)
        for worker in (0, 0, 1, 1, 1):
            say(worker, 5, 1.0)
        assert told == [5.0, 10.0]

    def test_windows_add_up(self):
        assert Window(1, 2, 3.0) + Window(4, 5, 6.0) == Window(5, 7, 9.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_reports_come_while_the_pass_goes_on(workers):
    log = []
    chain = IterableSource(range(120)).monitor(lambda report: log.append("report"), every_items=20).batched(10)
    for _ in StreamLoader(chain, num_workers=workers, prefetch_factor=1 if workers else None):
        log.append("batch")
    assert log.count("report") == 6
    assert log.index("report") < 6


@pytest.mark.parametrize("workers", [0, 2])
def test_each_pass_of_workers_that_are_kept(workers):
    reports = []
    chain = (
        IterableSource(range(40)).monitor(reports.append, prefix="a ").map(str).monitor(reports.append, prefix="b ").batched(4)
    )
    loader = StreamLoader(chain, num_workers=workers, persistent_workers=workers > 0)
    for number in range(1, 4):
        assert len(list(loader)) == 10
        assert sorted(name for report in reports for name in report if IOPS in name) == sorted(
            [f"a {IOPS}", f"b {IOPS}"] * number
        )
    loader.close()


def test_a_pass_that_is_left_reports_what_has_come():
    reports = []
    chain = IterableSource(range(1000)).monitor(reports.append, every_items=10).batched(10)
    loader = StreamLoader(chain, num_workers=1, persistent_workers=True)
    iterator = iter(loader)
    next(iterator)
    before = len(reports)
    assert before >= 1
    iterator.close()
    assert len(reports) == before, "all that has come was told"
    assert len(list(loader)) == 100
    loader.close()


def test_what_is_let_go_of_without_a_word():
    told = []
    chain = IterableSource(range(1000)).monitor(told.append, every=0, window_size=30).batched(10)
    loader = StreamLoader(chain, num_workers=2, prefetch_factor=1)
    for number, _ in enumerate(loader):
        assert told == []
        if number == 4:  # the third batch of one worker, with 30 items; the other was heard of 20
            break
    assert len(told) == 1


def test_an_error_is_not_reported_as_an_end():
    reports = []

    def fails(x):
        if x == 30:
            raise ZeroDivisionError
        return x

    for workers in (0, 2):
        chain = IterableSource(range(40)).map(fails).monitor(reports.append).batched(4)
        with pytest.raises(ZeroDivisionError):
            list(StreamLoader(chain, num_workers=workers))
    assert reports == []


def test_an_error_of_one_worker_is_not_the_end_of_another():
    reports = []
    chain = IterableSource([1] * 4 + [0] * 4 + [1] * 32).map(lambda x: 1 // x).monitor(reports.append, every=0, window_size=4)
    loader = StreamLoader(chain.batched(4), num_workers=2, prefetch_factor=1)
    assert type(error_of(loader)) is ZeroDivisionError
    assert reports == [], "what the first has told of waits for the second"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_callback_that_raises_ends_the_pass_and_is_named(workers):
    def callback(report):
        raise KeyError("no such run")

    chain = IterableSource(range(400)).monitor(callback, every_items=10).batched(4)
    iterator = iter(StreamLoader(chain, num_workers=workers))
    with pytest.raises(KeyError, match="no such run") as caught:
        list(iterator)
    assert "Monitored(callback=" in "\n".join(caught.value.__notes__)
    with pytest.raises(KeyError, match="no such run"):
        next(iterator)


def test_the_streams_of_a_mix_and_what_stands_behind():
    from squirrel_torch import IterableSamplerSource

    names = []

    def callback(report):
        names.extend(name for name in report if IOPS in name)

    branches = [IterableSource(range(50)).monitor(callback), IterableSource(range(50)).map(str).monitor(callback)]
    chain = IterableSamplerSource(branches).monitor(callback, "all ").batched(5)
    for workers in (0, 2):
        list(StreamLoader(chain, num_workers=workers))
        assert sorted(names) == [IOPS, f"all {IOPS}", f"monitor 2 {IOPS}"]
        names.clear()


def test_two_loaders_over_one_chain():
    reports = []
    chain = IterableSource(range(100)).monitor(reports.append).batched(10)
    first, second = StreamLoader(chain), StreamLoader(chain)
    for one, other in zip(first, second, strict=True):
        assert one == other
    assert len(reports) == 2
    assert len(chain.collect()) == 10
    assert len(reports) == 3


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_sink_is_called_here_alone(method, tmp_path):
    path = tmp_path / "figures.csv"
    chain = IterableSource(range(400)).monitor(f"csv:{path}", every_items=100).batched(10)
    loader = StreamLoader(chain, num_workers=2, multiprocessing_context=method)
    assert len(list(loader)) == 40
    lines = path.read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1::2]] == ["0", "1", "2", "3"]


def test_a_monitor_behind_threads_and_several_streams():
    counts = []

    def callback(report):
        counts.append(report[BYTES])

    chain = IterableSource(range(600)).filter(lambda x: x % 2).map(lambda x: bytes(10))
    chain = chain.monitor(callback, metrics_conf=IN_BYTES).async_map(len, max_workers=2).batched(5)
    for workers in (0, 2):
        assert len([x for batch in StreamLoader(chain, num_workers=workers) for x in batch]) == 300
        assert len(counts) == 1
        assert counts.pop() > 0


@pytest.mark.slow
def test_wandb_with_forked_workers(tmp_path):
    code = """
import os
import wandb
from squirrel_torch import IterableSource, StreamLoader

with wandb.init() as run:
    chain = IterableSource(range(400)).monitor("wandb", every_items=100).map(str)
    chain = chain.monitor(wandb.log, "plain ", every_items=100).batched(10)
    for _ in range(2):
        assert len(list(StreamLoader(chain, num_workers=2, multiprocessing_context="fork"))) == 40
    print(run.step, sorted(name for name in run.summary.keys() if not name.startswith("_")))
"""
    out = run_script(code, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(tmp_path))
    metrics = ("IOPS number/s", "throughput MB/s")
    assert out.strip() == f"16 {sorted([*metrics, *(f'plain {name}' for name in metrics)])!r}"
