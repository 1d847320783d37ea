"""Listing folders of any filesystem, several ahead."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["Folders"]


class Folders:
    """Lists folders.

    Args:
        filesystem: An fsspec filesystem, made in this process.
        max_workers: Threads that list; None is Python's default.
        max_keys: Nothing is listed ahead while more paths than this are held.
        max_dirs: At most this many folders are listed ahead.
    """

    def __init__(self, filesystem: Any, max_workers: int | None, max_keys: int, max_dirs: int) -> None:
        self._filesystem = filesystem
        self._max_workers = max_workers
        self._max_keys = max_keys
        self._max_dirs = max_dirs

    def entries(self, folder: str) -> list[tuple[str, bool]]:
        """The entries of a folder, sorted: the path, and whether it is a folder itself."""
        entries = [(entry["name"], entry["type"] == "directory") for entry in self._filesystem.ls(folder, detail=True)]
        # Object stores list a folder's own marker among its entries; a file is listed as itself.
        markers = {(folder, True), (folder.rstrip("/") + "/", True), (folder.rstrip("/") + "/", False)}
        return sorted(entry for entry in entries if entry not in markers)

    def walk(self, root: str) -> Iterator[str]:
        """The files below a folder, in the order of their paths within each folder."""
        todo = self.entries(root)[::-1]  # the next one last
        listings: dict[str, Future[list[tuple[str, bool]]]] = {}
        with ThreadPoolExecutor(self._max_workers, thread_name_prefix="squirrel_torch") as pool:
            try:
                while todo:
                    self._list_ahead(todo, listings, pool)
                    path, is_folder = todo.pop()
                    if is_folder:
                        listing = listings.pop(path, None)
                        todo += (self.entries(path) if listing is None else listing.result())[::-1]
                    else:
                        yield path
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _list_ahead(
        self, todo: list[tuple[str, bool]], listings: dict[str, Future[list[tuple[str, bool]]]], pool: ThreadPoolExecutor
    ) -> None:
        if not todo[-1][1] or len(todo) > self._max_keys:
            return
        for path, is_folder in todo[-self._max_dirs :][::-1]:
            if is_folder and path not in listings and len(listings) < self._max_dirs:
                listings[path] = pool.submit(self.entries, path)
