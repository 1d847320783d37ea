"""Members of tar archives, read strictly: all of them, or an error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from squirrel_torch.errors import StoreError
from squirrel_torch.storage.formats.reader import corrupt

__all__ = ["Member", "Tar"]

_BLOCK: Final = 512
_ZEROS: Final = bytes(_BLOCK)
_CHUNK: Final = 1 << 20
_MAX_EXTENDED: Final = 1 << 20  # names and attributes, which stand in front of a member
_REFUSED: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"M": "the continuation of a file of another volume",
    b"V": "the label of a volume",
    b"D": "a listing of a folder",
}


@dataclass
class Member:
    """A file in an archive.

    Args:
        name: Its path.
        size: In bytes.
        position: Where its header begins in the archive, in bytes.
    """

    name: str
    size: int
    position: int


class Tar:
    """The files in a tar archive: ustar, pax and GNU's; folders are passed over.

    Unlike the standard library's reader it takes the end of the file for no end of the archive: the two blocks of zeros
    have to be there, and nothing but zeros behind them.

    Args:
        file: The archive, decompressed.
        path: Its name, for messages.
        max_bytes: The most that one file may have.
    """

    def __init__(self, file: BinaryIO, path: str, max_bytes: int) -> None:
        self._file = file
        self._path = path
        self._max_bytes = max_bytes
        self._position = 0
        self._left = 0  # of the member's bytes, and what fills its last block
        self._size = 0

    def __iter__(self) -> Iterator[Member]:
        name, pax = None, dict[str, str]()
        shared = dict[str, str]()
        while (header := self._header()) is not None:
            start, kind, size, own_name = header
            if kind == b"L":
                name = self._extended(start, size).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif kind == b"K":
                self._extended(start, size)  # where a link goes; links are refused
            elif kind == b"x":
                pax = self._attributes(start, size)
            elif kind == b"g":
                shared |= self._attributes(start, size)
            else:
                attributes = shared | pax
                member = Member(attributes.get("path", name or own_name), self._true_size(start, size, attributes), start)
                name, pax = None, {}
                if self._is_file(member, kind, attributes):
                    yield member
                self._skip()
        if name is not None or pax:
            raise corrupt(self._path, f"byte {self._position}", "the archive ends behind a name, before its member")

    def read(self) -> bytes:
        """The bytes of the member that was given last."""
        data = self._exactly(self._size, "a member")
        self._left -= self._size
        return data

    # -- headers ------------------------------------------------------------------------------------------------------

    def _header(self) -> tuple[int, bytes, int, str] | None:
        """Where the next header begins, the kind of member, its size and name; None at the end of the archive."""
        start = self._position
        block = self._exactly(_BLOCK, "the end-of-archive marker or a header")
        if block == _ZEROS:
            self._end(start)
            return None
        if self._number(block[148:156], start) != sum(block) - sum(block[148:156]) + 8 * 32:
            raise corrupt(self._path, f"the header at byte {start}", "its checksum does not match")
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and block[345] != 0:
            name = f"{_text(block[345:500])}/{name}"
        size = self._number(block[124:136], start)
        self._left, self._size = -(-size // _BLOCK) * _BLOCK, size
        return start, block[156:157], size, name

    def _number(self, field: bytes, start: int) -> int:
        if field[0] == 0x80:  # GNU's way for large ones
            return int.from_bytes(field[1:], "big")
        digits = field.split(b"\0", 1)[0].strip(b" ")
        if not digits or digits.strip(b"01234567"):
            raise corrupt(self._path, f"the header at byte {start}", f"{field!r} is no number")
        return int(digits, 8)

    def _end(self, start: int) -> None:
        if self._exactly(_BLOCK, "the second block of the end-of-archive marker") != _ZEROS:
            raise corrupt(self._path, f"byte {start}", "a block of zeros stands between two members")
        while rest := self._file.read(_CHUNK):
            if rest.strip(b"\0"):
                raise corrupt(
                    self._path,
                    f"behind byte {self._position}",
                    "something follows the end of the archive: were two archives put together?",
                )

    def _extended(self, start: int, size: int) -> bytes:
        if size > _MAX_EXTENDED:
            raise corrupt(self._path, f"the header at byte {start}", f"it announces a name or attributes of {size} bytes")
        data = self.read()
        self._skip()
        return data

    def _attributes(self, start: int, size: int) -> dict[str, str]:
        data, found = self._extended(start, size), dict[str, str]()
        while data:
            # Each record is "<its length> <name>=<value>\n".
            digits = data[:20].split(b" ", 1)[0]
            length = int(digits) if digits.isdigit() else 0
            record = data[len(digits) + 1 : length]
            name, equals, value = record[:-1].partition(b"=")
            if not equals or length > len(data) or not record.endswith(b"\n"):
                raise corrupt(self._path, f"the header at byte {start}", "its extended attributes can't be read")
            found[name.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
            data = data[length:]
        return found

    def _true_size(self, start: int, size: int, attributes: dict[str, str]) -> int:
        text = attributes.get("size")
        if text is None:
            return size
        # Writers put it there when the header has no room for it, and zero in the header.
        if not (text.isascii() and text.isdigit() and len(text) < 20) or (size and size != int(text)):
            raise corrupt(self._path, f"the header at byte {start}", f"it has {size} bytes by its header, {text[:40]!r} by pax")
        self._size = int(text)
        self._left = -(-self._size // _BLOCK) * _BLOCK
        return self._size

    def _is_file(self, member: Member, kind: bytes, attributes: dict[str, str]) -> bool:
        what = _REFUSED.get(kind)
        if any(name.startswith("GNU.sparse.") for name in attributes):
            what = "a sparse file"
        if what is not None:
            raise StoreError(f"{self._path!r}, member {member.name!r}: it is {what}; only files can be read")
        if kind == b"5" or (kind == b"\0" and member.name.endswith("/")):
            if member.size:
                raise corrupt(self._path, f"member {member.name!r}", f"it is a folder of {member.size} bytes")
            return False
        if kind not in (b"0", b"\0", b"7"):
            raise StoreError(
                f"{self._path!r}, member {member.name!r}: it is of the unknown kind {kind!r}; only files can be read"
            )
        if "\0" in member.name:
            raise corrupt(self._path, f"member {member.name!r}", "its name holds a NUL")
        if member.size > self._max_bytes:
            raise corrupt(
                self._path,
                f"member {member.name!r}",
                f"it announces {member.size} bytes, more than max_sample_bytes={self._max_bytes}",
            )
        return True

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _exactly(self, size: int, what: str) -> bytes:
        """The next `size` bytes; memory is used for what is there, not for what is announced."""
        parts, missing = [], size
        while missing:
            part = self._file.read(min(missing, _CHUNK))
            if not part:
                raise corrupt(self._path, f"byte {self._position + size - missing}", f"it ends here, where {what} should be")
            parts.append(part)
            missing -= len(part)
        self._position += size
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def _skip(self) -> None:
        """Go to the end of the member's last block."""
        if self._left > _CHUNK and self._file.seekable():
            # The last byte is read: behind the end of the file one can seek, too.
            self._file.seek(self._left - 1, 1)
            self._position += self._left - 1
            self._left = 1
        while self._left:
            step = min(self._left, _CHUNK)
            self._exactly(step, "the rest of a member")
            self._left -= step


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
