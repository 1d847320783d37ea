"""What a figure belongs to: the machine, the versions, the day; and a file with every time of every round."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rig import Table, Times

__all__ = ["environment", "write_json"]

_PACKAGES = (
    *("squirrel_torch", "squirrel-core", "webdataset", "torch", "torchdata", "numpy", "distributed", "loky", "pyarrow"),
    *("datasets", "litdata", "mosaicml-streaming", "grain", "array_record", "spdl"),
)


def environment() -> dict[str, str]:
    """The machine, the day, and the versions that the figures belong to."""
    found = {"date": datetime.now(UTC).date().isoformat(), "python": platform.python_version()}
    found |= {"system": _system(), "cpu": _cpu(), "cores": str(_cores()), "memory": _memory()}
    return found | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _system() -> str:
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.release()}"
    except OSError:  # not every Unix says so
        return platform.platform()


def _cpu() -> str:
    """Its model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # only Linux has it
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    """All of the machine's."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def write_json(path: Path, results: Mapping[str, tuple[Table, Times]]) -> None:
    """Every time of every round, in seconds per item, and what they say."""
    tables = {name: _recorded(table, times) for name, (table, times) in results.items()}
    path.write_text(json.dumps({"environment": environment(), "tables": tables}, indent=2) + "\n")


def _recorded(table: Table, times: Times) -> dict[str, Any]:
    return {
        "title": table.title,
        "limit": table.limit,
        "unit": table.unit,
        "seconds_per_item": times,
        "times_limit": {contender: times.ratio(contender, table.limit) for contender in times},
        "bases": {contender.name: contender.base for contender in table.contenders if contender.base},
        "told": {contender: {what: told(contender) for what, told in table.more.items()} for contender in times},
        "absent": [c.name for c in table.contenders if c.name not in times and c.name not in times.failed],
        "failed": times.failed,
        "claims": [{"text": claim.text, "holds": claim.holds} for claim in table.claims(times)],
    }
