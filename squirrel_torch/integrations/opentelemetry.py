"""Spans of a stream for OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final

from squirrel_torch import recording
from squirrel_torch.errors import MissingDependencyError
from squirrel_torch.observe.spans import Span, Spans
from squirrel_torch.observe.trace import process_name
from squirrel_torch.observe.trace_file import unix_of_clock
from squirrel_torch.recording import Recorder
from squirrel_torch.sharding import rank_shard

try:
    from opentelemetry import context, trace
except ImportError as error:
    raise MissingDependencyError("opentelemetry-api", "opentelemetry") from error

__all__ = ["telemetry"]

_KINDS: Final = frozenset(("wait", "step", "batch", "chunk"))


@contextmanager
def telemetry(tracer_provider: trace.TracerProvider | None = None) -> Iterator[trace.Span]:
    """Make spans of what streams in this process, and in the workers of its loaders, while the block lasts.

    They are those that `squirrel_torch.observe.tracing` writes, which may be on at the same time: a wait and a step for each
    batch of a loader, the batches that its workers make, and the chunks of an `async_map`. All are below one span, which is
    below the one that is current when the block is entered. They are handed over when they have ended, many at a time, by the
    thread that has them: it takes about 30 microseconds each. A sampler of the provider is asked for each.

    Args:
        tracer_provider: Who makes them; None: the global one.

    Yields:
        The span above them. It is not made the current one.

    Raises:
        MissingDependencyError: When this module is imported and `opentelemetry-api` is not installed.
    """
    tracer = trace.get_tracer("squirrel_torch", tracer_provider=tracer_provider)
    with tracer.start_as_current_span("squirrel_torch.stream") as span:
        above = context.get_current()
        output = _Spans(tracer, above, rank_shard().index)
        recording.attach(output, process_name(rank_shard()))
        try:
            yield span
        finally:
            recording.detach(output)


class _Spans:
    """The output of a recording."""

    def __init__(self, tracer: trace.Tracer, above: context.Context, rank: int) -> None:
        self._tracer = tracer
        self._above = above
        self._rank = rank
        self._base = unix_of_clock()
        self._began = perf_counter()
        self._processes: dict[int, Spans] = {}

    def write(self, recorder: Recorder, pid: int, count: int, events: bytes) -> bool:
        """See `recording.Output`."""
        spans = self._processes.setdefault(pid, Spans(self._began))
        for span in spans.of(events):
            if span.kind in _KINDS:
                self._give(recorder, pid, span)
        return True

    def _give(self, recorder: Recorder, pid: int, span: Span) -> None:
        attributes = {
            "process.pid": pid,
            "squirrel_torch.rank": self._rank,
            "squirrel_torch.kind": span.kind,
            "squirrel_torch.process": recorder.processes.get(pid, ""),
            "squirrel_torch.lane": span.lane,
            **{f"squirrel_torch.{key.replace(' ', '_')}": value for key, value in span.args.items()},
        }
        given = self._tracer.start_span(span.name, self._above, attributes=attributes, start_time=self._base + span.begin)
        given.end(self._base + span.end)
