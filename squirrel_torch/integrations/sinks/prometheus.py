"""Metrics for Prometheus, through the textfile collector of its node_exporter.

The text is that of https://prometheus.io/docs/instrumenting/exposition_formats/: a few lines, for which no library is needed.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Mapping
from math import inf, isnan
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Final

from squirrel_torch.integrations.sinks.naming import Names

__all__ = ["PrometheusSink"]

_PREFIX: Final = "squirrel_torch_"
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


class _Page:
    """The last value of each metric, of all sinks that share a file."""

    def __init__(self, path: Path) -> None:
        self.names = Names(_allowed)
        self._path = path
        self._lock = Lock()
        self._help: dict[str, str] = {}
        self._samples: dict[str, dict[str, float]] = {}

    def put(self, metrics: Mapping[str, float], labels: str) -> None:
        """Take over metrics, and write the file anew."""
        with self._lock:
            for name, value in metrics.items():
                allowed = self.names[name]
                self._help[allowed] = name
                self._samples.setdefault(allowed, {})[labels] = float(value)
            # Beside it, so that it can be renamed; the collector reads only what ends with ".prom".
            written = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
            written.write_text(self._text(), encoding="utf-8", newline="\n")
            written.replace(self._path)

    def _text(self) -> str:
        lines = []
        for name, samples in sorted(self._samples.items()):
            lines.append(f"# HELP {name} {_escaped(self._help[name])}")
            lines.append(f"# TYPE {name} gauge")
            lines += [f"{name}{labels} {_number(value)}" for labels, value in samples.items()]
        return "".join(f"{line}\n" for line in lines)


_pages: weakref.WeakValueDictionary[Path, _Page] = weakref.WeakValueDictionary()


class PrometheusSink:
    """Writes the last value of each metric as a gauge into a file that node_exporter's textfile collector reads.

    Names begin with "squirrel_torch_", and what Prometheus does not allow in them becomes "_": "IOPS number/s" is
    squirrel_torch_iops_number_per_s. The file is replaced as a whole, so a reader never sees a part of it. Sinks of this
    process that have the same path share the file. It stays when the process ends; node_textfile_mtime_seconds, which the
    collector adds, tells how old it is.

    Args:
        path: The file, in the folder that node_exporter was given as `--collector.textfile.directory`; its name ends with
            ".prom".
        labels: Names and values of labels that each metric gets, such as {"job_name": "resnet", "rank": "3"}.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the name of the file does not end with ".prom", or a label has a name that Prometheus does not allow.
    """

    one_process: ClassVar[bool] = True

    def __init__(self, path: str | os.PathLike[str], *, labels: Mapping[str, str] | None = None) -> None:
        self.path: Path = Path(path)
        self.labels: dict[str, str] = {name: str(value) for name, value in (labels or {}).items()}
        if self.path.suffix != ".prom":
            raise ValueError(f"the collector reads only files that end with '.prom', got {str(self.path)!r}")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder of {str(self.path)!r} does not exist: make it first")
        for name in self.labels:
            if not _LABEL.fullmatch(name):
                raise ValueError(f"a label's name must be letters, digits and '_', and not begin with '__', got {name!r}")
        self._absolute = self.path.absolute()
        self._text = ",".join(f'{name}="{_quoted(value)}"' for name, value in self.labels.items())
        self._page = _page_of(self._absolute)

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics. Prometheus knows no steps: `step` is not used.

        Raises:
            ValueError: If two names differ only in what Prometheus does not allow.
        """
        self._page.put(metrics, f"{{{self._text}}}" if self._text else "")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_page"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._page = _page_of(self._absolute)

    def __repr__(self) -> str:
        return f"PrometheusSink({str(self.path)!r}{f', labels={self.labels}' if self.labels else ''})"


def _page_of(path: Path) -> _Page:
    page = _pages.get(path)
    if page is None:
        page = _pages[path] = _Page(path)
    return page


def _allowed(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", name.lower().replace("/", " per "))
    return _PREFIX + "_".join(words) if words else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")


def _number(value: float) -> str:
    if isnan(value):
        return "NaN"
    return {inf: "+Inf", -inf: "-Inf"}.get(value, repr(value))
