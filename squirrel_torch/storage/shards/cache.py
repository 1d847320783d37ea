"""Copies of remote shards on a local disk, shared by all processes of a machine.

Who may do what is settled by locks of the kernel (flock), which a process that dies gives back:

* a lock of the shard's name, while it is looked up and downloaded: nobody downloads what another one is downloading;
* a shared lock on the copy, while it is read: whoever needs room takes only copies that it can lock for itself alone;
* a lock on the temporary file, while it is written: one that can be locked is left over from a process that is gone.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from squirrel_torch.errors import CorruptDataError, StoreError
from squirrel_torch.storage.shards.entry import ShardEntry
from squirrel_torch.storage.shards.opened import OpenShard, check_size, check_sum, open_local

__all__ = ["ShardCache"]

_log = logging.getLogger(__name__)
_TEMPORARY: Final = "tmp-"
_OURS: Final = re.compile(r"[0-9a-f]{32}-\d+\.arrow|tmp-[0-9a-f]{32}")
"""Whatever else lies in the folder is not counted and not touched."""


class ShardCache:
    """A folder of copies.

    Args:
        folder: Made if it is not there, for this user alone.
        limit: Bytes that the copies may take together; None is no limit.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int | None) -> None:
        if not os.fspath(folder) or "://" in str(folder):
            raise ValueError(f"cache must be a folder on a local disk, got {folder!r}")
        self._folder = Path(folder).expanduser().absolute()
        self._limit = limit
        self._verified: set[tuple[str, int]] = set()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_verified": set()}

    def fits(self, size: int) -> bool:
        """Whether so many bytes can all be copied."""
        return self._limit is None or size <= self._limit

    @property
    def most_held(self) -> float:
        """Bytes of copies that a process may keep from being removed when it does not read them any more.

        A small part of the limit: there are other processes, and all of them together must leave room.
        """
        return float("inf") if self._limit is None else self._limit / 32

    def open(self, entry: ShardEntry, download: Callable[[], bytes], verify: str) -> OpenShard | None:
        """A shard, read from its copy, which is made if need be; None if there is no room for one.

        A copy whose bytes have changed is fetched again, once.

        Raises:
            CorruptDataError: If what is downloaded is not what the manifest lists.
            StoreError: If it can't be downloaded.
        """
        if self._limit is not None and entry.size > self._limit:
            return None
        try:
            # Parents get the usual mode, so the folder is made by itself.
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / "locks").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(f"can't use the cache {self._folder}: {error}") from error
        path = self._folder / f"{entry.checksum}-{entry.size}.arrow"
        with _locked(self._folder / "locks" / entry.checksum[:2]):
            for is_last in (False, True):
                descriptor = self._copy(path, entry, download)
                if descriptor is None:
                    return None
                try:
                    return self._opened(path, descriptor, entry, verify)
                except CorruptDataError:
                    path.unlink(missing_ok=True)
                    if is_last:
                        raise
        raise AssertionError

    def _copy(self, path: Path, entry: ShardEntry, download: Callable[[], bytes]) -> int | None:
        """A descriptor of a copy that is there or is made now; None if there can't be one."""
        try:
            held = self._hold(path)
            return self._fetch(path, entry, download) if held is None else held
        except OSError as error:
            _log.warning("shard %s is read without the cache %s: %s", entry.name, self._folder, error)
            return None

    def _opened(self, path: Path, descriptor: int, entry: ShardEntry, verify: str) -> OpenShard:
        """A copy, verified as a whole when it is opened for the first time."""
        release = _Release(descriptor)
        known = (path.name, os.fstat(descriptor).st_ino)
        try:
            shard = open_local(str(path), entry, "never" if verify == "never" or known in self._verified else "shard", release)
        except CorruptDataError:
            release()
            raise
        self._verified.add(known)
        return shard

    def _hold(self, path: Path) -> int | None:
        """A descriptor of a copy that keeps it from being removed; None if there is no copy."""
        import fcntl

        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link, which nobody of us has made: it is replaced
                return None
            raise
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(descriptor)  # used now: the others go first
        return descriptor

    def _fetch(self, path: Path, entry: ShardEntry, download: Callable[[], bytes]) -> int | None:
        import fcntl

        data = download()
        check_size(entry.name, len(data), entry)
        check_sum(entry.name, data, entry)
        temporary = self._folder / f"{_TEMPORARY}{uuid4().hex}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with _locked(self._folder / "locks" / "room"):
                has_room = self._make_room(entry.size)
                if has_room:
                    os.ftruncate(descriptor, entry.size)  # counted from now on
            if has_room:
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(data)
                with _locked(self._folder / "locks" / "room"):
                    temporary.replace(path)  # not while somebody counts: it would be missed under both names
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                return descriptor
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        return None

    def _make_room(self, size: int) -> bool:
        """Remove copies, the one that was used longest ago first, and never one that is in use."""
        if self._limit is None:
            return True
        copies = []
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):
                if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    copies.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        left = sum(copy[1] for copy in copies) + size - self._limit
        # What dead processes have left behind goes before all copies.
        for _, taken, path in sorted(copies, key=lambda copy: (not copy[2].name.startswith(_TEMPORARY), copy[0])):
            if left > 0 or path.name.startswith(_TEMPORARY):
                left -= taken if _removed(path) else 0
        return left <= 0


_held: weakref.WeakSet[_Release] = weakref.WeakSet()


class _Release:
    """Gives a descriptor back, once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        _held.add(self)

    def __call__(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        with suppress(OSError):
            self()


def _removed(path: Path) -> bool:
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    held = _Release(descriptor)  # so that a child that is forked meanwhile does not keep it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        held()


def _let_go() -> None:
    # A lock belongs to all processes that have inherited its descriptor: a child that reads nothing would keep copies in use.
    for release in list(_held):
        release()


os.register_at_fork(after_in_child=_let_go)
