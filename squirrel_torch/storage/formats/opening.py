"""Finding and opening files on any filesystem: the only place where the readers of files meet fsspec."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from squirrel_torch.storage.files import check_options, require_filesystem, tried

__all__ = ["FileStream", "Urls", "base_name", "below", "find_files", "open_file", "read_bytes"]

Urls = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A file, a folder, a glob, or several of these."""

_MAGIC = "*?["
_BUFFER = 1 << 20


def find_files(urls: Urls, suffixes: Sequence[str], options: Mapping[str, Any]) -> tuple[str, ...]:
    """The addresses of the files that `urls` names.

    Args:
        urls: A file; a folder, for the files below it that end with one of `suffixes`; a glob, for the files that match;
            or a list of these. What is below a folder or matches a glob is sorted, a list keeps its order. In a folder,
            what is hidden (a file or folder whose name begins with ``.`` or ``_``) is passed over.
        suffixes: In lower case; that of a file may be in upper case.
        options: For the filesystem.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is named twice, or if `urls` is empty.
    """
    given = [urls] if isinstance(urls, str | os.PathLike) else list(urls)
    if not given:
        raise ValueError("no file is named: url must be a URL, a glob, a folder or a list of these, got an empty list")
    found: dict[str, None] = {}
    for url in given:
        for address in _expand(os.fspath(url), tuple(suffixes), options):
            if address in found:
                raise ValueError(f"{address!r} is named twice: its samples would be given twice")
            found[address] = None
    return tuple(found)


def _expand(url: str, suffixes: tuple[str, ...], options: Mapping[str, Any]) -> list[str]:
    filesystem, path = _listing(url, options)
    if filesystem.isfile(path):  # also one whose name looks like a glob
        return [_address(url, filesystem, path)]
    if any(sign in path for sign in _MAGIC):
        entries = filesystem.glob(path, detail=True)
        names = [name for name, entry in entries.items() if entry["type"] == "file"]
        wanted = f"file that matches {url!r}"
    else:
        names = [name for name in _below(filesystem, path) if name.lower().endswith(suffixes)]
        wanted = f"file or folder {url!r}, or nothing in it that ends with one of {', '.join(suffixes)}"
    if not names:
        raise FileNotFoundError(f"there is no {wanted}")
    return [_address(url, filesystem, name) for name in sorted(names)]


def _below(filesystem: Any, root: str) -> list[str]:
    try:
        names = filesystem.find(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    skip = len(root.rstrip("/")) + 1
    return [name for name in names if not any(part.startswith((".", "_")) for part in name[skip:].split("/"))]


def below(url: str | os.PathLike[str], options: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The files below a folder, by their paths inside of it, and the names of the folders right in it; both sorted.

    What is hidden is passed over, as in `find_files`.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    url = os.fspath(url)
    filesystem, root = _listing(url, options)
    if not filesystem.isdir(root):
        raise FileNotFoundError(f"there is no folder {url!r}")
    skip = len(root.rstrip("/")) + 1
    files = {name[skip:]: _address(url, filesystem, name) for name in sorted(_below(filesystem, root))}
    inside = [entry["name"].rstrip("/")[skip:] for entry in filesystem.ls(root, detail=True) if entry["type"] == "directory"]
    return files, sorted(name for name in inside if name and not name.startswith((".", "_")))


def _filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    # Asked for anew each time: fsspec keeps one per process and never hands it on to a fork.
    import fsspec

    check_options(url, options)
    require_filesystem(url)
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    return filesystem, path


def _listing(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    filesystem, path = _filesystem(url, options)
    filesystem.invalidate_cache()  # files that came since it was last listed would be missed
    return filesystem, path


def _address(url: str, filesystem: Any, path: str) -> str:
    """What opens `path` as `url` would have been opened; a plain path, if it is local."""
    head, chained, tail = url.partition("::")
    if chained and "://" not in head:  # a cache in front of a filesystem
        return f"{head}::{_address(tail, filesystem, path)}"
    protocol, separator, _ = head.partition("://")
    if not separator or (protocol in ("file", "local") and not chained):
        return path
    return (path if path.startswith(f"{protocol}://") else f"{protocol}://{path}") + chained + tail


def open_file(address: str, options: Mapping[str, Any]) -> BinaryIO:
    """The file, for reading; it can be sought."""
    filesystem, path = _filesystem(address, options)
    if _is_local(filesystem):
        local: BinaryIO = filesystem.open(path, "rb")
        return local
    file = tried("open", repr(address), lambda: filesystem.open(path, "rb"))
    # Filesystems of archives are not kept by fsspec, and close the archive when they are let go.
    return io.BufferedReader(_PatientStream(file, address, filesystem), _BUFFER)


def _is_local(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


class FileStream(io.RawIOBase):
    """A file as a raw stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def seekable(self) -> bool:
        """As the file."""
        return self._file.seekable()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As the file."""
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        """As the file, where it only reads."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file, once."""
        if not self.closed:
            self._file.close()
        super().close()


class _PatientStream(FileStream):
    """A file that is asked again when storage is flaky, and holds its filesystem."""

    def __init__(self, file: BinaryIO, address: str, filesystem: Any) -> None:
        super().__init__(file)
        self._address = address
        self._filesystem = filesystem

    def readinto(self, buffer: Any, /) -> int:
        place = self._file.tell()

        def read() -> int:
            self._file.seek(place)
            return FileStream.readinto(self, buffer)

        return tried("read", repr(self._address), read)


def read_bytes(address: str, options: Mapping[str, Any]) -> bytes:
    """All that is in the file."""
    filesystem, path = _filesystem(address, options)
    if _is_local(filesystem):
        local: bytes = filesystem.cat_file(path)
        return local
    data: bytes = tried("read", repr(address), lambda: filesystem.cat_file(path))
    return data


def base_name(address: str) -> str:
    """The name of a file, in lower case."""
    return address.partition("::")[0].rstrip("/").rpartition("/")[2].lower()
