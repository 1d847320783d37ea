"""Every exception of the package.

    SquirrelTorchError
    |-- PipelineError              the chain is wrong, or was used in a way that it can't serve
    |   |-- ShardingError          a needed split is missing or done twice, or the rank can't be read
    |   |-- ExhaustedSourceError   a one-shot source was asked for a second pass
    |   |-- ClosedRunError         a run was asked for more after it had been closed
    |   |-- NotPlannedError        something was asked that only a chain can tell whose order is arithmetic
    |   |-- StageTimeout           a callback has not returned within its time (also a TimeoutError)
    |   |-- WorkerDiedError        a callback took two processes with it, or no process could be started
    |   |-- ExecutorLostError      an executor or scheduler that was given is gone, or can't be used in this process
    |   `-- TooManyFailuresError   more items failed than `max_failures` allows
    |-- StateError                 a state can't be loaded: damaged, of another version, or incomplete
    |   |-- FingerprintMismatch    it is the state of another dataset or another chain
    |   `-- ReplayMismatch         what is made again differs from what was delivered
    |-- StoreError                 a store can't do what it was asked
    |   |-- SampleNotFoundError    no sample under this key (also a KeyError)
    |   |-- SampleEncodingError    the sample holds something a store can't keep (also a TypeError)
    |   |-- SchemaError            samples of one dataset differ in their fields or types (also a TypeError)
    |   |-- CorruptDataError       bytes of a store or a file are not what was written
    |   `-- DatasetExistsError     there is a dataset already where one should be written (also a FileExistsError)
    `-- MissingDependencyError     an optional package is not installed (also an ImportError)

Wrong arguments are plain ``ValueError`` and ``TypeError``, raised on the line that wrote them. An exception of a user's
callback is never wrapped: it keeps its type and traceback and gains one note.
"""

__all__ = [
    "ClosedRunError",
    "CorruptDataError",
    "DatasetExistsError",
    "ExecutorLostError",
    "ExhaustedSourceError",
    "FingerprintMismatch",
    "MissingDependencyError",
    "NotPlannedError",
    "PipelineError",
    "PyTorchSplittingException",
    "ReplayMismatch",
    "SampleEncodingError",
    "SampleNotFoundError",
    "SchemaError",
    "ShardingError",
    "SquirrelTorchError",
    "StageTimeout",
    "StateError",
    "StoreError",
    "TooManyFailuresError",
    "WorkerDiedError",
]


class SquirrelTorchError(Exception):
    """Base of all errors that this package raises by itself."""


class PipelineError(SquirrelTorchError):
    """The chain is wrong, or was used in a way that it can't serve."""


class ShardingError(PipelineError):
    """A needed split by rank or worker is missing or done twice, or the own place can't be read."""


class ExhaustedSourceError(PipelineError):
    """A source that can be read only once (a generator, an open file) was asked for a second pass."""


class ClosedRunError(PipelineError):
    """A run was asked for more items after it had been closed or interrupted."""


class NotPlannedError(PipelineError):
    """Something was asked that only a chain can tell whose order is arithmetic; the message says what to change."""


class StageTimeout(PipelineError, TimeoutError):  # noqa: N818  # the name that the field has for it
    """A callback has not returned within its time limit.

    Args:
        message: What hangs, on which item, and where it was.
        stack: Where the thread or process was, as Python prints a stack; empty if it could not be asked.
    """

    def __init__(self, message: str, stack: str = "") -> None:
        super().__init__(message, stack)
        self.stack = stack

    def __str__(self) -> str:
        return str(self.args[0])


class WorkerDiedError(PipelineError):
    """A callback took its process with it, and a second one; or no process could be started."""


class ExecutorLostError(PipelineError):
    """An executor or scheduler that was given is gone, or can't be used in the process where the stream runs."""


class TooManyFailuresError(PipelineError):
    """More items failed than `max_failures` allows; its cause is the last of them."""


class StateError(SquirrelTorchError):
    """A state can't be loaded: it is damaged, of another version, or a part of it is missing. Nothing has been changed."""


class FingerprintMismatch(StateError):  # noqa: N818  # the name that the field has for it
    """The state belongs to another dataset or another chain; the message says what was added, removed or changed."""


class ReplayMismatch(StateError):  # noqa: N818  # the name that the field has for it
    """What is made again for a resume differs from what was made before: the source or a callback has changed."""


class StoreError(SquirrelTorchError):
    """A store can't do what it was asked."""


class SampleNotFoundError(StoreError, KeyError):
    """The store holds no sample under this key."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which would quote the whole message.
        return str(self.args[0])


class SampleEncodingError(StoreError, TypeError):
    """A sample holds something that a store can't keep; the message names the place and the type."""


class SchemaError(StoreError, TypeError):
    """Samples of one dataset differ in their fields or types; the message names the field, the types and the sample."""


class CorruptDataError(StoreError):
    """Bytes of a store or a file are not what was written: truncated, changed, swapped, missing or made to harm."""


class DatasetExistsError(StoreError, FileExistsError):
    """There is a dataset already where a new one should be written."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingDependencyError(SquirrelTorchError, ImportError):
    """An optional package is needed and not installed; the message is the pip line that installs it.

    Args:
        package: Its name.
        extra: The extra of squirrel_torch that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'squirrel_torch[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type["MissingDependencyError"], tuple[str, str]]:
        return type(self), (self.package, self.extra)


PyTorchSplittingException = ShardingError
"""The name that squirrel-core gave to this error."""
