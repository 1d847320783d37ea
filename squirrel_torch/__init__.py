"""PyTorch-first data loading: one fluent chain that gives every sample to every rank, fast, exactly once.

from squirrel_torch import IterableSource

IterableSource(store.keys()).shuffle(1000).split_by_rank().async_map(store.get).map(augment)
    .split_by_worker().batched(64).to_torch_iterable()
"""

from typing import TYPE_CHECKING, Any

from squirrel_torch.errors import (
    ClosedRunError,
    CorruptDataError,
    DatasetExistsError,
    ExecutorLostError,
    ExhaustedSourceError,
    FingerprintMismatch,
    MissingDependencyError,
    NotPlannedError,
    PipelineError,
    PyTorchSplittingException,
    ReplayMismatch,
    SampleEncodingError,
    SampleNotFoundError,
    SchemaError,
    ShardingError,
    SquirrelTorchError,
    StageTimeout,
    StateError,
    StoreError,
    TooManyFailuresError,
    WorkerDiedError,
)
from squirrel_torch.iterstream import (
    Composable,
    Context,
    FilePathGenerator,
    Following,
    Id,
    IterableSamplerSource,
    IterableSource,
    Multiplexer,
    MultiplexingStrategy,
    Run,
    Split,
    SplitByRank,
    SplitByWorker,
    Stage,
    StageReport,
    Step,
    TorchIterable,
)
from squirrel_torch.loader import Origin, Padded, StreamLoader, unpadded
from squirrel_torch.metrics import MetricsConf
from squirrel_torch.sharding import Shard
from squirrel_torch.storage import FilesystemStore, MemoryStore, ShardStore, Store, Written

if TYPE_CHECKING:
    from squirrel_torch.integrations.lightning import StreamDataModule as StreamDataModule

__all__ = [
    "ClosedRunError",
    "Composable",
    "Context",
    "CorruptDataError",
    "DatasetExistsError",
    "ExecutorLostError",
    "ExhaustedSourceError",
    "FilePathGenerator",
    "FilesystemStore",
    "FingerprintMismatch",
    "Following",
    "Id",
    "IterableSamplerSource",
    "IterableSource",
    "MemoryStore",
    "MetricsConf",
    "MissingDependencyError",
    "Multiplexer",
    "MultiplexingStrategy",
    "NotPlannedError",
    "Origin",
    "Padded",
    "PipelineError",
    "PyTorchSplittingException",
    "ReplayMismatch",
    "Run",
    "SampleEncodingError",
    "SampleNotFoundError",
    "SchemaError",
    "Shard",
    "ShardStore",
    "ShardingError",
    "Split",
    "SplitByRank",
    "SplitByWorker",
    "SquirrelTorchError",
    "Stage",
    "StageReport",
    "StageTimeout",
    "StateError",
    "Step",
    "Store",
    "StoreError",
    "StreamLoader",
    "TooManyFailuresError",
    "TorchIterable",
    "WorkerDiedError",
    "Written",
    "unpadded",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # What needs an optional package is imported when it is asked for.
    if name == "StreamDataModule":
        from squirrel_torch.integrations.lightning import StreamDataModule

        return StreamDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
