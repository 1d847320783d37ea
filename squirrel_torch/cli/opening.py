"""From what stands on the command line to a dataset or files."""

from __future__ import annotations

import json
import os
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Final

from squirrel_torch.errors import StoreError
from squirrel_torch.storage import ShardStore
from squirrel_torch.storage.files import Files
from squirrel_torch.storage.formats import FORMATS, FileReader, open_files

__all__ = ["SHARDS", "file_info", "format_of", "is_inside", "key_value", "open_shards", "open_source", "options_of"]

SHARDS: Final = "shards"
"""What a dataset of this package is called where the names of formats stand."""

_OWN: Final = frozenset(signature(ShardStore).parameters) - {"storage_options"}
_SHARD: Final = re.compile(r"[0-9a-f]{20}\.arrow")
_TYPES: Final[Mapping[str, type]] = {"int": int, "float": float, "bool": bool, "str": str}


def key_value(text: str) -> tuple[str, Any]:
    """An option written as ``key=value``; the value is JSON where it can be, and text else.

    Raises:
        ArgumentTypeError: If it is none. What stands there may be a secret and is not repeated.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ArgumentTypeError("must be written as key=value")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def options_of(*given: Sequence[tuple[str, Any]] | None) -> dict[str, Any]:
    """Options as a dict; later ones take the place of earlier ones."""
    return {key: value for pairs in given for key, value in pairs or ()}


def open_shards(url: str, storage_options: Mapping[str, Any], **options: Any) -> ShardStore:
    """A dataset in shards, which may not be there yet.

    Raises:
        ValueError: If one of `storage_options` is none of the filesystem's.
    """
    if own := sorted(_OWN & set(storage_options)):
        raise ValueError(f"{own[0]!r} is no storage option: these are passed to the filesystem; see --help")
    return ShardStore(url, **options, **storage_options)


def open_source(
    url: str, arguments: Namespace, storage_options: Mapping[str, Any], verify: str = "block"
) -> ShardStore | FileReader:
    """What is at `url`: a dataset in shards, or files of another format.

    Args:
        url: A folder, a file or a glob.
        arguments: With `format`, `option` and `cache`.
        storage_options: For the filesystem.
        verify: How shards are verified.

    Raises:
        FileNotFoundError: If there is nothing.
        StoreError: If its format can't be seen, or a dataset was begun and never committed.
        ValueError: If an argument is not for what is there.
    """
    options = options_of(arguments.option)
    if arguments.format == SHARDS or (arguments.format is None and _has_manifest(url, storage_options)):
        if options:
            raise ValueError(
                f"--option {next(iter(options))}=... is for files of other formats; {url!r} is a dataset in shards"
            )
        store = open_shards(url, storage_options, verify=verify, cache=arguments.cache)
        if store.manifest.number == 0:
            raise StoreError(f"there is no dataset at {url!r}: no manifest in {store.url}/manifest")
        return store
    if arguments.cache is not None:
        raise ValueError(f"--cache is for datasets in shards, and there is none at {url!r}: leave it out")
    if isinstance(types := options.get("types"), dict):  # of CSV
        options["types"] = {name: _type_of(kind) for name, kind in types.items()}
    return open_files(url, arguments.format, storage_options, **options)


def _type_of(name: Any) -> type:
    if name not in _TYPES:
        raise ValueError(f"a type in --option types={{...}} must be one of {', '.join(_TYPES)}, got {name!r}")
    return _TYPES[name]


def _has_manifest(url: str, storage_options: Mapping[str, Any]) -> bool:
    files = Files(url, dict(storage_options))
    if not Path(files.url).is_dir() if files.is_local else _names_files(url):
        return False
    if any(name.endswith(".json") for name in files.names("manifest")):
        return True
    if _is_begun(files):
        raise StoreError(
            f"the dataset at {url!r} was begun and never committed: convert to it again, with the same --resume if it had one"
        )
    return False


def _is_begun(files: Files) -> bool:
    """Whether there are shards, and nothing else where they would be."""
    names = [name for name in files.names("shards") if not name.startswith(".")]
    return bool(names) and all(_SHARD.fullmatch(name) for name in names)


def _names_files(url: str) -> bool:
    """Whether `url` is a glob, or the name of a file as other formats have it."""
    name = url.partition("::")[0].rstrip("/").rpartition("/")[2].lower()
    suffixes = tuple(suffix for reader in FORMATS.values() for suffix in reader.suffixes)
    return any(sign in url for sign in "*?[") or name.endswith(suffixes)


def format_of(reader: FileReader) -> str:
    """The name of the format that a reader is for."""
    return next(name for name, kind in FORMATS.items() if kind is type(reader))


def file_info(path: str, storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """What the filesystem knows of a file, its size among it."""
    import fsspec

    filesystem, name = fsspec.core.url_to_fs(path, **storage_options)
    told: dict[str, Any] = filesystem.info(name)
    return told


def is_inside(url: str, folder: str) -> bool:
    """Whether `url` is in `folder`, as far as their names say."""
    if "://" not in url and "://" not in folder:
        url, folder = os.path.abspath(url), os.path.abspath(folder)  # noqa: PTH100  # text, as URLs are
    return f"{url.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")
