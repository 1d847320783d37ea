"""PyTorch-first data loading: one fluent chain that gives every sample to every rank, fast, exactly once.

from squirrel_torch import IterableSource

IterableSource(store.keys()).shuffle(1000).split_by_rank().async_map(store.get).map(augment)
    .split_by_worker().batched(64).to_torch_iterable()
"""

from squirrel_torch.errors import (
    ClosedRunError,
    CorruptDataError,
    DatasetExistsError,
    ExecutorLostError,
    ExhaustedSourceError,
    FingerprintMismatch,
    MissingDependencyError,
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
    TorchIterable,
)
from squirrel_torch.loader import Padded, StreamLoader
from squirrel_torch.metrics import MetricsConf
from squirrel_torch.sharding import Shard
from squirrel_torch.storage import FilesystemStore, MemoryStore, ShardStore, Store, Written

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
    "IterableSamplerSource",
    "IterableSource",
    "MemoryStore",
    "MetricsConf",
    "MissingDependencyError",
    "Multiplexer",
    "MultiplexingStrategy",
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
    "Store",
    "StoreError",
    "StreamLoader",
    "TooManyFailuresError",
    "TorchIterable",
    "WorkerDiedError",
    "Written",
]

__version__ = "0.1.0"
