"""The stages, a family per file."""

from squirrel_torch.iterstream.stages.async_map import AsyncMap
from squirrel_torch.iterstream.stages.batch import Batched, Sliding
from squirrel_torch.iterstream.stages.loop import Loop
from squirrel_torch.iterstream.stages.map import DaskMap, FlatMap, Flatten, Map, NumbaMap
from squirrel_torch.iterstream.stages.pipe import Piped, ZipIndex
from squirrel_torch.iterstream.stages.select import Filter, Skip, Take
from squirrel_torch.iterstream.stages.shuffle import Shuffled
from squirrel_torch.iterstream.stages.split import AutoSplit, RankSplit, SplitStage, WorkerSplit
from squirrel_torch.iterstream.stages.watch import Monitored, Ranks, Tqdm

__all__ = [
    "AsyncMap",
    "AutoSplit",
    "Batched",
    "DaskMap",
    "Filter",
    "FlatMap",
    "Flatten",
    "Loop",
    "Map",
    "Monitored",
    "NumbaMap",
    "Piped",
    "RankSplit",
    "Ranks",
    "Shuffled",
    "Skip",
    "Sliding",
    "SplitStage",
    "Take",
    "Tqdm",
    "WorkerSplit",
    "ZipIndex",
]
