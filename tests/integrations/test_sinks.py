"""Sinks of `monitor`: what they wrote is read back by the tools that it is for."""

import csv
import math
import pickle
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from torch.utils.data import DataLoader

from squirrel_torch import IterableSource, MissingDependencyError, PipelineError
from squirrel_torch.integrations.sinks import sink_named
from squirrel_torch.integrations.sinks.csv import CSVSink
from squirrel_torch.integrations.sinks.prometheus import PrometheusSink
from squirrel_torch.metrics import MetricsConf
from squirrel_torch.reporting import Sink
from tests.support import error_of, run_script, wandb_records

IOPS, THROUGHPUT = "IOPS number/s", "throughput MB/s"


def monitored(sink, **arguments):
    """50 items, a report for each 10 of them."""
    IterableSource([b"x" * 1024] * 50).monitor(sink, every_items=10, **arguments).join()


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestNames:
    @pytest.mark.parametrize("name", ["wand", "", "csv", "csv:", "prometheus", "wandb:x", "mlflow:", "tensorboard:", ":x"])
    def test_bad_ones_fail_when_the_chain_is_built(self, name):
        with pytest.raises(
            ValueError, match=r"'wandb', 'mlflow', 'tensorboard' or .* 'csv:FILE' and 'prometheus:FILE.prom'"
        ) as caught:
            IterableSource([1]).monitor(name)
        assert repr(name) in str(caught.value)

    @pytest.mark.parametrize(("name", "library"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("tensorboard", "tensorboard")])
    def test_a_library_that_is_missing(self, name, library, monkeypatch):
        for module in [one for one in sys.modules if one.startswith((library, "torch.utils.tensorboard"))]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.delitem(sys.modules, f"squirrel_torch.integrations.sinks.{name}", raising=False)
        with pytest.raises(MissingDependencyError, match=rf"{name} is not installed: pip install 'squirrel_torch\[{name}\]'"):
            IterableSource([1]).monitor(name)

    def test_repr_says_what_one_would_write(self, inside):
        assert repr(sink_named("csv:a.csv")) == "CSVSink('a.csv')"
        assert repr(sink_named("prometheus:a.prom")) == "PrometheusSink('a.prom')"
        assert repr(PrometheusSink("a.prom", labels={"a": "b"})) == "PrometheusSink('a.prom', labels={'a': 'b'})"

    def test_they_are_sinks_and_travel(self, inside):
        for name in ("csv:a.csv", "prometheus:a.prom", "tensorboard:tb"):
            sink = sink_named(name)
            assert isinstance(sink, Sink)
            sink({"a": 1.0})
            again = pickle.loads(pickle.dumps(sink))
            assert repr(again) == repr(sink)
            again({"b": 2.0})
        assert [row["metric"] for row in rows("a.csv")] == ["a", "b"]
        assert sorted(gauges("a.prom")) == ["squirrel_torch_a", "squirrel_torch_b"]
        assert sorted(scalars("tb")) == ["a", "b"]


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


class TestCSV:
    def test_read_back(self, inside):
        monitored("csv:figures.csv", prefix='(a, "b") ')
        read = rows("figures.csv")
        assert [row["metric"] for row in read] == [f'(a, "b") {name}' for _ in range(5) for name in (IOPS, THROUGHPUT)]
        assert [row["step"] for row in read] == [str(step) for step in range(5) for _ in range(2)]
        assert all(float(row["value"]) > 0 and float(row["time"]) > 1.6e9 for row in read)

    def test_a_file_is_continued(self, inside):
        CSVSink("a.csv")({"x": 1.0}, step=7)
        CSVSink("a.csv")({"y": math.inf})
        assert [(row["step"], row["metric"], row["value"]) for row in rows("a.csv")] == [("7", "x", "1.0"), ("0", "y", "inf")]
        assert Path("a.csv").read_text().count("time,step") == 1

    def test_another_file_is_left_as_it_is(self, inside):
        Path("a.csv").write_text("name,age\n")
        with pytest.raises(ValueError, match=r"'a.csv' has the columns \['name', 'age'\]"):
            IterableSource([1]).monitor("csv:a.csv")
        assert Path("a.csv").read_text() == "name,age\n"

    def test_a_folder_that_is_missing(self, inside):
        with pytest.raises(FileNotFoundError, match=r"the folder of 'no/a\.csv' does not exist"):
            IterableSource([1]).monitor("csv:no/a.csv")

    def test_the_path_is_that_of_when_it_was_named(self, inside, monkeypatch):
        sink = CSVSink("a.csv")
        (inside / "below").mkdir()
        monkeypatch.chdir(inside / "below")
        sink({"x": 1.0})
        assert (inside / "a.csv").exists()


