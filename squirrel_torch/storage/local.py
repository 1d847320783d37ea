"""Files of local disks: there whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

__all__ = ["create_at_once", "sync_folder", "write_at_once"]


def write_at_once(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write a local file under another name, have it on the disk, and give it its name.

    Raises:
        OSError: Nothing is left behind then.
    """
    temporary = _write_temporary(path, parts)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _write_temporary(path: Path, parts: Sequence[bytes | memoryview]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def create_at_once(path: Path, data: bytes) -> bool:
    """Write a local file if there is none of that name; whether there was none."""
    temporary = _write_temporary(path, [data])
    try:
        # Unlike a rename, a link is refused if there is a file already.
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Have the names of a local folder on the disk."""
    with suppress(OSError):  # some filesystems can't
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
