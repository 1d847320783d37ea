"""The figures that `monitor` reports, how they are measured, and how large a sample is."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import asdict, dataclass
from operator import attrgetter
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np

__all__ = [
    "Meter",
    "MetricsConf",
    "MetricsType",
    "Tally",
    "Window",
    "metrics_iops",
    "metrics_throughput",
    "rates",
    "size_of",
]

MetricsType = dict[str, int | float]

_REFUSED_BY_MLFLOW = re.compile(r"[^/\w.\- :]")
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


def metrics_iops(count: float, duration: float) -> float:
    """Items per second: `count` items in `duration` seconds, rounded to 2 places."""
    return round(count / duration, 2)


def metrics_throughput(size: float, duration: float, unit: str = "bytes") -> float:
    """Data per second: `size` bytes in `duration` seconds, in `unit` per second, rounded to 2 places."""
    return round(size / _bytes_in(unit) / duration, 2)


def accepted_by_mlflow(text: str) -> str:
    """A name, or a part of one, without the characters that MLflow refuses in names of metrics, such as parentheses."""
    return _REFUSED_BY_MLFLOW.sub("", text)


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


@dataclass(frozen=True)
class Window:
    """What has passed in some time.

    Args:
        count: Items.
        size: Bytes of them, 0 where they are not measured.
        seconds: How long that took.
    """

    count: int
    size: int
    seconds: float

    def __add__(self, later: "Window") -> "Window":
        return Window(self.count + later.count, self.size + later.size, self.seconds + later.seconds)


def rates(conf: MetricsConf, prefix: str, windows: Iterable[Window]) -> MetricsType:
    """The metrics of streams that flow at the same time, each with a window of its own: the sums of their rates."""
    iops = throughput = 0.0
    for window in windows:
        # A clock of coarse resolution may see no time pass at all.
        seconds = max(window.seconds, 1e-9)
        iops += window.count / seconds
        throughput += window.size / seconds
    return {
        f"{prefix}IOPS number/s": metrics_iops(iops, 1) if conf.iops else 0,
        f"{prefix}throughput {conf.throughput_unit}/s": (
            metrics_throughput(throughput, 1, conf.throughput_unit) if conf.throughput else 0
        ),
    }


class Meter:
    """Counts the items and bytes of one run, and knows when to look whether something is to be told."""

    def __init__(self, *, sized: bool, every: float) -> None:
        self.count: int = 0
        self.size: int = 0
        self._sized = sized
        self._every = every
        self._full = 0
        self._since = 0.0

    def begin(self, items: int, now: float) -> None:
        """Begin a window: it is looked at after `items` more items, and `every` seconds after `now`."""
        self._full = self.count + items
        self._since = now

    def add(self, item: Any) -> bool:
        """Count one item; whether it is time to look."""
        self.count += 1
        if self._sized:
            self.size += size_of(item)
        return self.count >= self._full and perf_counter() - self._since >= self._every


class Tally:
    """What passes a place of a chain, in one run or in several at a time, and in any threads.

    The figures of a window are averages over everything since the window before it: `count` items took the whole time from
    there to here, so the rate has no bias, however short the window is.

    Args:
        conf: Which metrics are measured.
        window_size: A window has at least this many items.
        every: Seconds of a window, at least.
        every_items: Items of a window; the other two are not looked at then. None: they decide.
    """

    def __init__(self, conf: MetricsConf, window_size: int, every: float, every_items: int | None = None) -> None:
        self._sized = conf.throughput
        self._items = window_size if every_items is None else every_items
        self._every = every if every_items is None else 0.0
        self._lock = Lock()
        self._meters: list[Meter] = []
        # Of the runs that have ended, less what was told.
        self._count = 0
        self._size = 0
        self._since = 0.0

    def open(self) -> Meter:
        """Counts one run. Only the thread that it is counted in may call `add`."""
        meter = Meter(sized=self._sized, every=self._every)
        with self._lock:
            if not self._since:
                self._since = perf_counter()
            self._meters.append(meter)
            self._begin(meter)
        return meter

    def close(self, meter: Meter) -> None:
        """A run has ended."""
        with self._lock:
            self._meters.remove(meter)
            self._count += meter.count
            self._size += meter.size

    def due(self) -> Window | None:
        """The window that ends here, asked for by a meter whose time to look it was; None if it goes on."""
        with self._lock:
            count = self._passed()
            # Meanwhile another thread may have taken it.
            if count >= self._items and perf_counter() - self._since >= self._every:
                return self._taken(count)
            for meter in self._meters:
                self._begin(meter, count)
            return None

    def rest(self) -> Window | None:
        """What has passed since the last window, at the end; None if nothing has."""
        with self._lock:
            count = self._passed()
            return self._taken(count) if count > 0 else None

    def _passed(self) -> int:
        return self._count + sum(meter.count for meter in self._meters)

    def _taken(self, count: int) -> Window:
        size = self._size + sum(meter.size for meter in self._meters)
        now = perf_counter()
        window = Window(count, size, now - self._since)
        self._count, self._size, self._since = self._count - count, self._size - size, now
        for meter in self._meters:
            self._begin(meter)
        return window

    def _begin(self, meter: Meter, passed: int = 0) -> None:
        # Each may bring its share of what is missing before anybody looks again: one alone has no other to wait for.
        meter.begin(max(1, (self._items - passed) // len(self._meters)), self._since)
