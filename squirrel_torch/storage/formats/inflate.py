"""Compressed streams that end where they should, and hold no more than they should."""

from __future__ import annotations

import bz2
import io
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO, Final, Protocol

from squirrel_torch.storage.formats.opening import FileStream, base_name, open_file
from squirrel_torch.storage.formats.reader import corrupt

__all__ = ["COMPRESSED", "MAX_RATIO", "MAX_SAMPLE_BYTES", "check_limits", "open_inflated"]

MAX_RATIO: Final = 200.0
"""How many times its compressed size a file may hold, unless it is small."""

MAX_SAMPLE_BYTES: Final = 1 << 30
"""The most that one sample may have."""

COMPRESSED: Final = (".gz", ".tgz", ".bz2", ".zst")
"""What the names of compressed files end with."""

_SMALL: Final = 64 << 20
_CHUNK: Final = 256 << 10
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}


def check_limits(max_ratio: float, max_sample_bytes: int) -> None:
    """Raise ValueError unless both limits are above 0."""
    if not max_ratio > 0:
        raise ValueError(f"max_ratio must be more than 0, got {max_ratio!r}")
    if not max_sample_bytes > 0:
        raise ValueError(f"max_sample_bytes must be more than 0, got {max_sample_bytes!r}")


def open_inflated(path: str, options: Mapping[str, Any], max_ratio: float) -> io.BufferedReader:
    """A file as a stream of its bytes, decompressed if it is compressed, whatever its name is.

    Several compressed streams in a row are one, as their formats have it.

    Raises:
        CorruptDataError: Now or while it is read, if the name says that it is compressed and it isn't; if it is cut off or
            changed; if something else follows; if it holds more than `max_ratio` times its size, and more than 64 MiB.
    """
    file = open_file(path, options)
    try:
        kind = _kind(file, path)
        raw = FileStream(file) if kind is None else _Inflated(file, path, kind, max_ratio)
        return io.BufferedReader(raw, _CHUNK)
    except BaseException:
        file.close()
        raise


def _kind(file: BinaryIO, path: str) -> str | None:
    head = file.read(4)
    file.seek(0)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None and base_name(path).endswith(COMPRESSED):
        raise corrupt(path, "byte 0", f"it does not begin as a compressed file does, but with {head!r}")
    return kind


class _Inflated(FileStream):
    def __init__(self, file: BinaryIO, path: str, kind: str, max_ratio: float) -> None:
        super().__init__(file)
        self._path = path
        self._kind = kind
        self._max_ratio = max_ratio
        self._made = self._used = 0
        self._engine: _Engine = _Zstd(self) if kind == "zstd" else _Members(self, _Gzip if kind == "gzip" else _Bzip2)

    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0, /) -> int:
        raise io.UnsupportedOperation("a compressed stream can't be sought")

    def tell(self) -> int:
        return self._made

    def compressed(self, size: int = _CHUNK) -> bytes:
        """The next bytes as they are in the file."""
        data = self._file.read(size)
        self._used += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._engine.read(len(buffer))
        except (zlib.error, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the filesystem's
            raise corrupt(self._path, f"near byte {self._used}", f"it can't be decompressed ({self._kind}): {error}") from error
        self._made += len(data)
        if self._made > max(_SMALL, self._max_ratio * self._used):
            raise corrupt(
                self._path,
                f"near byte {self._used}",
                f"it has {self._made} bytes or more, over {self._max_ratio:g} times its compressed size: if it is meant to, "
                "raise max_ratio",
            )
        buffer[: len(data)] = data
        return len(data)


class _Engine(Protocol):
    def read(self, size: int) -> bytes:
        """At most `size` bytes, none at the end."""


class _Zstd:
    def __init__(self, file: _Inflated) -> None:
        import pyarrow as pa

        self._stream: Any = pa.CompressedInputStream(pa.PythonFile(_Compressed(file), "r"), "zstd")

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        return data


class _Compressed(io.RawIOBase):
    """What pyarrow reads from."""

    def __init__(self, file: _Inflated) -> None:
        self._inflated = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._inflated.compressed(size)


class _Members:
    """Members of gzip or bzip2, one after the other."""

    def __init__(self, file: _Inflated, member: type[_Gzip | _Bzip2]) -> None:
        self._file = file
        self._new = member
        self._member = member()
        self._left = b""

    def read(self, size: int) -> bytes:
        while True:
            self._left = self._left or self._file.compressed()
            if self._member.eof:
                if not self._left:
                    return b""
                self._member = self._new()
            ended = not self._left
            data, self._left = self._member.inflate(self._left, size)
            if data:
                return data
            if ended and not self._member.eof:
                raise EOFError("it ends too early")


class _Gzip:
    def __init__(self) -> None:
        self._engine = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._engine.eof

    def inflate(self, data: bytes, size: int) -> tuple[bytes, bytes]:
        """At most `size` bytes, and what is left of `data`."""
        made = self._engine.decompress(data, size)
        return made, self._engine.unused_data if self._engine.eof else self._engine.unconsumed_tail


class _Bzip2:
    def __init__(self) -> None:
        self._engine = bz2.BZ2Decompressor()

    @property
    def eof(self) -> bool:
        return self._engine.eof

    def inflate(self, data: bytes, size: int) -> tuple[bytes, bytes]:
        """At most `size` bytes, and what is left of `data`, where the engine does not keep it."""
        made = self._engine.decompress(data, size)
        return made, self._engine.unused_data
