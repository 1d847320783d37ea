"""Stages that look and let everything pass: tqdm and monitor."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from squirrel_torch.checks import require_callable
from squirrel_torch.execution import in_reader
from squirrel_torch.iterstream.stage import Following, Id, Stage
from squirrel_torch.metrics import Meter, MetricsConf

__all__ = ["Monitored", "Tqdm"]

T = TypeVar("T")


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


@dataclass(frozen=True)
class Monitored(Stage[T, T]):
    """The items, their rate told to `callback`. Order: kept. Holds: nothing. State: none."""

    callback: Callable[..., Any]
    prefix: str = ""
    conf: MetricsConf = field(default_factory=MetricsConf)
    window_size: int = 5
    every: float = 1.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    one_to_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_callable("callback", self.callback)
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix must be a text, got {self.prefix!r} ({type(self.prefix).__name__})")
        if not isinstance(self.conf, MetricsConf):
            raise TypeError(f"metrics_conf must be a MetricsConf, got {self.conf!r} ({type(self.conf).__name__})")
        self._meter()

    def _meter(self) -> Meter:
        return Meter(self.conf, _accepted_prefix(self.callback, self.prefix), self.window_size, self.every)

    def apply(self, items: Iterator[T]) -> Iterator[T]:
        if not (self.conf.iops or self.conf.throughput):
            return items
        return self._measured(items)

    def parents(self, ids: Sequence[Id]) -> Sequence[Id] | None:
        return ids

    def remake(self, ids: Sequence[Id], following: Following) -> list[Any]:
        return following.remake(ids)

    def _measured(self, items: Iterator[T]) -> Iterator[T]:
        meter = self._meter()
        add = meter.add
        try:
            for item in items:
                if add(item):
                    self._report(meter)
                yield item
        except GeneratorExit:
            self._last_report(meter)
            raise
        self._last_report(meter)

    def _last_report(self, meter: Meter) -> None:
        # However short the stream, it reports once. While the interpreter goes down the callback's world may be gone.
        if meter.pending and not sys.is_finalizing():
            self._report(meter)

    def _report(self, meter: Meter) -> None:
        report = meter.report()
        in_reader(lambda: self.callback(report, **self.kwargs))


def _accepted_prefix(callback: Callable[..., Any], prefix: str) -> str:
    # MLflow raises on metric names with anything else in them, parentheses for one.
    of_mlflow = (getattr(callback, "__module__", None) or "").partition(".")[0] == "mlflow"
    return re.sub(r"[^/\w.\- :]", "", prefix) if of_mlflow else prefix
