"""Shards that squirrel-core has written."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from typing import Any, ClassVar, Final, Literal

from squirrel_torch.errors import StoreError
from squirrel_torch.storage.formats.inflate import MAX_RATIO, MAX_SAMPLE_BYTES, check_limits, open_inflated
from squirrel_torch.storage.formats.opening import Urls
from squirrel_torch.storage.formats.plain import array_of, json_decoder, plain_dtype
from squirrel_torch.storage.formats.reader import FileReader, Rows, corrupt
from squirrel_torch.storage.formats.text import json_rows, lines_of

__all__ = ["Serializer", "SquirrelShards"]

Serializer = Literal["msgpack", "json"]
"""What a shard is written with: squirrel-core's MessagepackSerializer or JsonSerializer."""

_CHUNK: Final = 256 << 10


class SquirrelShards(FileReader):
    """Samples of the shards of a `SquirrelStore` of squirrel-core, in the order of the names of the shards.

    Both of its serializers are known. Of msgpack, lists and tuples come as tuples, arrays and numbers of numpy as such
    (writable); of JSON as they were written, objects of ``data``, ``type`` and ``shape`` as arrays. Arrays of objects or
    records are refused: squirrel-core has them made by pickle, which can run any code.

    Readers have no length. All shards together read a file as often as there are shards, but each decodes only its own
    samples.

    Args:
        url: A file, a glob, a folder (its ``*.gz``), or a list of these; on any filesystem that fsspec knows.
        serializer: What the samples are written with; by default it is seen in the first byte of each file.
        max_sample_bytes: A sample with more bytes is an error. In memory it may be up to about 64 times as large, if it is
            made of nothing but empty containers.
        max_ratio: A file that holds more than this many times its own size, and more than 64 MiB, is an error.
        **storage_options: For the filesystem.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is named twice, or an argument is not as said.
        CorruptDataError: While reading, if a shard is cut off or changed, if a value is not what it says it is, and if a shard
            is empty: squirrel-core leaves such a one where it failed to write.
        StoreError: While reading, at arrays of objects or records, or if the serializer has to be said.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".gz",)

    def __init__(
        self,
        url: Urls,
        serializer: Serializer | None = None,
        max_sample_bytes: int = MAX_SAMPLE_BYTES,
        max_ratio: float = MAX_RATIO,
        **storage_options: Any,
    ) -> None:
        check_limits(max_ratio, max_sample_bytes)
        if serializer not in ("msgpack", "json", None):
            raise ValueError(f"serializer must be 'msgpack' or 'json', got {serializer!r}")
        self._serializer = serializer
        self._max_sample_bytes = max_sample_bytes
        self._max_ratio = max_ratio
        super().__init__(url, storage_options)

    def _options(self) -> dict[str, Any]:
        return {} if self._serializer is None else {"serializer": self._serializer}

    def _rows(self, path: str, start: int, step: int) -> Rows:
        with open_inflated(path, self._storage_options, self._max_ratio) as file:
            first = file.peek(1)[:1]
            if not first:
                raise corrupt(
                    path, "byte 0", "it holds no sample: squirrel-core leaves such a shard where it failed to write one"
                )
            if (self._serializer or _seen(path, first)) == "msgpack":
                return (yield from self._of_msgpack(file, path, start, step))
            lines = lines_of(file, path, self._max_sample_bytes)
            return (yield from json_rows(lines, path, json_decoder(_from_json), start, step))

    def _of_msgpack(self, file: BufferedReader, path: str, start: int, step: int) -> Rows:
        import msgpack

        # The first walk over a sample makes nothing of it. What it announces is all there after that, so that the second
        # allocates no more than the sample's bytes account for.
        walker = msgpack.Unpacker(max_buffer_size=self._max_sample_bytes + 2 * _CHUNK)
        row, held, base, fed = -1, bytearray(), 0, 0
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            walker.feed(chunk)
            held += chunk
            fed += len(chunk)
            done = 0
            for end in _ends(walker, path, row):
                row += 1
                self._check_size(end - base - done, path, row)
                if row % step == start:
                    yield _sample(bytes(held[done : end - base]), path, row)
                done = end - base
            del held[:done]
            base += done
            self._check_size(len(held), path, row + 1)
        if base != fed:
            raise corrupt(path, f"sample {row + 1}", "it is cut off: the shard ends within it")
        return row + 1

    def _check_size(self, size: int, path: str, row: int) -> None:
        if size > self._max_sample_bytes:
            raise corrupt(path, f"sample {row}", f"it has more than max_sample_bytes={self._max_sample_bytes} bytes")


def _seen(path: str, first: bytes) -> Serializer:
    """What a shard is written with, by its first byte: maps and lists of msgpack, or objects, lists and text of JSON."""
    if first >= b"\x80":
        return "msgpack"
    if first in b'{["':
        return "json"
    raise StoreError(
        f"{path!r} begins with {first!r}, which may be msgpack or JSON, or no shard of squirrel-core at all: say "
        "serializer='msgpack' or serializer='json'"
    )


def _ends(walker: Any, path: str, row: int) -> Iterator[int]:
    """Where each sample ends that is there as a whole."""
    import msgpack

    while True:
        row += 1
        try:
            walker.skip()
        except msgpack.OutOfData:
            return
        except (ValueError, RecursionError) as error:
            raise corrupt(path, f"sample {row}", f"it is no msgpack: {_said(error)}") from error
        yield walker.tell()


def _sample(data: bytes, path: str, row: int) -> Any:
    import msgpack

    try:
        return msgpack.unpackb(
            data, use_list=False, strict_map_key=False, object_pairs_hook=_from_msgpack, ext_hook=_no_extension
        )
    except StoreError as error:
        raise StoreError(f"{path!r}, sample {row}: {error}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise corrupt(path, f"sample {row}", f"it can't be decoded: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _no_extension(code: int, _: bytes) -> Any:
    raise ValueError(f"it holds an extension of the type {code}, which squirrel-core does not write")


def _from_msgpack(pairs: list[tuple[Any, Any]]) -> Any:
    """A dict, or what msgpack_numpy has written as one."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in one dict")
    if b"nd" in made:
        return _of_numpy(made)
    if b"complex" in made:
        if made.keys() != {b"complex", b"data"} or not isinstance(made[b"data"], str) or len(made[b"data"]) > 100:
            raise ValueError("it holds a complex number that is none")
        return complex(made[b"data"])
    return made


def _of_numpy(made: dict[Any, Any]) -> Any:
    is_array = made[b"nd"] is True
    wanted = {b"nd", b"type", b"shape", b"data"} if is_array else {b"nd", b"type", b"data"}
    if made.keys() - {b"kind"} != wanted:
        raise ValueError(f"it holds an array made of {', '.join(map(repr, made))}")
    kind = made.get(b"kind", b"")
    dtype = plain_dtype(made[b"type"] if kind in (b"", "") else "O" if kind in (b"O", "O") else "V")
    # `[()]` makes a numpy scalar of an array without dimensions.
    return array_of(made[b"data"], dtype, made[b"shape"]) if is_array else array_of(made[b"data"], dtype, ())[()]


def _from_json(made: dict[str, Any]) -> Any:
    """An object, or the array that squirrel-core has written as one."""
    if made.keys() != {"data", "type", "shape"}:
        return made
    import numpy as np

    dtype, shape = plain_dtype(made["type"]), made["shape"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{str(shape)[:80]} is no shape")
    try:
        return np.array(made["data"], dtype=dtype).reshape(shape)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"its array can't be made: {error}") from error
