"""Metrics in a CSV file."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

__all__ = ["CSVSink"]

_COLUMNS: Final = ["time", "step", "metric", "value"]


class CSVSink:
    """Appends metrics to a CSV file, a line each: time (seconds since 1970), step, metric, value.

    So any number of monitors, with any names, share a file; a pivot table makes a column of each metric. A file that is there
    already is continued. Each call writes whole lines and closes the file.

    Args:
        path: The file. Its folder has to exist.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If there is a file that begins with other columns.
    """

    one_process: ClassVar[bool] = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder of {str(self.path)!r} does not exist: make it first")
        self._path = self.path.absolute()  # the working directory may be another one when it is called
        self._calls = 0
        if self._path.exists() and self._path.stat().st_size:
            with self._path.open(newline="") as file:
                columns = next(csv.reader(file))
            if columns != _COLUMNS:
                raise ValueError(
                    f"{str(self.path)!r} has the columns {columns}, not {_COLUMNS}: it is another file, take a new one"
                )

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append metrics. Without a `step` it is the number of the call, from 0."""
        now, number = f"{time.time():.3f}", self._calls if step is None else step
        self._calls += 1
        with self._path.open("a", newline="") as file:
            lines = csv.writer(file)
            if file.tell() == 0:
                lines.writerow(_COLUMNS)
            lines.writerows([now, number, name, value] for name, value in metrics.items())

    def __repr__(self) -> str:
        return f"CSVSink({str(self.path)!r})"
