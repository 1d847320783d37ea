"""The fluent surface: what a user writes between the source and the training loop."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Literal, ParamSpec, Protocol, Self, TypeVar, overload

from squirrel_torch.checks import require_at_least, require_callable, require_epoch
from squirrel_torch.errors import PipelineError, ShardingError
from squirrel_torch.iterstream.datapipe import DataPipe, graph_state, is_datapipe, iterated_by_dataloader, plain_state
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.iterstream.monitors import monitors_of
from squirrel_torch.iterstream.oneshot import OneShot
from squirrel_torch.iterstream.run import Run, Upstream
from squirrel_torch.iterstream.sink import write_stream
from squirrel_torch.iterstream.stage import Context, Split, Stage
from squirrel_torch.iterstream.stages import (
    AsyncMap,
    AutoSplit,
    Batched,
    DaskMap,
    Filter,
    FlatMap,
    Flatten,
    Loop,
    Map,
    Monitored,
    NumbaMap,
    Piped,
    Ranks,
    RankSplit,
    Shuffled,
    Skip,
    Sliding,
    SplitStage,
    Take,
    Tqdm,
    WorkerSplit,
    ZipIndex,
)
from squirrel_torch.metrics import MetricsConf, MetricsType
from squirrel_torch.portable import by_value, from_portable, importable, to_portable
from squirrel_torch.reporting import Sink
from squirrel_torch.seeding import Seed, resolve_seed
from squirrel_torch.sharding import Shard
from squirrel_torch.storage import Store, Written, store_reader

if TYPE_CHECKING:
    import random
    from types import FrameType, ModuleType

    from squirrel_torch.execution import ExecutorLike
    from squirrel_torch.iterstream.explain import Explanation
    from squirrel_torch.iterstream.torch_composables import TorchIterable
    from squirrel_torch.observe.report import Report

__all__ = ["ChainEnd", "Composable", "chained", "copied", "require_source"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")
P = ParamSpec("P")


class Placed(Protocol):
    """What `compose` can put onto a stream."""

    def source_(self, source: Any) -> Any:
        """Set the source and return the object itself."""


C = TypeVar("C", bound=Placed)


def _call_site() -> str | None:
    """The line of the user's code that called into this package."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("squirrel_torch."):
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Composable(DataPipe[T_co]):
    """A stream of items that can be chained: the source, and what happens to its items, one method after the other.

    A chain only describes. Iterating it starts a run, and each run starts afresh: two at a time do not disturb each
    other. Each pass over a composable is a new epoch, with a new order where something is shuffled; see `run` and
    `set_epoch` to say which.

    A subclass with an `__iter__` of its own, best a generator over `self.source`, is a stage too; put it into a chain
    with `compose`.

    Args:
        source: What the items come from: another composable, an iterable, a callable that gives an iterable.
        stage: What is done to them.
    """

    # The run executes a subclass's own `__iter__` on a view: an object with the same __dict__ whose source is the run's.
    # A slot, so that it is not shared by that __dict__.
    __slots__ = ("_view",)
    _view: tuple[Any]

    _custom: ClassVar[bool] = False
    """Whether the class writes its own `__iter__`."""

    _begins: ClassVar[bool] = False
    """Whether the class begins a stream. Around another composable it adds nothing, and is left out of the chain."""

    needs_whole: ClassVar[bool | None] = None
    """For a subclass with an `__iter__` of its own: whether it gives something else on a part of the stream (it counts, or
    looks at neighbours). `TorchIterable` puts a split behind it if True, in front of it if False, and refuses to guess."""

    # For subclasses that never call this __init__.
    _source: Any = None
    _stage: Stage[Any, Any] | None = None
    _site: str | None = None
    _next_epoch: int = 0

    def __init__(
        self,
        source: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
        stage: Stage[Any, T_co] | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self._stage = stage
        self._site = _call_site()
        self._next_epoch = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__iter__  # perhaps of a class that is mixed in
        if own is not Composable.__iter__:
            cls._custom, cls._begins = True, False
            if not hasattr(own, "_starts_run"):
                setattr(cls, "__iter__", _entry(own))  # noqa: B010  # mypy forbids the assignment

    # -- structure ----------------------------------------------------------------------------------------------------

    @property
    def source(self) -> Any:
        """What the items come from. Inside a subclass's `__iter__` it is the stream of that very run."""
        return self._view[0] if self._is_view else self._source

    @source.setter
    def source(self, source: Any) -> None:
        if self._is_view:
            self._view = (source,)
            return
        if isinstance(source, ChainEnd):
            source = source.source
        one_shot = isinstance(source, Iterator) and not is_datapipe(source)
        self._source = OneShot(source) if one_shot else source

    def source_(self, source: Iterable[Any] | Callable[[], Iterable[Any]]) -> Self:
        """Set the source and return the composable itself.

        Raises:
            TypeError: If it can't be one.
            ShardingError: If the stream is now split along one axis twice.
        """
        require_source(source)
        self.source = source
        self._site = _call_site()
        self._check_splits()
        return self

    @property
    def _is_view(self) -> bool:
        try:
            self._view  # noqa: B018
        except AttributeError:
            return False
        return True

    @property
    def _splits(self) -> Split:
        """The axes along which this place of the chain divides the stream."""
        return Split.NONE if self._stage is None else self._stage.splits

    @property
    def _draws(self) -> bool:
        """Whether this place of the chain uses random numbers."""
        return self._stage is not None and self._stage.draws

    @property
    def _holds(self) -> bool:
        """Whether this place of the chain pulls items ahead of those it gives."""
        return self._stage is None or self._stage.holds

    @property
    def _repeats(self) -> bool:
        """Whether it may read what stands before it several times in one pass."""
        return self._custom if self._stage is None else self._stage.repeats

    @property
    def _branches(self) -> list[list[Composable[Any]]]:
        """The places of the streams that are mixed here."""
        return []

    @property
    def _owner(self) -> object:
        """The object that is `self` in the code of this place of the chain."""
        return self if self._stage is None else self._stage

    def _describe(self) -> str:
        """This place of the chain in few words, callables by their name."""
        return type(self).__name__ if self._stage is None else self._stage.describe()

    def __repr__(self) -> str:
        return " > ".join(link._describe() for link in self._links())

    __str__ = __repr__

    def _links(self) -> list[Composable[Any]]:
        """The places of the chain, from the source to this one."""
        links: list[Composable[Any]] = []
        node: Any = self
        while isinstance(node, Composable):
            if not (node._begins and isinstance(node.source, Composable)):
                links.append(node)
            node = node.source
        if node is not None and links[-1]._stage is not None:
            from squirrel_torch.iterstream.iterable import IterableSource

            links.append(IterableSource(node))
        return links[::-1]

    def _check_splits(self) -> None:
        """Raise ShardingError if the stream is divided twice along one axis."""
        done = Split.NONE
        for link in self._links():
            if again := done & link._splits:
                axis = "rank" if again & Split.RANK else "worker"
                raise ShardingError(
                    f"the stream is split by {axis} twice, the second time by {link._describe()}: each process would get a "
                    f"share of its share, and the rest would be lost; keep one split by {axis}"
                )
            done |= link._splits

    @property
    def _follows(self) -> bool:
        """See `lifetime.Link`."""
        return not self._custom and self._stage is not None and self._stage.wanted is not None

    def _open(self, upstream: Upstream[Any], context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[Any]:
        """The iterator of this place of a run; see `lifetime.Link`."""
        stage = self._stage
        if self._custom or stage is None:
            return shard.of(self._open_view(upstream.limited(stage.shard()) if isinstance(stage, SplitStage) else upstream))
        if isinstance(stage, SplitStage):
            lifetime.automatic = lifetime.automatic or (isinstance(stage, AutoSplit) and not stage.written)
            return upstream.part(shard.within(stage.shard()))
        if self._follows:
            from squirrel_torch.iterstream.tracking import followed

            links: list[Any] = [*upstream.links, self]
            return shard.of(followed(links, upstream.context, lifetime))
        planned = self._planned(upstream, lifetime, shard) if stage.moves_only else None
        return shard.of(stage.start(upstream, context)) if planned is None else planned

    def _planned(self, upstream: Upstream[Any], lifetime: Lifetime, shard: Shard) -> Iterator[Any] | None:
        """The items, if their order up to here is arithmetic, and is not simply that of the source."""
        links: list[Any] = [*upstream.links, self]
        if not any(isinstance(link._stage, Shuffled) for link in links):
            return None
        from squirrel_torch.iterstream.planned import planned_prefix, position_blocks

        planned = planned_prefix(links, upstream.context)
        if planned is None or planned.count < len(links):
            return None
        numbers = (planned.order.ids(positions) for positions in position_blocks(planned.order, shard))
        return planned.open(links, upstream.context, lifetime, numbers)

    def _open_view(self, upstream: Upstream[Any]) -> Iterator[Any]:
        if not self._custom:
            raise PipelineError(f"{type(self).__name__} has neither a stage nor an __iter__ of its own: it gives no items")
        view = object.__new__(type(self))
        view.__dict__ = self.__dict__
        for name in _slots(type(self)):
            if hasattr(self, name):
                setattr(view, name, getattr(self, name))
        view._view = (upstream if isinstance(self.source, Composable) else self.source,)
        return iter(view)

    # -- running ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[T_co]:
        """Start a run, in the epoch after that of the last one."""
        if self._is_view:
            raise PipelineError(f"{type(self).__name__}.__iter__ must iterate self.source: there is no other stream to be had")
        return self._run_for(sys._getframe(1))

    def _run_for(self, caller: FrameType | None) -> Run[T_co]:
        if not iterated_by_dataloader(self, caller):
            return self.run()
        from squirrel_torch.iterstream.torch_composables import run_in_dataloader

        return run_in_dataloader(self)

    def run(self, epoch: int | None = None) -> Run[T_co]:
        """Start a run: an iterator that can be closed, also by ``with``.

        Args:
            epoch: The number of the epoch, which decides every shuffle and mix. By default each run that is asked for
                an item takes the next one, from 0.

        Example:
            >>> from squirrel_torch import IterableSource
            >>> with IterableSource(range(10)).map(str).run() as run:
            ...     next(run), next(run)
            ('0', '1')
        """
        if epoch is not None:
            require_epoch(epoch)
        links = self._links()
        within = links[0].source
        if epoch is None and isinstance(within, Upstream):
            # A chain that a composable puts onto its own source while it runs.
            context = within.inner_context()
            return Run(links, lambda: context.epoch, context.path)
        return Run(links, self._claim_epoch if epoch is None else lambda: epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next run is; those after it go on from there."""
        require_epoch(epoch)
        self._next_epoch = epoch

    def _claim_epoch(self) -> int:
        epoch = self._next_epoch
        self._next_epoch = epoch + 1
        return epoch

    def join(self) -> None:
        """Pull all items through the stream and drop them."""
        for _ in self:
            pass

    def collect(self) -> list[T_co]:
        """All items of the stream, in a list."""
        return list(self)

    # -- putting things onto the stream -------------------------------------------------------------------------------

    def then(self, stage: Stage[Any, U]) -> Composable[U]:
        """Put a stage behind this stream: the door for stages of your own.

        Args:
            stage: Describes what is done to the items; see `squirrel_torch.Stage`.

        Raises:
            TypeError: If it is not a stage.
            ShardingError: If it splits the stream along an axis along which it is split already.
        """
        if not isinstance(stage, Stage):
            raise TypeError(
                f"stage must be a Stage, got {stage!r}; functions go through map or to, composables through compose"
            )
        composed: Composable[U] = Composable(self, stage)
        composed._check_splits()
        return composed

    def compose(self, constructor: Callable[P, C], *args: P.args, **kw: P.kwargs) -> C:
        """Put a composable of your own behind this stream.

        Args:
            constructor: A subclass of `Composable`, or a partial of one. It is called with the other arguments, and the
                result gets this stream as its source.
            *args: Passed to `constructor`.
            **kw: Passed to `constructor`.

        Raises:
            ValueError: If the constructor's own `__init__` takes a `source`: this method is what sets it.
            TypeError: If what it makes is not a composable.

        Example:
            >>> from squirrel_torch import Composable, IterableSource
            >>> class Numbered(Composable):
            ...     def __init__(self):
            ...         super().__init__()
            ...     def __iter__(self):
            ...         for i in iter(self.source):
            ...             yield f"_{i}", i
            >>> IterableSource([1, 2]).compose(Numbered).collect()
            [('_1', 1), ('_2', 2)]
        """
        require_callable("constructor", constructor)
        kind = constructor.func if isinstance(constructor, functools.partial) else constructor
        if "source" in kw or ("__init__" in getattr(kind, "__dict__", {}) and "source" in signature(kind.__init__).parameters):
            raise ValueError(
                f"{getattr(kind, '__name__', kind)} must not take a source of its own: compose gives it this stream as its "
                "source; leave the argument out of its __init__"
            )
        composed = constructor(*args, **kw)
        if not callable(getattr(composed, "source_", None)):
            raise TypeError(
                f"compose needs a constructor of Composables, {kind!r} made a {type(composed).__name__}; stages go through then"
            )
        placed: C = composed.source_(self)
        return placed

    def to(self, f: Callable[Concatenate[Iterator[T_co], P], Iterator[U]], *args: P.args, **kw: P.kwargs) -> Composable[U]:
        """Put a function from iterator to iterator behind this stream.

        Args:
            f: Called once a run, with the iterator of this stream. Best a generator function.
            *args: Passed to `f`, behind the iterator.
            **kw: Passed to `f`.

        Example:
            >>> from itertools import pairwise
            >>> from squirrel_torch import IterableSource
            >>> IterableSource([1, 2, 3]).to(pairwise).collect()
            [(1, 2), (2, 3)]
        """
        return self.then(Piped(f, args, kw))

    # -- item by item -------------------------------------------------------------------------------------------------

    @overload
    def map(self, callback: Callable[[T_co], U]) -> Composable[U]: ...

    @overload
    def map(self, callback: Callable[Concatenate[T_co, ...], U], **kw: Any) -> Composable[U]: ...

    def map(self, callback: Callable[..., U], **kw: Any) -> Composable[U]:
        """Replace each item by what `callback` gives for it.

        Args:
            callback: Called with each item.
            **kw: Passed to `callback` with each item. An argument that is itself called `callback` goes by
                `functools.partial`.

        Example:
            >>> from squirrel_torch import IterableSource
            >>> IterableSource([1, 2, 3]).map(lambda x: x + 1).collect()
            [2, 3, 4]
        """
        return self.then(Map(_with(callback, kw)))

    def filter(self, predicate: Callable[[T_co], object]) -> Composable[T_co]:
        """Keep the items for which `predicate` is true."""
        return self.then(Filter(predicate))

    def flatten(self: Composable[Iterable[U]]) -> Composable[U]:
        """Give the items of the items, one by one."""
        return self.then(Flatten())

    @overload
    def flat_map(self, callback: Callable[[T_co], Iterable[U]]) -> Composable[U]: ...

    @overload
    def flat_map(self, callback: Callable[Concatenate[T_co, ...], Iterable[U]], **kw: Any) -> Composable[U]: ...

    def flat_map(self, callback: Callable[..., Iterable[U]], **kw: Any) -> Composable[U]:
        """Replace each item by all the items of what `callback` gives for it: none, one or many.

        Args:
            callback: Called with each item; returns an iterable, or is a generator function.
            **kw: Passed to `callback` with each item.
        """
        return self.then(FlatMap(_with(callback, kw)))

    @overload
    def async_map(
        self,
        callback: Callable[[T_co], Coroutine[Any, Any, U]],
        buffer: int | Literal["auto"] = 100,
        max_workers: int | Literal["auto"] | None = None,
        executor: None = None,
        *,
        ordered: bool = True,
        timeout: float | None = None,
        retries: int = 0,
        retry_on: type[Exception] | tuple[type[Exception], ...] = Exception,
        backoff: float = 0.1,
        on_error: Literal["raise", "skip"] | Callable[[Exception, T_co], object] = "raise",
        max_failures: int | Fraction | None = None,
    ) -> Composable[U]: ...

    @overload
    def async_map(
        self,
        callback: Callable[[T_co], U],
        buffer: int | Literal["auto"] = 100,
        max_workers: int | Literal["auto"] | None = None,
        executor: ExecutorLike = None,
        *,
        ordered: bool = True,
        chunksize: int | Literal["auto"] = "auto",
        timeout: float | None = None,
        retries: int = 0,
        retry_on: type[Exception] | tuple[type[Exception], ...] = Exception,
        backoff: float = 0.1,
        on_error: Literal["raise", "skip"] | Callable[[Exception, T_co], object] = "raise",
        max_failures: int | Fraction | None = None,
    ) -> Composable[U]: ...

    @overload
    def async_map(
        self,
        callback: Callable[Concatenate[T_co, ...], U],
        buffer: int | Literal["auto"] = 100,
        max_workers: int | Literal["auto"] | None = None,
        executor: ExecutorLike = None,
        *,
        ordered: bool = True,
        chunksize: int | Literal["auto"] = "auto",
        timeout: float | None = None,
        retries: int = 0,
        retry_on: type[Exception] | tuple[type[Exception], ...] = Exception,
        backoff: float = 0.1,
        on_error: Literal["raise", "skip"] | Callable[[Exception, T_co], object] = "raise",
        max_failures: int | Fraction | None = None,
        **kw: Any,
    ) -> Composable[U]: ...

    def async_map(
        self,
        callback: Callable[..., Any],
        buffer: int | Literal["auto"] = 100,
        max_workers: int | Literal["auto"] | None = None,
        executor: ExecutorLike = None,
        *,
        ordered: bool = True,
        chunksize: int | Literal["auto"] = "auto",
        timeout: float | None = None,
        retries: int = 0,
        retry_on: type[Exception] | tuple[type[Exception], ...] = Exception,
        backoff: float = 0.1,
        on_error: Literal["raise", "skip"] | Callable[[Exception, Any], object] = "raise",
        max_failures: int | Fraction | None = None,
        **kw: Any,
    ) -> Composable[Any]:
        """Like `map`, many items at once, ahead of whoever reads the stream.

        Args:
            callback: Called with each item, in another thread or process; or a coroutine function, whose coroutines run on
                one event loop. Lambdas and local functions may go to other processes too.
            buffer: At most this many items are in flight: pulled from the stages before, and not consumed. "auto" finds
                out, up to 1024.
            max_workers: Threads, processes, or coroutines at a time. None: as many threads as Python's own pool has, as many
                processes as there are CPUs, as many coroutines as are in flight. "auto" finds out, with at most 64 threads.
                An executor that is given has its own number.
            executor: Where the callback runs. A name is opened when a run starts, in the process that runs it (a worker of a
                DataLoader too), and closed with it: None or "thread", threads; "process", processes; "numba", the callback
                compiled by numba, on one thread or `max_workers`; "tcp://host:8786", the cluster of a dask scheduler. Or a
                live `concurrent.futures.Executor` or `dask.distributed.Client`: it may be shared between stages and is not
                closed. In a worker of a DataLoader, threads, processes and a client of its own take the place of a live one.
            ordered: False gives results as they come.
            chunksize: How many items travel together. "auto" goes by their time: fast ones in chunks, slow ones alone.
            timeout: Seconds for one attempt at an item. What hangs then is left behind (a thread), killed and replaced (a
                process) or cancelled (a coroutine), and the item fails with StageTimeout.
            retries: Attempts after the first, each after a random pause that may be twice as long as the one before.
            retry_on: Exceptions that are worth another attempt.
            backoff: Longest pause before the second attempt, in seconds; no pause is longer than 30.
            on_error: "raise": an item that fails ends the stream. "skip": it is left out, counted in the `reports` of the
                run, and the first of each kind is logged. A function of the error and the item is told, and the item is
                left out.
            max_failures: With more than so many failed items the stream ends after all: a number, or a `Fraction` of the
                items so far.
            **kw: Passed to `callback` with each item. Arguments that have the name of one of the above go by
                `functools.partial`.

        Leaving a run early drops what has not been started, and waits for the callbacks that are running, but not for those
        on an executor of yours. The stages before run in a thread of this stage. If a process dies, or is
        killed because an item hangs, the chunk that it had is worked on again: what a callback writes elsewhere it may then
        write twice.

        Raises:
            StageTimeout: While iterating, of an item that takes too long.
            WorkerDiedError: While iterating, of an item that took two processes with it.
            TooManyFailuresError: While iterating.
            ExecutorLostError: While iterating, if a scheduler is gone, or a live executor can't be used in this process.

        Example:
            >>> from squirrel_torch import IterableSource
            >>> IterableSource([1, 2, 3]).async_map(lambda x: x ** 2).collect()
            [1, 4, 9]
        """
        kinds = retry_on if isinstance(retry_on, tuple) else (retry_on,)
        return self.then(
            AsyncMap(
                _with(callback, kw),
                buffer,
                max_workers,
                executor,
                ordered,
                chunksize,
                timeout,
                retries,
                kinds,
                backoff,
                on_error,
                max_failures,
            )
        )

    def numba_map(self, callback: Callable[[T_co], U]) -> Composable[U]:
        """Like `map`, the callback compiled by numba (extra `numba`) at its first call.

        Pays for callbacks that loop over numbers in Python; numpy code gains little. Compiled integers have 64 bits and wrap
        around. What numba can't compile runs as plain Python, after one warning in the log that says why.

        Args:
            callback: A Python function of arrays and numbers.

        Raises:
            MissingDependencyError: If numba is not installed.
        """
        return self.then(NumbaMap(callback))

    def dask_map(self, callback: Callable[[T_co], Any] | Callable[Concatenate[T_co, ...], Any], **kw: Any) -> Composable[Any]:
        """Replace each item by a `dask.delayed` of `callback` and the item: nothing is computed yet.

        Args:
            callback: Called by dask with each item.
            **kw: Passed to `callback` with each item.

        Raises:
            MissingDependencyError: If dask is not installed (extra `dask`).
        """
        from squirrel_torch.execution.dask import require_dask

        require_dask()
        return self.then(DaskMap(_with(callback, kw)))

    def materialize_dask(self, buffer: int = 10, max_workers: int | None = None) -> Composable[Any]:
        """Compute the `dask.delayed` objects of the stream, several at once, in order.

        Args:
            buffer: At most this many are being computed.
            max_workers: Threads that wait for dask; None is Python's default.

        Raises:
            MissingDependencyError: If dask is not installed (extra `dask`).
        """
        from squirrel_torch.execution.dask import compute, require_dask

        require_dask()
        return self.async_map(compute, buffer, max_workers)

    # -- several items at once ----------------------------------------------------------------------------------------

    @overload
    def batched(
        self, batchsize: int, collation_fn: None = None, drop_last_if_not_full: bool = True
    ) -> Composable[list[T_co]]: ...

    @overload
    def batched(
        self, batchsize: int, collation_fn: Callable[[list[T_co]], U], drop_last_if_not_full: bool = True
    ) -> Composable[U]: ...

    def batched(
        self,
        batchsize: int,
        collation_fn: Callable[[list[T_co]], Any] | None = None,
        drop_last_if_not_full: bool = True,
    ) -> Composable[Any]:
        """Gather items into lists.

        Args:
            batchsize: Items of a batch.
            collation_fn: Makes of the list what is given instead of it, such as
                `torch.utils.data.default_collate`.
            drop_last_if_not_full: Drop the last batch if it has fewer items. Behind a split every rank and worker has a
                last batch of its own.

        Example:
            >>> from squirrel_torch import IterableSource
            >>> IterableSource(range(5)).batched(2, drop_last_if_not_full=False).collect()
            [[0, 1], [2, 3], [4]]
        """
        return self.then(Batched(batchsize, collation_fn, drop_last_if_not_full))

    def sliding(
        self,
        window_size: int,
        *,
        deepcopy: bool,
        stride: int = 1,
        drop_last_if_not_full: bool = True,
        min_window_size: int = 1,
        fill_nan_on_partial: bool = False,
    ) -> Composable[list[T_co | None]]:
        """Give windows over the stream: lists of neighbouring items.

        Args:
            window_size: Items of a window.
            deepcopy: Whether windows hold copies of the items. Say True if later steps change items, since neighbouring
                windows share them otherwise. A copy costs time.
            stride: Items from the start of a window to that of the next, at most `window_size`.
            drop_last_if_not_full: Whether windows that reach over the end of the stream are left out.
            min_window_size: Of those, give the ones with at least this many items.
            fill_nan_on_partial: Of those, give all, filled up with None. Takes precedence over `min_window_size`.

        Example:
            >>> from squirrel_torch import IterableSource
            >>> IterableSource("abcd").sliding(3, deepcopy=False, stride=2, drop_last_if_not_full=False).collect()
            [['a', 'b', 'c'], ['c', 'd']]
        """
        return self.then(Sliding(window_size, deepcopy, stride, drop_last_if_not_full, min_window_size, fill_nan_on_partial))

    # -- order and choice ---------------------------------------------------------------------------------------------

    def shuffle(
        self,
        size: int | None = 1000,
        *,
        initial: int = 100,
        rng: random.Random | ModuleType | None = None,
        seed: Seed = None,
    ) -> Composable[T_co]:
        """Shuffle the stream through a buffer.

        The order is a function of seed and epoch, and of nothing else: it is the same on all ranks and workers, so that a
        split behind it deals out each item once, and a new one in each epoch.

        Args:
            size: Items that the buffer holds; None is 1000. Below 2 there is nothing to shuffle.
            initial: Give the first item once the buffer holds this many; more make the head of the stream more random.
            rng: A seed is drawn from it, now. The generator is not used afterwards, and never re-seeded.
            seed: By default `squirrel_torch.seeding.DEFAULT_SEED`, on every rank.

        Raises:
            ValueError: If both `rng` and `seed` are given, or `size` is negative or `initial` below 1.
        """
        size = 1000 if size is None else size
        require_at_least("size", size, 0)
        require_at_least("initial", initial, 1)
        resolved = resolve_seed(seed, rng)
        return self if size < 2 else self.then(Shuffled(size, initial, resolved))

    def take(self, n: int | None) -> Composable[T_co]:
        """Give the first `n` items; all of them if `n` is None. No more than `n` are asked for."""
        return self if n is None else self.then(Take(n))

    def skip(self, n: int) -> Composable[T_co]:
        """Leave out the first `n` items."""
        return self.then(Skip(n))

    def loop(self, n: int | None = None) -> Composable[T_co]:
        """Give the stream `n` times, for ever if `n` is None. Each pass is shuffled differently.

        Ends early if a pass gives nothing. A source that can be read only once raises ExhaustedSourceError in the second
        pass.
        """
        return self.then(Loop(n))

    @overload
    def zip_index(self, pad_length: None = None) -> Composable[tuple[int, T_co]]: ...

    @overload
    def zip_index(self, pad_length: int) -> Composable[tuple[str, T_co]]: ...

    def zip_index(self, pad_length: int | None = None) -> Composable[Any]:
        """Give (index, item), the index counted from 0 in each pass.

        Args:
            pad_length: Give the index as text, with zeros in front up to this length.
        """
        return self.then(ZipIndex(pad_length))

    # -- stores -------------------------------------------------------------------------------------------------------

    def prefetch(self: Composable[str], store: Store, buffer: int = 100, max_workers: int | None = None) -> Composable[Any]:
        """Replace each key of the stream by its sample, fetched ahead by a pool of threads, in order.

        Args:
            store: Where the samples are.
            buffer: At most this many are fetched ahead.
            max_workers: Threads of the pool; None is Python's default.
        """
        return self.async_map(store_reader(store), buffer, max_workers)

    def sink(
        self,
        store: Store,
        buffer: int = 100,
        max_workers: int | None = None,
        executor: ExecutorLike = None,
        progress: bool = False,
        resume: str | None = None,
    ) -> Written:
        """Write all items of the stream into a store, now, in parallel.

        A store of shards gets whole shards, and all of them at once when the stream has ended: until then nothing can be
        seen of them. Under several ranks the stream has to be split by rank; they commit together, so
        torch.distributed must be initialized. The stream must give samples of their own, as for `batched`: they are
        written later than they are given.

        Args:
            store: Gives each sample a key of its own.
            buffer: At most this many samples are being written. Of shards there are two for each worker at most.
            max_workers: Workers that write; None is Python's default, for shards as many as there are processors, up to 4.
            executor: Where is written, see `async_map`: threads by default, "process", a dask client or address, ...
            progress: Show a bar with the rows that are written.
            resume: A name for the job, for stores of shards. A job that was killed goes on when it is started again with the
                same stream, the same name and as many ranks: what it has written is read from the stream and left out.

        Returns:
            What was written: rows, and names and bytes of shards. Under several ranks what this one has written.

        Raises:
            SampleEncodingError: If a sample holds something that the store can't keep.
            SchemaError: If the samples differ in their fields or types and the store keeps one schema.
            DatasetExistsError: If the store has a dataset already and was not opened to append or overwrite.
            ShardingError: If several ranks would each write the whole stream.

        Example:
            >>> from squirrel_torch import IterableSource
            >>> from squirrel_torch.storage import MemoryStore
            >>> IterableSource([1, 2, 3]).sink(MemoryStore())
            Written(rows=3, shards=(), bytes=0)
        """
        return write_stream(self, store, buffer, max_workers, executor, progress, resume)

    # -- looking ------------------------------------------------------------------------------------------------------

    def tqdm(self, **kw: Any) -> Composable[T_co]:
        """Show a progress bar while items pass.

        Args:
            **kw: Passed to `tqdm.tqdm`.
        """
        return self.then(Tqdm(kw))

    def monitor(
        self,
        callback: Callable[[MetricsType], Any] | Callable[Concatenate[MetricsType, ...], Any] | Sink | str,
        prefix: str | None = None,
        metrics_conf: MetricsConf | type[MetricsConf] = MetricsConf,
        window_size: int = 5,
        every: float = 1.0,
        every_items: int | None = None,
        ranks: Ranks | None = None,
        **kw: Any,
    ) -> Composable[T_co]:
        """Measure the rate at which items pass here, and tell it to a logger.

        The figures are of all steps before this one together, and of the consumer's speed where that is the slower one.
        A stream that gives any item reports at least once, at its end.

        The callback is called in the thread that reads the stream. Under a `StreamLoader` it is called in the process that
        trains, however many workers there are: with the sums of their rates. In the workers of torch's DataLoader it is called
        in each of them; a sink raises there, as it belongs to the process that trains.

        Args:
            callback: The name of a sink: "wandb", "mlflow", "tensorboard" or "tensorboard:FOLDER", "csv:FILE",
                "prometheus:FILE.prom". A sink of `squirrel_torch.integrations.sinks` with arguments. Or anything that is called
                with a dict of metric names and numbers: `wandb.log`, `mlflow.log_metrics`, a function.
            prefix: Stands before the names, so that several monitors of one run can be told apart. Another monitor before it in
                the chain with the same callback and prefix is not overwritten: "monitor 2 " is added to this one's prefix, then
                "monitor 3 ". `mlflow.log_metrics` gets it without the characters that MLflow refuses in names, such as
                parentheses; so do sinks.
            metrics_conf: Which metrics are measured, in which unit.
            window_size: Figures are averages over at least this many items.
            every: Seconds between two reports, at least. 0 reports after every `window_size` items.
            every_items: Report after exactly so many items instead, whatever the time. From several workers, or a chain that a
                StreamLoader deals to several streams, it is at least so many, as they count by themselves.
            ranks: In a job of several ranks: "each" reports the figures of each, with "rank 3/" before the names; "first" those
                of rank 0 alone. By default a sink reports those of rank 0, and any other callback is called on each rank.
            **kw: Passed to `callback` with each report.

        Raises:
            TypeError: If an argument is of another kind.
            ValueError: If there is no such sink, if `window_size` or `every_items` is below 1 or `every` below 0.
            MissingDependencyError: If the library of the sink is not installed.

        Example:
            >>> from squirrel_torch import IterableSource
            >>> reports = []
            >>> IterableSource(range(3)).monitor(reports.append, prefix="raw ").join()
            >>> sorted(reports[0])
            ['raw IOPS number/s', 'raw throughput MB/s']
            >>> chain = IterableSource(range(3)).monitor("csv:figures.csv", every_items=1000)
        """
        if isinstance(callback, str):
            from squirrel_torch.integrations.sinks import sink_named

            callback = sink_named(callback)
        monitored: Monitored[T_co] = Monitored(
            callback,
            prefix or "",
            metrics_conf() if isinstance(metrics_conf, type) else metrics_conf,
            window_size,
            every,
            kw,
            every_items,
            ranks,
        )
        return self.then(monitored.told_apart(monitors_of(self._links())))

    def explain(self) -> Explanation:
        """Say how this chain can be resumed after a stop: what decides it, what it costs, and what would make it better.

        The source is inspected, and perhaps counted. No item is made.

        Returns:
            What to print. Its attributes hold the parts.

        Example:
            >>> from squirrel_torch import IterableSource
            >>> print(IterableSource(range(10)).shuffle(10).batched(2).explain().mode)
            planned
        """
        from squirrel_torch.iterstream.explain import explain

        return explain(self)

    def profile(self, n: int | None = None, *, seconds: float = 10.0) -> Report:
        """Run this chain in this process, and say where the time goes: which stage limits it, why, and what to change.

        It is a run of epoch 0 of its own, with what a split by rank or worker leaves to this process. The items are dropped.
        Each is counted at each place, and some are timed, which takes some percent of the time. `StreamLoader.report` tells of
        a training that goes on.

        Args:
            n: How many items to take from the end of the chain; None for all.
            seconds: After how long to stop, if they have not all come by then.

        Returns:
            What to print. Its attributes hold the verdict and the figures; `save("profile.html")` draws them.

        Example:
            >>> import time
            >>> from squirrel_torch import IterableSource
            >>> report = IterableSource(range(100)).map(lambda x: time.sleep(0.005)).profile(50)
            >>> report.verdict.cause, report.verdict.place
            ('latency', 1)
        """
        from squirrel_torch.observe.profile import profile

        return profile(self, n, seconds)

    # -- torch --------------------------------------------------------------------------------------------------------

    def split_by_rank(self, torch_dist_group: Any = None) -> Composable[T_co]:
        """Keep this rank's share: every world-size-th item, from item `rank` on.

        Rank and world size are read when the stream starts, from the process group, or from RANK and WORLD_SIZE where none
        is initialized. All that stands before the split must be the same on all ranks.

        Args:
            torch_dist_group: A process group of torch.distributed, or a device mesh: only the processes along its dimensions
                share the stream, so with ``mesh["dp"]`` all ranks of a tensor or pipeline parallel group get the same samples.
                None is the default group.

        Raises:
            ShardingError: If the stream is split by rank already; when it starts, if the rank can't be read.
        """
        return self.then(RankSplit(torch_dist_group))

    def split_by_worker(self) -> Composable[T_co]:
        """Keep the share of this DataLoader worker: every n-th item of n workers, from item `worker id` on.

        Raises:
            ShardingError: If the stream is split by worker already.
        """
        return self.then(WorkerSplit())

    def split_by_rank_pytorch(self, torch_dist_group: Any = None) -> Composable[T_co]:
        """`split_by_rank`, by the name that squirrel-core gave to it."""
        return self.split_by_rank(torch_dist_group)

    def split_by_worker_pytorch(self) -> Composable[T_co]:
        """`split_by_worker`, by the name that squirrel-core gave to it."""
        return self.split_by_worker()

    def to_torch_iterable(
        self, enforce_rank_check: bool | None = None, enforce_worker_check: bool | None = None
    ) -> TorchIterable[T_co]:
        """End the chain with what a `torch.utils.data.DataLoader` takes; see `TorchIterable`.

        Args:
            enforce_rank_check: What to do about ranks if the stream is not split by rank. None: split it here if it has no
                split at all, refuse it if it is split by worker alone. True: refuse it. False: do nothing, each rank gets
                all.
            enforce_worker_check: The same for the workers of the DataLoader.
        """
        from squirrel_torch.iterstream.torch_composables import TorchIterable

        return self.compose(TorchIterable, enforce_rank_check, enforce_worker_check)

    # -- pickling -----------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        shown = graph_state(self.__dict__)
        return to_portable(plain_state(self.__dict__)) if shown is None else shown

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(from_portable(state))

    def __reduce_ex__(self, protocol: Any) -> Any:
        if importable(type(self)) or graph_state({}) is not None:
            return super().__reduce_ex__(protocol)
        # A class of a function's body or of a notebook: it travels by value.
        return (*by_value(type(self)), self.__getstate__())


def chained(links: Sequence[Composable[Any]]) -> Composable[Any]:
    """The last of `links`, put onto those before it."""
    node, *others = links
    for link in others:
        below, node = node, copied(link)
        node.source = below
    return node


def copied(link: Any) -> Any:
    """A composable of its own with the same attributes."""
    same = object.__new__(type(link))
    same.__dict__.update(link.__dict__)
    return same


class ChainEnd:
    """What ends a chain and is no composable itself; as a source it stands for the chain that it ends."""

    source: Any


def require_source(source: object) -> None:
    """Raise TypeError unless a stream can begin with `source`."""
    kind = type(source)
    if not (
        hasattr(kind, "__iter__")
        or callable(source)
        or isinstance(source, Store | ChainEnd)
        or (hasattr(kind, "__len__") and hasattr(kind, "__getitem__"))
    ):
        raise TypeError(
            "source must be an iterable, a callable that gives one, a store or a map-style dataset, "
            f"got {source!r} ({kind.__name__})"
        )


def _slots(cls: type) -> Iterator[str]:
    """The attributes of a composable that do not live in its __dict__."""
    for base in cls.__mro__[: cls.__mro__.index(Composable)]:
        slots = base.__dict__.get("__slots__", ())
        yield from [slots] if isinstance(slots, str) else slots


def _with(callback: Callable[..., U], kwargs: Mapping[str, Any]) -> Callable[..., U]:
    return functools.partial(callback, **kwargs) if kwargs else callback


def _entry(own: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """`__iter__` of a subclass: a run for whoever iterates the composable, the own code for the run."""

    @functools.wraps(own)
    def entry(self: Composable[Any]) -> Iterator[Any]:
        return own(self) if self._is_view else self._run_for(sys._getframe(1))

    entry._starts_run = True  # type: ignore[attr-defined]  # a function's own attribute
    return entry
