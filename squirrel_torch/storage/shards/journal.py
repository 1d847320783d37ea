"""What a job with a name has written, and goes on from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from squirrel_torch.checksum import checksum_of
from squirrel_torch.errors import CorruptDataError, StoreError
from squirrel_torch.sharding import Shard
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry
from squirrel_torch.storage.shards.field import field_from_json
from squirrel_torch.storage.shards.manifest import entry_from_json, entry_to_json, parse_json

__all__ = ["Journal"]

_JOB: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_JOURNALS: Final = "writing"


class Journal:
    """What a job with a name has written and not committed yet: it goes on from there when it is started again.

    Args:
        files: The folder of the dataset.
        job: Its name.
        share: Which of how many writers this is. A job is resumed by as many as have begun it.

    Raises:
        ValueError: If the name can't be one.
    """

    def __init__(self, files: Files, job: str, share: Shard) -> None:
        if not isinstance(job, str) or _JOB.fullmatch(job) is None:
            raise ValueError(f"the name of a job must be letters, digits, '.', '_' and '-', at most 100, got {job!r}")
        self._files = files
        self.job = job
        self._share = share
        self._folder = f"{_JOURNALS}/{job}/{share.index}-of-{share.count}"
        self.marks: dict[str, tuple[str, ...]] = {}
        """What each origin that is done is known by."""

    def add(self, origin: str, entries: Sequence[ShardEntry], marks: Sequence[str] = ()) -> None:
        """Remember that what `origin` names, and is known by `marks`, has been written as these shards."""
        told = [{**entry_to_json(entry), "field": entry.field.to_json()} for entry in entries]
        content = json.dumps({"origin": origin, "marks": list(marks), "shards": told}).encode()
        self._files.write(f"{self._folder}/{checksum_of(origin, 128)}.json", content)

    def done(self) -> dict[str, list[ShardEntry]]:
        """What has been written, by its origin. A shard that is not there as it was written is none.

        Raises:
            StoreError: If the job was begun by another number of writers.
        """
        self._check_share()
        done = {}
        for name in self._files.names(self._folder):
            if name.endswith(".json") and not name.startswith("."):
                origin, entries, marks = self._read(f"{self._folder}/{name}")
                if all(self._is_there(entry) for entry in entries):
                    done[origin] = entries
                    self.marks[origin] = marks
        return done

    def _check_share(self) -> None:
        marker = f"{_JOURNALS}/{self.job}/writers.json"
        own = json.dumps({"writers": self._share.count}).encode()
        if not self._files.create(marker, own) and self._files.read(marker) != own:
            raise StoreError(
                f"the job {self.job!r} was begun by another number of writers than {self._share.count}: "
                f"{self._files.read(marker).decode(errors='replace')!r}; resume with as many, or take a new name"
            )

    def _read(self, name: str) -> tuple[str, list[ShardEntry], tuple[str, ...]]:
        where = self._files.path(name)
        told = parse_json(self._files.read(name), where)
        try:
            entries = []
            for one in told["shards"]:
                field = field_from_json(one["field"])
                entries.append(entry_from_json(one, [field]))
            return str(told["origin"]), entries, tuple(map(str, told["marks"]))
        except (KeyError, TypeError, AttributeError, IndexError, CorruptDataError) as error:
            raise CorruptDataError(f"{where} is no journal of a writing job: {error}") from error

    def _is_there(self, entry: ShardEntry) -> bool:
        try:
            return self._files.size(f"{FOLDER}/{entry.name}") == entry.size
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Forget it all: it has been committed."""
        for name in self._files.names(self._folder):
            self._files.remove(f"{self._folder}/{name}")
        if self._share.index == 0:
            self._files.remove(f"{_JOURNALS}/{self.job}/writers.json")
        if self._files.is_local:
            for folder in (self._folder, f"{_JOURNALS}/{self.job}"):
                with suppress(OSError):  # other ranks have something in it still
                    Path(self._files.path(folder)).rmdir()