def gauges(path):
    """The samples of each metric, as Prometheus would read them."""
    families = list(text_string_to_metric_families(Path(path).read_text()))
    assert all(family.type == "gauge" for family in families)
    return {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in families}


class TestPrometheus:
    def test_read_back(self, inside):
        monitored("prometheus:a.prom")
        read = gauges("a.prom")
        assert sorted(read) == ["squirrel_torch_iops_number_per_s", "squirrel_torch_throughput_mb_per_s"]
        assert all(labels == {} and value > 0 for ((labels, value),) in read.values())
        assert [path.name for path in inside.iterdir()] == ["a.prom"], "nothing is left beside it"

    def test_labels_and_texts_are_escaped(self, inside):
        labels = {"path": 'C:\\data\n"x"', "rank": "3"}
        PrometheusSink("a.prom", labels=labels)({'back\\slash\n"quoted"': 1.5})
        (family,) = text_string_to_metric_families(Path("a.prom").read_text())
        assert family.documentation == 'back\\slash\n"quoted"'
        assert [(sample.labels, sample.value) for sample in family.samples] == [(labels, 1.5)]

    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, 3, -0.5])
    def test_numbers(self, value, inside):
        PrometheusSink("a.prom")({"x": value})
        ((_, read),) = gauges("a.prom")["squirrel_torch_x"]
        assert read == value or (math.isnan(read) and math.isnan(value))

    def test_sinks_of_one_path_share_the_file(self, inside):
        first, second = PrometheusSink("a.prom", labels={"rank": "0"}), PrometheusSink(inside / "a.prom", labels={"rank": "1"})
        first({"x": 1.0})
        second({"x": 2.0, "y": 3.0})
        first({"x": 4.0})
        assert gauges("a.prom") == {
            "squirrel_torch_x": [({"rank": "0"}, 4.0), ({"rank": "1"}, 2.0)],
            "squirrel_torch_y": [({"rank": "1"}, 3.0)],
        }

    def test_names_that_would_be_one_are_refused(self, inside):
        sink = PrometheusSink("a.prom")
        with pytest.raises(ValueError, match=r"the metrics '\(a\) x' and 'a x' would both be named 'squirrel_torch_a_x' here"):
            sink({"(a) x": 1.0, "a x": 2.0})
        with pytest.raises(ValueError, match=r"nothing is left of the metric name '\(\)'"):
            sink({"()": 1.0})

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"path": "a.txt"}, ValueError, "end with '.prom', got 'a.txt'"),
            ({"path": "no/a.prom"}, FileNotFoundError, "the folder of 'no/a.prom' does not exist"),
            ({"path": "a.prom", "labels": {"a-b": "c"}}, ValueError, "got 'a-b'"),
            ({"path": "a.prom", "labels": {"__a": "c"}}, ValueError, "got '__a'"),
        ],
    )
    def test_wrong_arguments(self, arguments, error, message, inside):
        with pytest.raises(error, match=message):
            PrometheusSink(**arguments)

    def test_a_reader_never_sees_a_part(self, inside):
        sink = PrometheusSink("a.prom")
        metrics = {f"metric {number}": float(number) for number in range(200)}
        sink(metrics)
        done = threading.Event()

        def write():
            while not done.is_set():
                sink(metrics)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert {len(gauges("a.prom")) for _ in range(20)} == {200}
        finally:
            done.set()
            writer.join()


