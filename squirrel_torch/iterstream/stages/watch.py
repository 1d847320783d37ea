"""Stages that look and let everything pass: tqdm and monitor."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, ClassVar, Literal, TypeVar, get_args
from uuid import uuid4

from torch.utils.data import get_worker_info

from squirrel_torch.checks import require_at_least, require_callable, require_seconds
from squirrel_torch.errors import PipelineError
from squirrel_torch.execution import in_reader
from squirrel_torch.iterstream.stage import UNSIGNED, Following, Id, Stage
from squirrel_torch.metrics import MetricsConf, Tally, Window, accepted_by_mlflow, rates
from squirrel_torch.reporting import Sink, gathered_by
from squirrel_torch.sharding import rank_shard

__all__ = ["Monitored", "Ranks", "Tqdm"]

T = TypeVar("T")

Ranks = Literal["first", "each"]
"""Which ranks tell their figures: rank 0 alone, or each with its number in the names."""


@dataclass(frozen=True)
class Tqdm(Stage[T, T]):
    """The items under a progress bar. Order: kept. Holds: nothing. State: none."""

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    one_to_one: ClassVar[bool] = True

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        from tqdm import tqdm

        with tqdm(items, **self.kwargs) as bar:
            yield from bar

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return ids

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        return following.remake(ids)


def _token() -> str:
    return uuid4().hex


@dataclass(frozen=True)
class Monitored(Stage[T, T]):
    """The items, their rate told to `callback`. Order: kept. Holds: nothing. State: none.

    Its `token` tells it from all others, and is kept when the chain travels to another process.
    """

    callback: Callable[..., Any]
    prefix: str = ""
    conf: MetricsConf = field(default_factory=MetricsConf)
    window_size: int = 5
    every: float = 1.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    every_items: int | None = field(default=None, metadata=UNSIGNED)
    ranks: Ranks | None = field(default=None, metadata=UNSIGNED)
    token: str = field(default_factory=_token, repr=False, compare=False, metadata=UNSIGNED)
    one_to_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_callable("callback", self.callback)
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix must be a text, got {self.prefix!r} ({type(self.prefix).__name__})")
        if not isinstance(self.conf, MetricsConf):
            raise TypeError(f"metrics_conf must be a MetricsConf, got {self.conf!r} ({type(self.conf).__name__})")
        require_at_least("window_size", self.window_size, 1)
        require_seconds("every", self.every)
        if self.every_items is not None:
            require_at_least("every_items", self.every_items, 1)
        if self.ranks not in (None, *get_args(Ranks)):
            raise ValueError(f"ranks must be 'first', 'each' or None, got {self.ranks!r}")

    def told_apart(self, others: Sequence["Monitored[Any]"]) -> "Monitored[T]":
        """The same, with a number in its prefix if one of `others` gives the same names to the same callback."""
        taken = [other.prefix for other in others if _same(other.callback, self.callback)]
        if self.prefix not in taken:
            return self
        free = next(text for number in count(2) if (text := f"{self.prefix}monitor {number} ") not in taken)
        return replace(self, prefix=free, token=_token())

    def tally(self, processes: int = 1) -> Tally:
        """Counts what passes in one of so many processes."""
        items = self.every_items and -(-self.every_items // processes)
        return Tally(self.conf, self.window_size, self.every, items)

    def tell(self, *windows: Window) -> None:
        """Call the callback with the figures of streams that flow at the same time, each with its window."""
        prefix, ranks = self.prefix, self.ranks
        if ranks is not None or isinstance(self.callback, Sink):
            rank = rank_shard().index
            if ranks == "each":
                prefix = f"rank {rank}/{prefix}"
            elif rank:
                return
        self.callback(rates(self.conf, _accepted_prefix(self.callback, prefix), windows), **self.kwargs)

    @property
    def measures(self) -> bool:
        """Whether there is anything to tell."""
        return self.conf.iops or self.conf.throughput

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        if not self.measures:
            return items
        if gathered_by(self.token) is None:
            self._require_own_process()
        return self._measured(items)

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return ids

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        return following.remake(ids)

    def _measured(self, items: Iterator[T]) -> Iterator[T]:
        gathering = gathered_by(self.token)
        tally = self.tally() if gathering is None else gathering.tally
        tell = self.tell if gathering is None else gathering.tell
        meter = tally.open()
        add = meter.add
        try:
            for item in items:
                if add(item) and (window := tally.due()) is not None:
                    self._report(tell, window)
                yield item
        except GeneratorExit:
            tally.close(meter)
            if gathering is None:
                self._last_report(tally)
            raise
        tally.close(meter)
        if gathering is None:
            self._last_report(tally)

    def _require_own_process(self) -> None:
        info = get_worker_info()
        if info is not None and isinstance(self.callback, Sink) and self.callback.one_process:
            raise PipelineError(
                f"monitor can't call {self.callback!r} in worker {info.id} of a DataLoader: it belongs to the process that "
                "trains, and torch's DataLoader has no way there. Iterate squirrel_torch.StreamLoader(chain, num_workers=...): "
                "the figures of its workers come together in that process. Or pass a callback that may run in workers"
            )

    def _last_report(self, tally: Tally) -> None:
        # However short the stream, it reports once. While the interpreter goes down the callback's world may be gone.
        if not sys.is_finalizing() and (rest := tally.rest()) is not None:
            self._report(self.tell, rest)

    def _report(self, tell: Callable[[Window], object], window: Window) -> None:
        in_reader(lambda: tell(window))


def _same(one: object, other: object) -> bool:
    """Whether two callbacks write to the same place, as far as can be seen."""
    if one is other:
        return True
    if isinstance(one, Sink):
        return type(one) is type(other) and repr(one) == repr(other)
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001  # equality of a user's class, which may be anything
        return False


def _accepted_prefix(callback: Callable[..., Any], prefix: str) -> str:
    of_mlflow = (getattr(callback, "__module__", None) or "").partition(".")[0] == "mlflow"
    return accepted_by_mlflow(prefix) if of_mlflow else prefix
