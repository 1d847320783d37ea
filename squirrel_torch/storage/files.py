"""Whole files below one URL, on any filesystem: read, written at once or not at all, tried again when storage is flaky."""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from squirrel_torch.errors import MissingDependencyError, StoreError
from squirrel_torch.storage.local import create_at_once, write_at_once

__all__ = ["Files", "check_options", "folder_url", "is_transient", "require_filesystem", "tried"]

T = TypeVar("T")

_FINAL_ERRORS: Final = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_CODES: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
# Packages under fsspec whose errors are no OSError.
_STORAGE_PACKAGES: Final = ("aiohttp", "aiobotocore", "botocore", "requests", "urllib3", "gcsfs", "google", "azure", "adlfs")
_LOCAL_OPTIONS: Final = frozenset(("auto_mkdir", "skip_instance_cache", "use_listings_cache"))
_LONGEST_WAIT: Final = 10.0
_BUCKETS: Final = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "obs", "oci", "tos"))


class Files:
    """The files below `url`.

    Instances can be pickled. Each process opens the filesystem for itself: connections don't survive a fork.

    Args:
        url: A folder on any filesystem that fsspec knows.
        storage_options: Passed to it. They may hold secrets, and are in no message.
        attempts: How often a read or write is tried before it is an error. Between two tries it waits 0.1 s, 0.2 s, 0.4 s
            and so on, 10 s at most, times a random factor from 0.5 to 1.

    Raises:
        TypeError: If the folder is local and there are storage options.
        ValueError: If no filesystem of fsspec has the protocol.
        MissingDependencyError: If its package is not installed.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None, attempts: int = 5) -> None:
        self.url: str
        self.is_local: bool = "://" not in url and "::" not in url
        if url.startswith(("file://", "local://")):
            self.is_local, url = True, url.partition("://")[2]
        if self.is_local:
            self.url = os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111  # resolves no links
        else:
            self.url = url.rstrip("/")
            require_filesystem(url)
        self._options = storage_options or {}
        check_options(url, self._options)
        self._attempts = attempts
        self._opened: tuple[int, Any, str] | None = None

    @property
    def is_memory(self) -> bool:
        """Whether they are in the memory of this process, where no other sees them."""
        return re.search(r"(^|::)memory:", self.url) is not None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __repr__(self) -> str:
        return f"Files({self.path('')!r})"

    def _filesystem(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(self.url, **self._options)
            self._opened = (os.getpid(), filesystem, root.rstrip("/"))
        return self._opened[1:]

    def path(self, name: str) -> str:
        """The path of a file, if the files are local; else its URL for messages, without a password that may be in it."""
        url = self.url if self.is_local else _without_secrets(self.url)
        return f"{url}/{name}" if name else url

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
        except FileNotFoundError:
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
                _make_folder(filesystem, f"{root}/{name}")
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
                return create_at_once(Path(self.path(name)), data)
            filesystem, root = self._filesystem()
            _make_folder(filesystem, f"{root}/{name}")
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
        return tried(verb, self.path(name), action, self._attempts)


def folder_url(url: object) -> str:
    """The URL of a folder, as text.

    Raises:
        ValueError: If it is none, is empty, or has a query: the names of files can't be put behind that.
    """
    text = os.fspath(url) if isinstance(url, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise ValueError(f"url must be a path or a URL that is not empty, got {url!r}")
    if "://" in text and "?" in text:
        raise ValueError(f"url must name a folder, got one with a query: {_without_secrets(text)!r}")
    return text


def check_options(url: str, options: Mapping[str, Any]) -> None:
    """Raise TypeError if options for the filesystem can't be for it: local ones take few, and most are mistyped arguments."""
    is_local = ("://" not in url and "::" not in url) or url.startswith(("file://", "local://"))
    if is_local and (unknown := sorted(set(options) - _LOCAL_OPTIONS)):
        raise TypeError(f"unknown arguments {', '.join(unknown)}: local files ({url!r}) take no such storage options")


def require_filesystem(url: str) -> None:
    """Raise, where the URL is written, if there is nothing that can open it.

    Raises:
        ValueError: If its protocol is not known.
        MissingDependencyError: If the package of its protocol is not installed.
    """
    if "://" not in url and "::" not in url:
        return
    import fsspec

    protocol = url.partition("::")[0].partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        raise ValueError(f"url {_without_secrets(url)!r} can't be opened: {error}") from None
    except ImportError as error:
        if protocol in ("s3", "s3a"):
            raise MissingDependencyError("s3fs", "s3") from error
        raise


def _without_secrets(url: str) -> str:
    return re.sub(r"\?.*", "?...", re.sub(r"://[^/@]*@", "://...@", url))


def _make_folder(filesystem: Any, path: str) -> None:
    """Make the folder of a file, where there are folders: in a bucket store it could make a bucket of a mistyped name."""
    protocols = filesystem.protocol
    if not _BUCKETS.intersection((protocols,) if isinstance(protocols, str) else protocols):
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)


def tried(verb: str, where: str, action: Callable[[], T], attempts: int = 5) -> T:
    """What `action` gives, called again after errors of storage that may be gone then, with growing pauses.

    Args:
        verb: What it does, for messages.
        where: To what.
        action: Can be called again.
        attempts: How often it is called at most.

    Raises:
        FileNotFoundError: If it raises that.
        StoreError: If it raises another error, at last.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:  # a part of the path is a file
            raise FileNotFoundError(str(error)) from error
        except Exception as error:
            if not is_transient(error):
                raise StoreError(f"can't {verb} {where}: {_said(error)}") from error
            if attempt == attempts:
                raise StoreError(f"can't {verb} {where}, tried {attempt} times: {_said(error)}") from error
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
