"""What a dataset is: its shards, listed in a file that is written once for each commit.

The manifest of commit n is ``manifest/<n>.json``; the one with the highest number holds. A file that it does not list does not
exist. It is written only if there is none of that number yet, so of two writers at a time one has to look again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from squirrel_torch.checksum import checksum_of
from squirrel_torch.errors import CorruptDataError, DatasetExistsError, StoreError
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry
from squirrel_torch.storage.shards.field import Field, field_from_json
from squirrel_torch.storage.shards.unify import unify
from squirrel_torch.storage.shards.written import COMPRESSIONS

__all__ = ["MODES", "Manifest", "commit", "entry_from_json", "entry_to_json", "latest", "numbered", "parse_json"]

MODES: Final = ("create", "append", "overwrite")
_FORMAT: Final = "squirrel_torch shards"
_VERSION: Final = 1
_MANIFESTS: Final = "manifest"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_NUMBERED: Final = re.compile(r"(\d{8})\.json")
_MOST_BYTES: Final = 1 << 29
_MOST_ROWS: Final = 1 << 48
_MOST_BLOCK_ROWS: Final = 1 << 20  # rows may take no bytes in a file, and do so in memory
_COMMITS: Final = 100


@dataclass(frozen=True)
class Manifest:
    """A dataset as one commit left it.

    Args:
        number: Of the commit, from 1 on; 0 is the dataset that is not there yet.
        shards: In the order of their rows.
        metadata: What the user wants to keep with it.
        jobs: The names of the jobs that have written it, as far as they had names.
    """

    number: int = 0
    shards: tuple[ShardEntry, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    jobs: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many samples it has."""
        return sum(shard.rows for shard in self.shards)

    @property
    def field(self) -> Field | None:
        """What its samples are made of; None if it has none.

        Raises:
            SchemaError: If its shards do not agree.
        """
        return common_field(self.shards)

    def to_bytes(self) -> bytes:
        """The file."""
        fields = list(dict.fromkeys(shard.field for shard in self.shards))
        places = {one: place for place, one in enumerate(fields)}
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "number": self.number,
            "rows": self.rows,
            "metadata": self.metadata,
            "jobs": list(self.jobs),
            "schemas": [one.to_json() for one in fields],
            "shards": [entry_to_json(shard, places[shard.field]) for shard in self.shards],
        }
        return json.dumps({"checksum": _sum(content), "content": content}, allow_nan=False).encode()

    @staticmethod
    def from_bytes(data: bytes, number: int, where: str) -> Manifest:
        """The manifest that a file holds.

        Raises:
            CorruptDataError: If the file is not what `to_bytes` has written.
            StoreError: If a later version of the package has written it.
        """
        told = parse_json(data, where)
        content = told.get("content") if isinstance(told, dict) and set(told) == {"checksum", "content"} else None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise CorruptDataError(f"{where} is not a manifest of shards")
        if content.get("version") != _VERSION:
            raise StoreError(
                f"{where} has version {content.get('version')!r}, this is for version {_VERSION}: update the package"
            )
        if told["checksum"] != _sum(content):
            raise CorruptDataError(f"{where} has another checksum than when it was written: its bytes have changed")
        try:
            return _read_content(content, number)
        except (CorruptDataError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CorruptDataError(f"{where} is no sound manifest: {type(error).__name__}: {error}") from error


def _sum(content: dict[str, Any]) -> str:
    return checksum_of(json.dumps(content, sort_keys=True, separators=(",", ":")), 128)


def common_field(shards: Sequence[ShardEntry]) -> Field | None:
    """What the samples of all `shards` are made of; None if there is none.

    Raises:
        SchemaError: If they do not agree.
    """
    known: Field | None = None
    names: dict[Field, str] = {}
    for shard in shards:
        names.setdefault(shard.field, shard.name)
    for own, name in names.items():
        known = own if known is None else unify(known, own, f"shard {name}", others="in other shards")
    return known


def parse_json(data: bytes, where: str) -> Any:
    """Strict JSON: no key twice, no NaN, of a sensible size.

    Raises:
        CorruptDataError: If it is none.
    """
    if len(data) > _MOST_BYTES:
        raise CorruptDataError(f"{where} has {len(data)} bytes, at most {_MOST_BYTES} are read")
    try:
        return json.loads(data, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{where} is not sound JSON: {error}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return told


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def entry_to_json(entry: ShardEntry, schema: int = 0) -> dict[str, Any]:
    """A shard as plain JSON types; `schema` is the place of its field in the manifest."""
    return {
        "name": entry.name,
        "rows": entry.rows,
        "bytes": entry.size,
        "xxh3": entry.checksum,
        "schema": schema,
        "block_rows": entry.block_rows,
        "ends": list(entry.ends),
        "sums": "".join(entry.sums),
        "keyed": entry.keyed,
        "compression": entry.compression,
    }


def entry_from_json(told: Any, fields: Sequence[Field]) -> ShardEntry:
    """The shard that `entry_to_json` told of.

    Raises:
        CorruptDataError: If its figures can't be.
    """
    if not isinstance(told, dict):
        raise CorruptDataError(f"a shard must be an object, got {str(told)[:80]!r}")
    rows, size, schema, block_rows = (_whole(told, name) for name in ("rows", "bytes", "schema", "block_rows"))
    name, checksum, ends, sums = told["name"], told["xxh3"], told["ends"], told["sums"]
    sound = (
        isinstance(name, str)
        and _NAME.fullmatch(name) is not None
        and isinstance(checksum, str)
        and re.fullmatch("[0-9a-f]{32}", checksum) is not None
        and isinstance(sums, str)
        and re.fullmatch("([0-9a-f]{16})+", sums) is not None
        and schema < len(fields)
        and rows >= 1
        and 1 <= block_rows <= _MOST_BLOCK_ROWS
        and type(told["keyed"]) is bool
        and told["compression"] in COMPRESSIONS
    )
    if not sound:
        raise CorruptDataError(f"not a shard: {str(told)[:200]!r}")
    blocks = len(sums) // 16
    rising = isinstance(ends, list) and all(type(end) is int for end in ends) and ends == sorted(set(ends))
    if not rising or len(ends) != blocks + 1 or ends[0] < 0 or ends[-1] > size or blocks != -(-rows // block_rows):
        raise CorruptDataError(f"the blocks of shard {name!r} don't fit its {rows} rows and {size} bytes")
    parted = tuple(sums[place : place + 16] for place in range(0, len(sums), 16))
    return ShardEntry(
        name, rows, size, checksum, fields[schema], block_rows, tuple(ends), parted, told["keyed"], told["compression"]
    )


def _whole(told: dict[str, Any], name: str) -> int:
    value = told[name]
    if type(value) is not int or not 0 <= value <= _MOST_ROWS:
        raise CorruptDataError(f"{name} must be a whole number from 0 to {_MOST_ROWS}, got {str(value)[:40]!r}")
    return value


def _read_content(content: dict[str, Any], number: int) -> Manifest:
    fields = [field_from_json(told) for told in content["schemas"]]
    shards = tuple(entry_from_json(told, fields) for told in content["shards"])
    manifest = Manifest(number, shards, content["metadata"], tuple(content["jobs"]))
    names = {shard.name for shard in shards}
    if len(names) != len(shards):
        raise CorruptDataError("a shard is listed twice")
    if content["number"] != number or _whole(content, "rows") != manifest.rows:
        raise CorruptDataError("its number or its rows are not those of its shards")
    if not isinstance(manifest.metadata, dict) or not all(isinstance(job, str) for job in manifest.jobs):
        raise CorruptDataError("its metadata or jobs are not of the right type")
    return manifest


def latest(files: Files) -> Manifest:
    """The manifest that holds now; one without shards and with number 0 if there is no dataset.

    Raises:
        CorruptDataError: If it is not what was written.
    """
    numbers = [int(match[1]) for name in files.names(_MANIFESTS) if (match := _NUMBERED.fullmatch(name))]
    return numbered(files, max(numbers)) if numbers else Manifest()


def numbered(files: Files, number: int) -> Manifest:
    """The manifest of commit `number`.

    Raises:
        StoreError: If it can't be read.
        FileNotFoundError: If there is none.
        CorruptDataError: If it is not what was written.
    """
    name = f"{_MANIFESTS}/{number:08d}.json"
    return Manifest.from_bytes(files.read(name), number, files.path(name))


def commit(
    files: Files,
    mode: str,
    shards: Sequence[ShardEntry],
    metadata: dict[str, Any] | None = None,
    job: str | None = None,
    own: int | None = None,
    check: Callable[[Manifest], None] | None = None,
) -> Manifest:
    """Add `shards` to the dataset, or make them the dataset: all at once.

    Args:
        files: The folder of the dataset.
        mode: "create", "append" or "overwrite".
        shards: What has been written.
        metadata: Takes the place of what was kept; None leaves it.
        job: The name of the writing job, if it has one. A job is committed once.
        own: The number of the commit that the same writer has made before: it goes on from there, whatever the mode.
        check: Raises if the shards can't be added to what is there.

    Returns:
        What holds now.

    Raises:
        DatasetExistsError: If there is a dataset already, with mode "create", or if the job has been committed.
        SchemaError: If the shards don't agree with those that are there.
    """
    for _ in range(_COMMITS):
        before = latest(files)
        check_mode(files, mode, before, job, own)
        # Once it has taken the dataset's place it goes on, also if others have added to it in between.
        kept = () if mode == "overwrite" and own is None else before.shards
        new = Manifest(
            before.number + 1,
            (*kept, *shards),
            before.metadata if metadata is None else metadata,
            (*before.jobs, *([job] if job is not None else [])),
        )
        common_field(new.shards)
        if check is not None and kept:
            check(before)
        if files.create(f"{_MANIFESTS}/{new.number:08d}.json", new.to_bytes()):
            for shard in () if kept else before.shards:
                files.remove(f"{FOLDER}/{shard.name}")
            return new
    raise StoreError(f"{files.path('')}: other writers came first {_COMMITS} times")


def check_mode(files: Files, mode: str, before: Manifest, job: str | None, own: int | None) -> None:
    """Raise DatasetExistsError if a writer may not go on from the dataset as it is."""
    if job is not None and job in before.jobs:
        raise DatasetExistsError(f"the job {job!r} has been committed to {files.path('')} already; give a new job another name")
    if mode == "create" and before.number and own != before.number:
        raise DatasetExistsError(
            f"there is a dataset of {before.rows} rows at {files.path('')} already: give mode='append' or mode='overwrite'"
        )
