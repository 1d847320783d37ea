"""The paths under a URL as a stream."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from squirrel_torch.checks import require_at_least
from squirrel_torch.iterstream.iterable import Source
from squirrel_torch.iterstream.lifetime import Lifetime
from squirrel_torch.iterstream.stage import Context
from squirrel_torch.sharding import Shard
from squirrel_torch.storage.files import require_filesystem

__all__ = ["FilePathGenerator"]


class FilePathGenerator(Source[str]):
    """The paths under a URL, sorted.

    Args:
        url: A folder on any filesystem that fsspec knows. Paths carry the protocol that `url` carries.
        nested: Give the files of all folders below too, each folder's in the place of the folder; links to folders are not
            followed. Otherwise the entries of the folder itself are given, folders among them.
        max_workers: Threads that list folders; None is Python's default. Only with `nested`.
        max_keys: No folders are listed ahead while more paths than this are held in memory.
        max_dirs: At most this many folders are listed ahead.
        **storage_options: Passed to the filesystem of fsspec.

    Raises:
        ValueError: If the protocol of `url` is not known.
        MissingDependencyError: If its package is not installed.
        FileNotFoundError: When the stream starts, if there is nothing at `url`.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        nested: bool = False,
        max_workers: int | None = None,
        max_keys: int = 1_000_000,
        max_dirs: int = 10,
        **storage_options: Any,
    ) -> None:
        super().__init__()
        require_at_least("max_keys", max_keys, 1)
        require_at_least("max_dirs", max_dirs, 1)
        if max_workers is not None:
            require_at_least("max_workers", max_workers, 1)
        self.url: str = os.fspath(url)
        require_filesystem(self.url)
        self.nested = nested
        self.max_workers = max_workers
        self.max_keys = max_keys
        self.max_dirs = max_dirs
        self.storage_options = storage_options

    def _items(self, context: Context, lifetime: Lifetime, shard: Shard) -> Iterator[str]:
        paths = self._paths()
        lifetime.opened(self, 0, paths)
        return self._counted(paths, lifetime, shard)

    def _paths(self) -> Iterator[str]:
        import fsspec

        from squirrel_torch.storage.folders import Folders

        # Made here, in the process that reads: filesystems with connections don't survive a fork.
        filesystem, root = fsspec.core.url_to_fs(self.url, **self.storage_options)
        with_protocol = "://" in self.url or "::" in self.url
        folders = Folders(filesystem, self.max_workers, self.max_keys, self.max_dirs)
        for path in folders.walk(root) if self.nested else (path for path, _ in folders.entries(root)):
            yield filesystem.unstrip_protocol(path) if with_protocol else path

    def _describe(self) -> str:
        return f"FilePathGenerator({self.url!r}, nested={self.nested})"