def scalars(folder):
    """The (step, value) pairs of each tag, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


class TestTensorBoard:
    def test_read_back(self, inside):
        monitored("tensorboard:tb", prefix="(raw) ")
        read = scalars("tb")
        assert sorted(read) == [f"(raw) {IOPS}", f"(raw) {THROUGHPUT}"]
        for points in read.values():
            assert [step for step, _ in points] == [0, 1, 2, 3, 4]
            assert all(value > 0 for _, value in points)

    def test_each_call_is_there_at_once(self, inside):
        sink = sink_named("tensorboard:tb")
        sink({"x": 1.0}, step=10)
        assert scalars("tb") == {"x": [(10, 1.0)]}
        sink({"x": 2.0}, step=20)
        assert scalars("tb") == {"x": [(10, 1.0), (20, 2.0)]}

    def test_sinks_of_one_folder_share_a_file(self, inside):
        first, second = sink_named("tensorboard:tb"), sink_named(f"tensorboard:{inside}/tb")
        first({"x": 1.0})
        second({"y": 2.0})
        assert len(list((inside / "tb").iterdir())) == 1
        first.close()
        second({"y": 3.0})
        assert len(list((inside / "tb").iterdir())) == 1
        second.close()
        assert not [thread for thread in threading.enumerate() if "Writer" in type(thread).__name__]
        assert scalars("tb") == {"x": [(0, 1.0)], "y": [(0, 2.0), (1, 3.0)]}

    def test_without_a_folder_it_is_that_of_torch(self, inside):
        monitored("tensorboard")
        (folder,) = (inside / "runs").iterdir()
        assert len(scalars(folder)[IOPS]) == 5


@pytest.mark.slow
def test_mlflow(tmp_path):
    code = """
import mlflow
from squirrel_torch import IterableSource
from squirrel_torch.integrations.sinks.mlflow import MLflowSink

mlflow.set_tracking_uri("sqlite:///metrics.db")
source = IterableSource([b"x" * 1024] * 50)
with mlflow.start_run() as run:
    source.monitor("mlflow", prefix="(raw) ", every_items=10).monitor("mlflow", prefix="../up/ ", every_items=25).join()
    MLflowSink()({"x": 1}, step=7)
with mlflow.start_run() as other:
    MLflowSink(run.info.run_id)({"x": 2}, step=8)
client = mlflow.MlflowClient()
for name in sorted(client.get_run(run.info.run_id).data.metrics):
    history = client.get_metric_history(run.info.run_id, name)
    print(name, [point.step for point in history], min(point.value for point in history) > 0)
assert not client.get_run(other.info.run_id).data.metrics
try:
    MLflowSink()({"(a) x": 1, "a x": 2})
except ValueError as error:
    print(error)
"""
    assert run_script(code, tmp_path).splitlines() == [
        "raw IOPS number/s [0, 1, 2, 3, 4] True",
        "raw throughput MB/s [0, 1, 2, 3, 4] True",
        "up/ IOPS number/s [0, 1] True",
        "up/ throughput MB/s [0, 1] True",
        "x [7, 8] True",
        "the metrics '(a) x' and 'a x' would both be named 'a x' here, where not all characters are allowed: give one of the "
        "monitors another prefix",
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb(tmp_path):
    code = """
import wandb
from squirrel_torch import IterableSource
from squirrel_torch.integrations.sinks.wandb import WandbSink

source = IterableSource([b"x" * 1024] * 50)
try:
    source.monitor("wandb").join()
except Exception as error:
    print(type(error).__name__, str(error).splitlines()[0])
