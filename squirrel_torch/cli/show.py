"""The commands that look: ``info``, ``head`` and ``sample``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from random import Random
from typing import Any

from squirrel_torch.cli.opening import file_info, format_of, open_source, options_of
from squirrel_torch.cli.output import describe_field, say, say_json, show_sample, to_json
from squirrel_torch.errors import StoreError
from squirrel_torch.storage import ShardStore
from squirrel_torch.storage.formats import FileReader
from squirrel_torch.storage.shards.schema import find_field

__all__ = ["head", "info", "sample"]

_Numbered = tuple[int, Any]


# -- info -------------------------------------------------------------------------------------------------------------


def info(arguments: Namespace) -> int:
    """What is known of a dataset, or of files, without reading them."""
    options = options_of(arguments.storage_option)
    source = open_source(arguments.url, arguments, options)
    told = _of_shards(source) if isinstance(source, ShardStore) else _of_files(source, arguments.url, options)
    lines = told.pop("lines")
    if arguments.json:
        say_json(told)
        return 0
    width = max(map(len, told))
    for name, value in told.items():
        if name != "schema":
            say(f"{name:<{width}}  {_as_text(value)}")
    say("schema")
    for line in lines:
        say(line)
    return 0


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return json.dumps(value) if isinstance(value, dict) else "not known" if value is None else str(value)


def _of_shards(store: ShardStore) -> dict[str, Any]:
    manifest = store.manifest
    shards, field = manifest.shards, manifest.field
    keyed = sum(shard.keyed for shard in shards)
    return {
        "format": "shards",
        "url": store.url,
        "rows": manifest.rows,
        "shards": len(shards),
        "bytes": sum(shard.size for shard in shards),
        "compression": sorted({shard.compression or "none" for shard in shards}),
        "keyed": "none" if not keyed else "all" if keyed == len(shards) else f"{keyed} of {len(shards)} shards",
        "commits": manifest.number,
        "jobs": list(manifest.jobs),
        "metadata": manifest.metadata,
        "schema": None if field is None else field.to_json(),
        "lines": list(describe_field(field)),
    }


def _of_files(reader: FileReader, url: str, storage_options: dict[str, Any]) -> dict[str, Any]:
    field, lines = None, ["  nothing: there is no sample"]
    for first in _rows(reader, 1):
        try:
            field = find_field([first])
            lines = list(describe_field(field))
        except StoreError as error:
            lines = [f"  it can't be kept in shards: {error}"]
    return {
        "format": format_of(reader),
        "url": url,
        "files": len(reader.files),
        "bytes": sum(file_info(path, storage_options)["size"] or 0 for path in reader.files),
        "rows": _length(reader),
        "schema": None if field is None else field.to_json(),
        "lines": [f"{line}" for line in lines],
    }


def _length(source: ShardStore | FileReader) -> int | None:
    """How many rows there are, if that is known without reading them all."""
    try:
        return len(source)
    except TypeError:
        return None


# -- head and sample --------------------------------------------------------------------------------------------------


def head(arguments: Namespace) -> int:
    """The first rows, or some by their numbers."""
    source = open_source(arguments.url, arguments, options_of(arguments.storage_option))
    if arguments.rows is None:
        _show(enumerate(_rows(source, arguments.count)), arguments.json)
    else:
        _show(_by_number(source, arguments.rows), arguments.json)
    return 0


def sample(arguments: Namespace) -> int:
    """Random rows, without replacement."""
    source = open_source(arguments.url, arguments, options_of(arguments.storage_option))
    random, count = Random(arguments.seed), arguments.count
    rows = _length(source)
    if rows is None:
        assert isinstance(source, FileReader)  # noqa: S101  # a dataset has a length
        _show(_reservoir(source, count, random), arguments.json)
    else:
        _show(_by_number(source, random.sample(range(rows), min(count, rows))), arguments.json)
    return 0


def _show(rows: Iterable[_Numbered], as_json: bool) -> None:
    for number, row in rows:
        if as_json:
            say_json({"row": number, "sample": to_json(row)})
            continue
        say(f"row {number}")
        for line in show_sample(row):
            say(line)


def _rows(source: ShardStore | FileReader, count: int) -> Iterator[Any]:
    """The first rows."""
    if isinstance(source, ShardStore):
        yield from source.select(range(min(count, len(source))))
        return
    with closing(_opened(source)) as rows:
        yield from islice(rows, count)


def _opened(reader: FileReader) -> Any:
    """The rows of all files, which can be closed."""
    return (row for path in reader.files for row in _of_file(reader, path))


def _of_file(reader: FileReader, path: str) -> Iterator[Any]:
    rows: Any = reader.read_file(path)
    with closing(rows):
        yield from rows


def _by_number(source: ShardStore | FileReader, rows: Sequence[int]) -> Iterator[_Numbered]:
    """Rows by their numbers, in the order of these."""
    if isinstance(source, ShardStore):
        return zip(rows, source.select(rows), strict=True)
    found = _indexed(source, rows) if _length(source) is not None else _passed(source, rows)
    return ((row, found[row]) for row in rows)


def _indexed(reader: Any, rows: Sequence[int]) -> dict[int, Any]:
    return {row: reader[row] for row in sorted(set(rows))}  # in the order in which they lie


def _passed(reader: FileReader, rows: Sequence[int]) -> dict[int, Any]:
    wanted, found, passed = set(rows), {}, 0
    with closing(_opened(reader)) as samples:
        for passed, row in enumerate(islice(samples, max(rows) + 1), 1):
            if passed - 1 in wanted:
                found[passed - 1] = row
    if missing := wanted - found.keys():
        raise IndexError(f"there is no row {min(missing)}: the files have {passed} rows, from 0 on")
    return found


def _reservoir(reader: FileReader, count: int, random: Random) -> list[_Numbered]:
    """Each set of `count` rows is equally likely, whatever their number is (Vitter's algorithm R)."""
    kept: list[_Numbered] = []
    with closing(_opened(reader)) as samples:
        for number, row in enumerate(samples):
            if number < count:
                kept.append((number, row))
            elif (place := random.randrange(number + 1)) < count:
                kept[place] = (number, row)
    return kept
