"""Spans of streams for OpenTelemetry."""

import os
from time import time_ns

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from squirrel_torch import IterableSource, StreamLoader, recording
from squirrel_torch.integrations.opentelemetry import telemetry
from squirrel_torch.observe import tracing
from tests.observe.trace_support import Trace


@pytest.fixture
def provider():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.exporter = exporter
    return provider


def told(provider, kind):
    spans = [span for span in provider.exporter.get_finished_spans() if span.attributes.get("squirrel_torch.kind") == kind]
    return sorted(spans, key=lambda span: span.start_time)


def test_steps_batches_and_chunks_are_spans_below_the_current_one(provider):
    chain = IterableSource(range(40)).async_map(abs, max_workers=2).batched(4)
    loader = StreamLoader(chain, num_workers=2, multiprocessing_context="fork")
    before = time_ns()
    with provider.get_tracer("job").start_as_current_span("job") as job, telemetry(provider) as above:
        assert trace.get_current_span() is above
        assert len(list(loader)) == 10
    after = time_ns()
    assert recording.recorder is None
    steps = told(provider, "step")
    assert [span.attributes["squirrel_torch.step"] for span in steps] == [*range(10)]
    assert [span.name for span in told(provider, "wait")] == [*["wait for batch"] * 10, "wait for end"]
    batches = told(provider, "batch")
    assert len(batches) == 10
    assert os.getpid() not in {span.attributes["process.pid"] for span in batches}
    assert {span.attributes["squirrel_torch.process"].rpartition(", ")[2] for span in batches} == {"worker 0", "worker 1"}
    assert sum(span.attributes["squirrel_torch.items"] for span in told(provider, "chunk")) == 40
    (stream,) = [span for span in provider.exporter.get_finished_spans() if span.name == "squirrel_torch.stream"]
    assert stream.parent.span_id == job.get_span_context().span_id
    for span in provider.exporter.get_finished_spans():
        kind = span.attributes.get("squirrel_torch.kind")
        assert kind in (None, "wait", "step", "batch", "chunk")
        if kind is not None:
            assert span.parent.span_id == stream.context.span_id
            assert before - 1_000_000 <= span.start_time <= span.end_time <= after + 1_000_000


def test_beside_a_trace_that_is_full(provider, tmp_path, caplog):
    loader = StreamLoader(IterableSource(range(2000)).batched(2))
    with telemetry(provider), tracing(tmp_path / "trace.json", most_bytes=1 << 14):
        assert len(list(loader)) == 1000
    assert len(told(provider, "step")) == 1000
    assert 0 < len(Trace(tmp_path / "trace.json").spans("step")) < 1000
    assert "trace ended here" in caplog.text


def test_an_error_ends_it(provider):
    def train():
        for batch in StreamLoader(IterableSource(range(20)).batched(2)):
            if 10 in batch:
                raise KeyError(batch)

    with pytest.raises(KeyError), telemetry(provider):
        train()
    assert recording.recorder is None
    assert len(told(provider, "wait")) == 6
    (stream,) = [span for span in provider.exporter.get_finished_spans() if span.name == "squirrel_torch.stream"]
    assert not stream.status.is_ok
