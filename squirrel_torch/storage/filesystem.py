"""Samples as files of a folder, one each, on any filesystem."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from squirrel_torch.checks import require_at_least
from squirrel_torch.errors import CorruptDataError, SampleNotFoundError, StoreError
from squirrel_torch.storage.codecs import codec_for
from squirrel_torch.storage.files import Files, folder_url
from squirrel_torch.storage.store import Store, check_key

__all__ = ["FilesystemStore"]

_MOST_NAME_BYTES: Final = 255
_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


class FilesystemStore(Store):
    """Samples as files of one folder, one each, on any filesystem that fsspec knows.

    What one process has set is there for all others. A sample that is set under a key that is there already is replaced,
    at once: readers see the old or the new one, and nothing else. On local disks a sample has reached the disk when `set`
    returns; a process that is killed there may leave a file ".*.tmp" behind, which is no sample.

    A key may be any text: the file is named after it, with all but ASCII letters, digits, "_", "-", "~" and dots that are not
    at the beginning written as "%" and the hexadecimal digits of their UTF-8 bytes. Files that are named otherwise are no
    samples and stay as they are. Where the filesystem takes "A" and "a" for one name, so does the store for keys.

    The order of the samples is that of their keys, sorted. There is no index: `keys()`, `len` and iteration list the folder.
    For many samples, and for fast reading, there is `ShardStore`.

    Args:
        url: The folder, as a path or as "s3://bucket/folder" and the like. It is made when the first sample is set.
        format: "msgpack", or "json" for files that people can read (a third larger where samples are arrays, and ten times
            as slow), or "raw" for samples that are bytes already, kept as they are in files "*.bin".
        attempts: How often a read or write of a file is tried, with growing pauses, before it is an error.
        **storage_options: Passed to the filesystem of fsspec. They may hold secrets, and are in no message.

    Raises:
        ValueError: If there is no such format, or the URL is empty.

    Example:
        >>> import tempfile
        >>> store = FilesystemStore(tempfile.mkdtemp(), format="json")
        >>> store.set({"label": 3, "size": (4, 5)}, key="cats/tom")
        'cats/tom'
        >>> store.get("cats/tom"), list(store.keys())
        ({'label': 3, 'size': (4, 5)}, ['cats/tom'])
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        format: str = "msgpack",  # noqa: A002  # what it is for the reader of the line that makes a store
        attempts: int = 5,
        **storage_options: Any,
    ) -> None:
        location = folder_url(url)
        require_at_least("attempts", attempts, 1)
        self._codec = codec_for(format)
        self._files = _Files(location, storage_options, attempts)
        if self._files.is_memory:
            self.shared = False  # this memory is that of one process

    @property
    def url(self) -> str:
        """Where it is."""
        return self._files.path("")

    def set(self, value: Any, key: str | None = None) -> str:
        """Keep a sample; see `Store.set`. One that is under `key` already is replaced.

        Raises:
            SampleEncodingError: If the sample holds something that can't be kept.
            StoreError: If the key can't be one, or makes a file name of more than 255 bytes; if the file can't be written, as
                on a full disk. What was under the key is still there then.
        """
        data = self._codec.encode(value)
        key = self._new_key() if key is None else check_key(key)
        name = self._name(key)
        if len(name) > _MOST_NAME_BYTES:
            raise StoreError(
                f"the key {_SHORT.repr(key)} makes a file name of {len(name)} bytes, the limit is {_MOST_NAME_BYTES} bytes: "
                "each character other than ASCII letters, digits and _-~. counts three for each of its UTF-8 bytes"
            )
        try:
            self._files.write(name, data)
        except (StoreError, OSError) as error:
            raise StoreError(f"can't keep {key!r} in {self!r}: {error}") from (error.__cause__ or error)
        return key

    def get(self, key: str) -> Any:
        """The sample under `key`; see `Store.get`.

        Raises:
            SampleNotFoundError: If there is none.
            CorruptDataError: If the file holds something else.
            StoreError: If the file can't be read.
        """
        data = self._read(key)
        try:
            return self._codec.decode(data)
        except CorruptDataError as error:
            raise CorruptDataError(f"the file of {key!r} in {self!r} is not what was written: {error}") from error

    def __delitem__(self, key: str) -> None:
        """Remove the sample under `key`.

        Raises:
            SampleNotFoundError: If there is none.
            StoreError: If the file can't be removed.
        """
        if key not in self:
            raise self._not_found(key)
        self._files.remove(self._name(key))

    def __contains__(self, key: object) -> bool:
        return self._can_be(key) and self._files.is_file(self._name(str(key)))

    def __len__(self) -> int:
        return sum(1 for _ in self._iterate_keys())

    def _where(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"FilesystemStore({self.url!r}, format={self._codec.name!r})"

    def _iterate_keys(self) -> Iterator[str]:
        return iter(sorted(key for name in self._files.names("") if (key := self._key(name)) is not None))

    def _read(self, key: str) -> bytes:
        if not self._can_be(key):
            raise self._not_found(key)
        try:
            return self._files.read(self._name(key))
        except FileNotFoundError:
            raise self._not_found(key) from None
        except StoreError as error:
            if isinstance(error.__cause__, IsADirectoryError):
                raise self._not_found(key) from None
            raise

    def _not_found(self, key: object) -> SampleNotFoundError:
        return SampleNotFoundError(f"no sample under {_SHORT.repr(key)} in {self!r}")

    def _can_be(self, key: object) -> bool:
        """Whether a sample could be under `key`."""
        return isinstance(key, str) and key != "" and len(self._name(key)) <= _MOST_NAME_BYTES

    def _name(self, key: str) -> str:
        """The name of the file of `key`, in ASCII."""
        name = quote(key, safe="", errors="surrogatepass")
        # A leading dot would be a hidden file, the folder itself, or the one above.
        return ("%2E" + name[1:] if name[0] == "." else name) + self._codec.suffix

    def _key(self, name: str) -> str | None:
        """The key of the file `name`, None if that is not one of ours."""
        try:
            key = unquote(name.removesuffix(self._codec.suffix), errors="surrogatepass")
        except UnicodeDecodeError:
            return None
        return key if key and self._name(key) == name else None


class _Files(Files):
    def is_file(self, name: str) -> bool:
        """Whether there is a file of that name."""

        def is_file() -> bool:
            if self.is_local:
                return Path(self.path(name)).is_file()
            filesystem, root = self._filesystem()
            filesystem.invalidate_cache(root)
            return bool(filesystem.info(f"{root}/{name}")["type"] == "file")

        try:
            return self._tried("ask for", name, is_file)
        except FileNotFoundError:
            return False
