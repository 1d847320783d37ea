"""The command ``verify``: every byte and every row of a dataset."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from squirrel_torch.cli.opening import open_shards, options_of
from squirrel_torch.cli.output import counted, say
from squirrel_torch.cli.work import bar, work_off
from squirrel_torch.errors import CorruptDataError, StoreError
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.shards.entry import FOLDER, ShardEntry
from squirrel_torch.storage.shards.opened import OpenShard, check_size, check_sum, missing

__all__ = ["verify"]

_MOST: Final = 5
"""How many blocks of one shard are told of."""


def verify(arguments: Namespace) -> int:
    """Check every shard, and say what is wrong with each."""
    options = options_of(arguments.storage_option)
    store = open_shards(arguments.url, options)
    manifest = store.manifest
    if manifest.number == 0:
        raise StoreError(f"there is no dataset at {arguments.url!r}: no manifest in {store.url}/manifest")
    files = Files(store.url, options)
    found: list[list[str]] = [[] for _ in manifest.shards]
    total = sum(shard.size for shard in manifest.shards)
    with bar("verifying", "B", total, arguments.quiet) as progress:

        def receive(result: tuple[int, list[str]]) -> None:
            number, problems = result
            found[number] = problems
            progress.update(manifest.shards[number].size)

        work_off(_Check(files), list(enumerate(manifest.shards)), arguments.jobs, receive)
    for problems in found:
        for problem in problems:
            say(problem)
    unlisted = sorted(set(files.names(FOLDER)) - {shard.name for shard in manifest.shards})
    for name in unlisted:
        say(f"{files.path(f'{FOLDER}/{name}')} is not listed: a writer is at work, or one was killed")
    broken = sum(map(bool, found))
    what = f"{counted(manifest.rows, 'row')}, {counted(len(manifest.shards), 'shard')}, {counted(total, 'byte')}"
    say(f"{what}: {counted(broken, 'shard')} broken, {counted(len(unlisted), 'file')} not listed")
    return 1 if broken else 0


@dataclass(frozen=True)
class _Check:
    """Finds what is wrong with a shard, in whatever process."""

    files: Files

    def __call__(self, numbered: tuple[int, ShardEntry]) -> tuple[int, list[str]]:
        number, entry = numbered
        return number, list(self._problems(entry))

    def _problems(self, entry: ShardEntry) -> Iterator[str]:
        name = f"{FOLDER}/{entry.name}"
        where = self.files.path(name)
        try:
            data = _bytes_of(self.files, name)
        except FileNotFoundError:
            yield str(missing(where, entry))
            return
        except (StoreError, OSError) as error:
            yield f"{where} can't be read: {error}"
            return
        yield from _complaints(lambda: check_size(where, len(data), entry))
        if len(data) == entry.size:
            yield from _complaints(lambda: check_sum(where, data, entry))
        in_blocks = _of_blocks(OpenShard(entry, where, lambda start, end: data[start:end], check_blocks=True), entry)
        yield from islice(in_blocks, _MOST)
        if more := sum(1 for _ in in_blocks):
            yield f"{where}: {more} more blocks are broken"


def _bytes_of(files: Files, name: str) -> memoryview:
    """A file as it is in storage now: mapped, if it is local."""
    if not files.is_local:
        return memoryview(files.read(name))
    import pyarrow as pa

    with pa.memory_map(files.path(name)) as mapped:
        return memoryview(mapped.read_buffer())


def _complaints(check: Callable[[], Any]) -> Iterator[str]:
    try:
        check()
    except CorruptDataError as error:
        yield str(error)


def _of_blocks(shard: OpenShard, entry: ShardEntry) -> Iterator[str]:
    keys: set[str] = set()
    for number in range(entry.blocks):
        try:
            block = shard.block(number)
            for _ in block.column.rows(slice(None)):
                pass
        except CorruptDataError as error:
            yield str(error)
            continue
        except Exception as error:  # noqa: BLE001  # whatever it is, the others are still to be checked
            yield f"shard {entry.name}, block {number} can't be decoded: {type(error).__name__}: {error}"
            continue
        own = block.keys or []
        if None in own or len(keys) + len(own) > len(keys := keys.union(own)):
            yield f"shard {entry.name}, block {number}: a key is missing, or there twice"
