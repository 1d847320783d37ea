"""Samples as msgpack."""

from __future__ import annotations

import enum
import struct
from itertools import chain
from typing import Any, ClassVar, Final

import msgpack

from squirrel_torch.errors import CorruptDataError, SampleEncodingError
from squirrel_torch.storage.codecs.typed import Typed, TypedCodec, check_decoded, from_typed

__all__ = ["MsgpackCodec"]

_RUN: Final = 1 << 14
"""No array or map is longer: msgpack may take memory for the length that is declared, at each of 500 levels."""


class _Mark(enum.IntEnum):
    """The first item of a list that stands for something else; the number is the code of the extension type."""

    TUPLE = 1
    JOINED = 2
    DICT = 3


_MARKS: Final = frozenset(map(int, _Mark))
_CODES: Final = {"int": 10, "complex": 11, "str_": 12, "bytes_": 13, "ndarray": 20, "scalar": 21, "tensor": 22}
_KINDS: Final = {code: kind for kind, code in _CODES.items()}
_FIRST_WITH_SHAPE: Final = 20


class MsgpackCodec(TypedCodec):
    """Samples as msgpack: small and fast; bytes are kept as they are.

    Other programs can read it; values that msgpack has no word for are extension types, and lists and dicts of more than
    16384 items are in parts. One array, text or bytes has less than 4 GiB.

    What comes back has the types that were given, with these exceptions: bytearray and memoryview are bytes, a subclass of
    a dict, list, tuple, number or text is the plain type, arrays and tensors are contiguous, tensors are on the CPU and
    require no gradient.
    """

    name: ClassVar[str] = "msgpack"
    suffix: ClassVar[str] = ".msgpack"
    plain: ClassVar[frozenset[type]] = frozenset({str, bool, type(None), float, bytes})

    def decode(self, data: bytes) -> Any:
        """The sample of these bytes; see `Codec.decode`."""
        try:
            sample = msgpack.unpackb(
                data,
                list_hook=_from_list,
                object_pairs_hook=_from_pairs,
                ext_hook=_from_extension,
                unicode_errors="surrogatepass",  # names of files may hold halves of characters
                max_array_len=_RUN,
                max_map_len=_RUN,
            )
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
            raise CorruptDataError(f"it is no msgpack of a sample: {str(error) or type(error).__name__}") from error
        check_decoded(sample, frozenset({_Mark, msgpack.Timestamp}))
        return sample

    def _pack(self, written: Any) -> bytes:
        try:
            packed: bytes = msgpack.packb(written, unicode_errors="surrogatepass")
        except ValueError as error:
            raise SampleEncodingError(f"the sample is too large for msgpack, use arrays of less than 4 GiB: {error}") from error
        return packed

    def _list(self, items: list[Any]) -> Any:
        if len(items) <= _RUN:
            return items
        parts = [items[start : start + _RUN] for start in range(0, len(items), _RUN)]
        return [_extension(_Mark.JOINED), self._list(parts)]

    def _tuple(self, items: list[Any]) -> Any:
        return [_extension(_Mark.TUPLE), self._list(items)]

    def _dict(self, items: dict[str, Any]) -> Any:
        if len(items) <= _RUN:
            return items
        return [_extension(_Mark.DICT), self._list(list(items)), self._list(list(items.values()))]

    def _tagged(self, typed: Typed) -> Any:
        code = _CODES[typed.kind]
        if code < _FIRST_WITH_SHAPE:
            return _extension(code, typed.data)
        dtype, rank = typed.dtype.encode("ascii"), len(typed.shape)
        head = struct.pack(f"<B{len(dtype)}sB{rank}Q", len(dtype), dtype, rank, *typed.shape)
        return _extension(code, head + typed.data)


def _extension(code: int, data: bytes = b"") -> Any:
    return msgpack.ExtType(int(code), data)


def _from_extension(code: int, data: bytes) -> Any:
    if not data and code in _MARKS:
        return _Mark(code)
    if code not in _KINDS:
        raise CorruptDataError(f"there is no extension type {code} of {len(data)} bytes")
    if code < _FIRST_WITH_SHAPE:
        return from_typed(Typed(_KINDS[code], data))
    try:
        dtype = data[1 : 1 + data[0]].decode("ascii")
        start = 2 + data[0]
        shape = struct.unpack_from(f"<{data[start - 1]}Q", data, start)
    except (IndexError, ValueError, struct.error) as error:
        raise CorruptDataError(f"an array ends in its dtype or shape: {error}") from error
    return from_typed(Typed(_KINDS[code], data[start + 8 * len(shape) :], dtype, shape))


def _from_pairs(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    return _dict_of([key for key, _ in pairs], [value for _, value in pairs])


def _from_list(items: list[Any]) -> Any:
    if not items or type(items[0]) is not _Mark:
        return items
    mark, *parts = items
    if any(type(part) is not list for part in parts) or len(parts) != (2 if mark is _Mark.DICT else 1):
        raise CorruptDataError(f"a {mark.name.lower()} has {len(parts)} parts, or parts that are no lists")
    if mark is _Mark.DICT:
        return _dict_of(*parts)
    if mark is _Mark.TUPLE:
        return tuple(parts[0])
    if any(type(part) is not list for part in parts[0]):
        raise CorruptDataError("a list is joined of what is no list")
    return list(chain.from_iterable(parts[0]))


def _dict_of(keys: list[Any], values: list[Any]) -> dict[str, Any]:
    if any(type(key) is not str for key in keys):
        raise CorruptDataError("the keys of a dict must be text")
    items = dict(zip(keys, values, strict=False))
    if not len(items) == len(keys) == len(values):
        raise CorruptDataError("a dict has one key twice, or more keys than values")
    return items