with wandb.init() as run:
    source.monitor("wandb", prefix="(raw) ", every_items=10).join()
    source.monitor(WandbSink(run, step_metric="clock"), prefix="timed ", every_items=25).join()
    WandbSink(step_metric="clock")({"timed x": 5.0}, step=100)
    print(repr(WandbSink(step_metric="clock")))
"""
    out = run_script(code, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(tmp_path))
    assert out.splitlines() == [
        "PipelineError wandb has no active run in this process: call wandb.init() before the stream begins, or pass "
        "WandbSink(run=...) to monitor",
        "WandbSink(step_metric='clock')",
    ]
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(path))
    history = [
        {("/".join(item.nested_key) or item.key): float(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    logged = [{name: value for name, value in line.items() if not name.startswith("_")} for line in history]
    assert [sorted(line) for line in logged[:5]] == [[f"(raw) {IOPS}", f"(raw) {THROUGHPUT}"]] * 5
    assert all(value > 0 for line in logged[:5] for value in line.values())
    assert [line["clock"] for line in logged[5:]] == [0, 1, 100]
    assert logged[-1]["timed x"] == 5
    defined = {
        record.metric.name: record.metric.step_metric for record in records if record.WhichOneof("record_type") == "metric"
    }
    assert {name: step for name, step in defined.items() if step} == dict.fromkeys(
        [f"timed {IOPS}", f"timed {THROUGHPUT}", "timed x"], "clock"
    )


class TestMonitor:
    def test_any_sink_may_be_called_by_others(self):
        class Listed:
            one_process = True

            def __init__(self):
                self.calls = []

            def __call__(self, metrics, step=None):
                self.calls.append((sorted(metrics), step))

        sink = Listed()
        monitored(sink, metrics_conf=MetricsConf(throughput_unit="KB"), step=3)
        assert sink.calls == [([IOPS, "throughput KB/s"], 3)] * 5

    def test_ranks(self, inside, monkeypatch):
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "3")
            monitored("csv:default.csv", prefix="p ")
            monitored("csv:first.csv", ranks="first")
            monitored("csv:each.csv", prefix="p ", ranks="each")
        assert {row["metric"] for row in rows("default.csv")} == {f"p {IOPS}", f"p {THROUGHPUT}"}
        assert len(rows("default.csv")) == len(rows("first.csv")) == 10
        assert [row["metric"] for row in rows("each.csv")] == [
            f"rank {rank}/p {name}" for rank in range(3) for _ in range(5) for name in (IOPS, THROUGHPUT)
        ]

    def test_callbacks_are_called_on_each_rank(self, monkeypatch):
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "3")
        plain, first, each = [], [], []
        monitored(plain.append)
        monitored(first.append, ranks="first")
        monitored(each.append, ranks="each")
        assert [len(plain), len(first), len(each)] == [5, 0, 5]
        assert list(plain[0]) == [IOPS, THROUGHPUT]
        assert list(each[0]) == [f"rank 2/{IOPS}", f"rank 2/{THROUGHPUT}"]

    def test_wrong_ranks(self):
        with pytest.raises(ValueError, match="ranks must be 'first', 'each' or None, got 'all'"):
            IterableSource([1]).monitor(print, ranks="all")

    @pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_workers_of_torchs_loader_refuse_a_sink(self, method, inside):
        chain = IterableSource(range(4)).monitor("csv:a.csv")
        error = error_of(DataLoader(chain.to_torch_iterable(), num_workers=1, multiprocessing_context=method))
        assert type(error) is PipelineError
        assert "can't call CSVSink('a.csv') in worker 0 of a DataLoader" in str(error)
        assert "StreamLoader(chain, num_workers=...)" in str(error)
        assert not Path("a.csv").exists()
        assert len(list(DataLoader(chain.to_torch_iterable()))) == 4
        assert len(rows("a.csv")) == 2
