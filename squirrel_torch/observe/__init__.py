"""Seeing: what each stage of a stream does with its time, what limits it, and what to change."""

from squirrel_torch.observe.adding import since
from squirrel_torch.observe.figures import Calls, Figures, Histogram, Loading, StageFigures
from squirrel_torch.observe.merging import merge_traces
from squirrel_torch.observe.report import Report, Verdict
from squirrel_torch.observe.trace import Tracing, tracing

__all__ = [
    "Calls",
    "Figures",
    "Histogram",
    "Loading",
    "Report",
    "StageFigures",
    "Tracing",
    "Verdict",
    "merge_traces",
    "since",
    "tracing",
]
