"""Streams: sources, the stages behind them, and the run that pulls items through."""

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.foreign import register_all
from squirrel_torch.iterstream.multiplexer import Multiplexer, MultiplexingStrategy
from squirrel_torch.iterstream.report import StageReport
from squirrel_torch.iterstream.run import Run
from squirrel_torch.iterstream.source import FilePathGenerator, IterableSamplerSource, IterableSource
from squirrel_torch.iterstream.stage import Context, Following, Id, Split, Stage, Step
from squirrel_torch.iterstream.torch_composables import SplitByRank, SplitByWorker, TorchIterable

__all__ = [
    "Composable",
    "Context",
    "FilePathGenerator",
    "Following",
    "Id",
    "IterableSamplerSource",
    "IterableSource",
    "Multiplexer",
    "MultiplexingStrategy",
    "Run",
    "Split",
    "SplitByRank",
    "SplitByWorker",
    "Stage",
    "StageReport",
    "Step",
    "TorchIterable",
]

register_all()
