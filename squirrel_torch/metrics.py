"""The figures that `monitor` reports, how they are measured, and how large a sample is."""

import sys
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import asdict, dataclass
from operator import attrgetter
from time import perf_counter
from typing import Any

import numpy as np

from squirrel_torch.checks import require_at_least, require_seconds

__all__ = ["Meter", "MetricsConf", "MetricsType", "metrics_iops", "metrics_throughput", "size_of"]

MetricsType = dict[str, int | float]

_UNITS = {"bytes": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


@dataclass(frozen=True)
class MetricsConf:
    """Which metrics `monitor` measures.

    A metric that is off is reported as 0. With both off nothing is measured and the callback is never called.

    Args:
        iops: Measure the items per second.
        throughput: Measure the data per second.
        throughput_unit: One of "bytes", "KB", "MB" and "GB" (steps of 1024).

    Raises:
        ValueError: If the unit is none of these.
    """

    iops: bool = True
    throughput: bool = True
    throughput_unit: str = "MB"

    def __post_init__(self) -> None:
        _bytes_in(self.throughput_unit)

    def asdict(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)


def _bytes_in(unit: str) -> int:
    if unit not in _UNITS:
        raise ValueError(f"throughput_unit must be one of {', '.join(_UNITS)}, got {unit!r}")
    return _UNITS[unit]


def metrics_iops(count: int, duration: float) -> float:
    """Items per second: `count` items in `duration` seconds, rounded to 2 places."""
    return round(count / duration, 2)


def metrics_throughput(size: float, duration: float, unit: str = "bytes") -> float:
    """Data per second: `size` bytes in `duration` seconds, in `unit` per second, rounded to 2 places."""
    return round(size / _bytes_in(unit) / duration, 2)


def size_of(item: Any) -> int:
    """Bytes of payload in `item`, found without pickling it.

    Arrays and tensors count their elements, text and bytes their length, numbers 8, containers the sum of what they
    hold (keys of mappings too). Anything else counts what `sys.getsizeof` says of it, and so does what can't be looked into:
    containers that hold themselves, or whose parts raise.
    """
    try:
        return _SIZES.get(type(item), _size_of_other)(item)
    except Exception:  # noqa: BLE001  # measuring must not break a stream
        return sys.getsizeof(item)


def _size_of_items(items: Iterable[Any]) -> int:
    sizes, other = _SIZES, _size_of_other
    size = 0
    for item in items:
        size += sizes.get(type(item), other)(item)
    return size


def _size_of_mapping(mapping: Mapping[Any, Any]) -> int:
    return _size_of_items(mapping) + _size_of_items(mapping.values())


def _size_of_other(item: Any) -> int:
    """The size of what is none of the common types: a subclass of one, a tensor, anything."""
    nbytes = getattr(item, "nbytes", None)
    if type(nbytes) is int:
        return nbytes
    if isinstance(item, Mapping):
        return _size_of_mapping(item)
    if isinstance(item, list | tuple | Set):
        return _size_of_items(item)
    for common in (str, bytes, bytearray, int, float):
        if isinstance(item, common):
            return _SIZES[common](item)
    return sys.getsizeof(item)


# By exact type: this runs for each item of a stream and for each part of it, and isinstance would take most of the time.
_SIZES: dict[type, Callable[[Any], int]] = {
    **dict.fromkeys((str, bytes, bytearray), len),
    **dict.fromkeys((int, float, bool), lambda _: 8),
    **dict.fromkeys((list, tuple, set, frozenset), _size_of_items),
    np.ndarray: attrgetter("nbytes"),
    dict: _size_of_mapping,
    type(None): lambda _: 0,
}


class Meter:
    """Counts items and bytes as they pass and says when, and what, to report.

    The figures of a report are averages over everything since the report before it: `count` items took the whole time
    from that report to this one, so the rate has no bias, however short the window is.

    Args:
        conf: Which metrics to measure.
        prefix: Stands before the name of each metric.
        window_size: A report averages over at least this many items.
        every: Seconds between two reports, at least.
    """

    def __init__(self, conf: MetricsConf, prefix: str, window_size: int, every: float) -> None:
        require_at_least("window_size", window_size, 1)
        require_seconds("every", every)
        self._conf = conf
        self._prefix = prefix
        self._window_size = window_size
        self._every = every
        self._count = 0
        self._size = 0
        self._since = perf_counter()

    def add(self, item: Any) -> bool:
        """Count one item; True when a report is due."""
        self._count += 1
        if self._conf.throughput:
            self._size += size_of(item)
        return self._count >= self._window_size and perf_counter() - self._since >= self._every

    @property
    def pending(self) -> bool:
        """Whether items have passed since the last report."""
        return self._count > 0

    def report(self) -> MetricsType:
        """The metrics since the last report; a new window starts here."""
        now = perf_counter()
        # A clock of coarse resolution may see no time pass at all.
        duration = max(now - self._since, 1e-9)
        conf = self._conf
        iops = metrics_iops(self._count, duration) if conf.iops else 0
        throughput = metrics_throughput(self._size, duration, conf.throughput_unit) if conf.throughput else 0
        self._count, self._size, self._since = 0, 0, now
        return {
            f"{self._prefix}IOPS number/s": iops,
            f"{self._prefix}throughput {conf.throughput_unit}/s": throughput,
        }
