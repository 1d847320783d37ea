"""Whole files below one URL, on any filesystem: read, written at once or not at all, tried again when storage is flaky."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

from squirrel_torch.errors import StoreError

__all__ = ["Files", "is_transient", "sync_folder", "write_at_once"]

T = TypeVar("T")

_FINAL_ERRORS: Final = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_CODES: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
# Packages under fsspec whose errors are no OSError.
_STORAGE_PACKAGES: Final = ("aiohttp", "aiobotocore", "botocore", "requests", "urllib3", "gcsfs", "google", "azure", "adlfs")
_LONGEST_WAIT: Final = 10.0


class Files:
    """The files below `url`.

    Instances can be pickled. Each process opens the filesystem for itself: connections don't survive a fork.

    Args:
        url: A folder on any filesystem that fsspec knows.
        storage_options: Passed to it. They may hold secrets, and are in no message.
        attempts: How often a read or write is tried before it is an error. Between two tries it waits 0.1 s, 0.2 s, 0.4 s
            and so on, 10 s at most, times a random factor from 0.5 to 1.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None, attempts: int = 5) -> None:
        self.is_local = "://" not in url and "::" not in url
        if url.startswith(("file://", "local://")):
            self.is_local, url = True, url.partition("://")[2]
        self.url = os.path.abspath(url) if self.is_local else url.rstrip("/")  # noqa: PTH100  # resolves no links
        self._options = storage_options or {}
        self._attempts = attempts
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __repr__(self) -> str:
        return f"Files({self.url!r})"

    def _filesystem(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(self.url, **self._options)
            self._opened = (os.getpid(), filesystem, root.rstrip("/"))
        return self._opened[1:]

    def path(self, name: str) -> str:
        """The URL of a file, for messages; its path, if the files are local."""
        return f"{self.url}/{name}" if name else self.url

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or those from `start` to `end`.

        Raises:
            FileNotFoundError: If there is no such file.
            StoreError: If it can't be read, after all tries; or if it ends before `end`.
        """

        def read() -> bytes:
            if self.is_local:
                with open(self.path(name), "rb") as file:  # noqa: PTH123  # the path is text
                    file.seek(start or 0)
                    return file.read() if end is None else file.read(end - (start or 0))
            filesystem, root = self._filesystem()
            data: bytes = filesystem.cat_file(f"{root}/{name}", start=start, end=end)
            if start is not None and end is not None and len(data) < end - start:
                raise ConnectionError(f"{len(data)} bytes came instead of {end - start}")
            return data

        data = self._tried("read", name, read)
        if start is not None and end is not None and len(data) != end - start:
            raise StoreError(f"{self.path(name)} ends before byte {end}: {len(data)} bytes came instead of {end - start}")
        return data

    def size(self, name: str) -> int:
        """The bytes of a file.

        Raises:
            FileNotFoundError: If there is no such file.
            StoreError: If it can't be asked, after all tries.
        """

        def size() -> int:
            if self.is_local:
                return os.stat(self.path(name)).st_size  # noqa: PTH116  # the path is text
            filesystem, root = self._filesystem()
            filesystem.invalidate_cache(root)
            return int(filesystem.size(f"{root}/{name}"))

        return self._tried("ask for the size of", name, size)

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder as they are now, sorted; none if there is no such folder."""

        def names() -> list[str]:
            if self.is_local:
                with os.scandir(self.path(folder)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file())
            filesystem, root = self._filesystem()
            filesystem.invalidate_cache()
            path = f"{root}/{folder}".rstrip("/")
            entries = filesystem.ls(path, detail=True)
            return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

        try:
            return [name for name in self._tried("list", folder, names) if name]
        except (FileNotFoundError, NotADirectoryError):
            return []

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write a file, which is there whole or not at all. One that was there is replaced.

        Raises:
            StoreError: If it can't be written, after all tries.
        """

        def write() -> None:
            if self.is_local:
                write_at_once(Path(self.path(name)), [data])
            else:
                filesystem, root = self._filesystem()
                filesystem.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
                filesystem.pipe_file(f"{root}/{name}", data)

        self._tried("write", name, write)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of that name; whether this call has done it.

        Of several processes that do so at a time one succeeds, on local disks, on S3 and wherever else the filesystem can
        write exclusively.

        Raises:
            StoreError: If it can't be written, after all tries.
        """

        def create() -> bool:
            if self.is_local:
                return _create(Path(self.path(name)), data)
            filesystem, root = self._filesystem()
            filesystem.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            try:
                filesystem.pipe_file(f"{root}/{name}", data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if _is_refused(error):
                    return False
                raise
            return True

        # A try whose answer was lost may have written it.
        return self._tried("create", name, create) or self._is_ours(name, data)

    def _is_ours(self, name: str, data: bytes) -> bool:
        try:
            return self.read(name) == data
        except FileNotFoundError:
            return False

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

        def remove() -> None:
            if self.is_local:
                os.unlink(self.path(name))  # noqa: PTH108  # the path is text
            else:
                filesystem, root = self._filesystem()
                filesystem.rm_file(f"{root}/{name}")

        with suppress(FileNotFoundError):
            self._tried("remove", name, remove)

    def _tried(self, verb: str, name: str, action: Callable[[], T]) -> T:
        for attempt in range(1, self._attempts + 1):
            try:
                return action()
            except Exception as error:
                if isinstance(error, FileNotFoundError):
                    raise
                if not is_transient(error):
                    raise StoreError(f"can't {verb} {self.path(name)}: {_said(error)}") from error
                if attempt == self._attempts:
                    raise StoreError(f"can't {verb} {self.path(name)}, tried {attempt} times: {_said(error)}") from error
                time.sleep(min(_LONGEST_WAIT, 0.1 * 2 ** (attempt - 1)) * random.uniform(0.5, 1))
        raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Whether an error of a filesystem may be gone at the next try."""
    if isinstance(error, _FINAL_ERRORS):
        return False
    if isinstance(error, OSError):
        return error.errno not in _FINAL_CODES
    return isinstance(error, EOFError) or type(error).__module__.partition(".")[0] in _STORAGE_PACKAGES


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_refused(error: OSError) -> bool:
    """Whether S3 has refused to write what is there already."""
    text = f"{error} {error.__cause__!r}"
    return any(
        word in text for word in ("PreconditionFailed", "ConditionalRequestConflict", "At least one of the pre-conditions")
    )


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


def _create(path: Path, data: bytes) -> bool:
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
