"""What JSON and msgpack have no word for: arrays, tensors, tuples, complex and large numbers."""

from __future__ import annotations

import math
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import torch

from squirrel_torch.errors import CorruptDataError, SampleEncodingError
from squirrel_torch.storage.sample import check_sample

__all__ = ["MAX_DEPTH", "Typed", "TypedCodec", "check_decoded", "from_typed"]

MAX_DEPTH: Final = 64
"""Containers are nested at most so deep."""

_CONTAINERS: Final = frozenset({dict, list, tuple})
_DTYPE: Final = re.compile(
    r"[<>|](?:b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,9}|[mM]8(?:\[(?:[1-9]\d{0,8})?(?:as|fs|ps|ns|us|ms|[smhDWMY])\])?)", re.ASCII
)
_TORCH_DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith(("torch.q", "torch.uint4x", "torch.uint2x"))
}
_LAST_CODE_POINT: Final = 0x10FFFF
_MOST_DIMENSIONS: Final = 64


class Typed(NamedTuple):
    """A value as its kind and its bytes; arrays have a dtype and a shape, too."""

    kind: str
    data: bytes
    dtype: str = ""
    shape: Sequence[int] = ()


class TypedCodec(ABC):
    """A codec over a format that knows lists, dicts and some plain values, and is told of others by tags."""

    plain: ClassVar[frozenset[type]]
    """The types that the format keeps as they are."""

    def encode(self, sample: Any) -> bytes:
        """The bytes of a sample; see `Codec.encode`."""
        check_sample(sample)
        return self._pack(self._written(sample, 0))

    @abstractmethod
    def _pack(self, written: Any) -> bytes:
        """The bytes of what the methods below have made."""

    @abstractmethod
    def _list(self, items: list[Any]) -> Any:
        """A list of items that are written already."""

    @abstractmethod
    def _tuple(self, items: list[Any]) -> Any:
        """A tuple of items that are written already."""

    @abstractmethod
    def _dict(self, items: dict[str, Any]) -> Any:
        """A dict whose values are written already."""

    @abstractmethod
    def _tagged(self, typed: Typed) -> Any:
        """A value that the format has no word for."""

    def _written(self, value: Any, depth: int) -> Any:
        if type(value) in self.plain:
            return value
        if isinstance(value, dict | list | tuple):
            if depth == MAX_DEPTH:
                raise SampleEncodingError(f"the sample is nested more than {MAX_DEPTH} deep: flatten it")
            return self._container(value, depth + 1)
        return self._leaf(value)

    def _container(self, value: dict[str, Any] | list[Any] | tuple[Any, ...], depth: int) -> Any:
        if isinstance(value, dict):
            # str.__str__: an enum's own __str__ gives another text.
            return self._dict({str.__str__(key): self._written(inside, depth) for key, inside in value.items()})
        items = [self._written(inside, depth) for inside in value]
        return self._tuple(items) if isinstance(value, tuple) else self._list(items)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):  # before the others: np.float64 is a float
            return self._tagged(_typed_array(value))
        if isinstance(value, torch.Tensor):
            return self._tagged(_typed_tensor(value))
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
            return int(value)
        if isinstance(value, float) and (float in self.plain or math.isfinite(value)):
            return float(value)
        if isinstance(value, bytes | bytearray | memoryview) and bytes in self.plain:
            return bytes(value)
        return self._tagged(_typed_plain(value))


def _typed_plain(value: Any) -> Typed:
    if isinstance(value, int):
        return Typed("int", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    if isinstance(value, float):
        return Typed("float", struct.pack("<d", value))
    if isinstance(value, complex):
        return Typed("complex", struct.pack("<dd", value.real, value.imag))
    return Typed("bytes", bytes(value))


def _typed_array(value: np.generic | np.ndarray[Any, Any]) -> Typed:
    if isinstance(value, np.str_):  # an array of it would lose zeros at its end
        return Typed("str_", str.__str__(value).encode("utf-8", "surrogatepass"))
    if isinstance(value, np.bytes_):
        return Typed("bytes_", bytes(value))
    if isinstance(value, np.ma.MaskedArray):
        raise SampleEncodingError(
            f"a masked array of dtype {value.dtype}, shape {value.shape} can't be kept: give data and mask as two arrays"
        )
    # An element takes one byte at least, so that no shape is larger than its data.
    data = value.tobytes() if value.dtype.itemsize else bytes(value.size)
    return Typed("scalar" if isinstance(value, np.generic) else "ndarray", data, value.dtype.str, value.shape)


def _typed_tensor(value: torch.Tensor) -> Typed:
    try:
        here = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        data = here.reshape(-1).view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError, ValueError) as error:  # NotImplementedError is a RuntimeError
        said = str(error).partition("\n")[0]  # torch adds where it was in C++
        raise SampleEncodingError(
            f"a {type(value).__name__} of dtype {value.dtype} on {value.device} can't be kept, its data can't be read: {said}"
        ) from error
    return Typed("tensor", data, str(value.dtype).removeprefix("torch."), tuple(value.shape))


def from_typed(typed: Typed) -> Any:
    """The value.

    Raises:
        CorruptDataError: If there is no value of this kind, dtype and shape with these bytes.
    """
    kind, data, dtype, shape = typed
    if kind in ("ndarray", "scalar"):
        array = _array(data, dtype, shape)
        if kind == "ndarray":
            return array
        if array.ndim:
            raise CorruptDataError(f"a scalar has the shape {_describe_shape(shape)}")
        return array[()]
    if kind == "tensor":
        return _tensor(data, dtype, shape)
    if kind not in _FROM_BYTES:
        raise CorruptDataError(f"there is no type {kind[:50]!r}")
    try:
        return _FROM_BYTES[kind](data)
    except (ValueError, struct.error) as error:
        raise CorruptDataError(f"{len(data)} bytes are no value of type {kind!r}: {error}") from error


def _int(data: bytes) -> int:
    if not data:
        raise ValueError("an integer has at least one byte")
    return int.from_bytes(data, "little", signed=True)


_FROM_BYTES: Final[dict[str, Callable[[bytes], Any]]] = {
    "int": _int,
    "float": lambda data: struct.unpack("<d", data)[0],
    "complex": lambda data: complex(*struct.unpack("<dd", data)),
    "bytes": bytes,
    "bytes_": lambda data: np.bytes_(bytes(data)),
    "str_": lambda data: np.str_(bytes(data).decode("utf-8", "surrogatepass")),
}


def _array(data: bytes, text: str, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    dtype = _dtype(text)
    _check_size(data, text, max(dtype.itemsize, 1), shape)
    if dtype.kind == "b":
        _check_bools(data)
    try:
        if not data or not dtype.itemsize:
            return np.ndarray(tuple(shape), dtype)
        array = np.frombuffer(bytearray(data), dtype).reshape(tuple(shape))  # a copy of its own, which can be written
    except (ValueError, OverflowError) as error:
        raise CorruptDataError(f"there is no array of dtype {text}, shape {_describe_shape(shape)}: {error}") from error
    if dtype.kind == "U" and int(array.reshape(-1).view(f"{text[0]}u4").max()) > _LAST_CODE_POINT:
        raise CorruptDataError("an array of text holds characters that there are not")
    return array


@lru_cache(maxsize=256)
def _dtype(text: str) -> np.dtype[Any]:
    try:
        if _DTYPE.fullmatch(text) and (dtype := np.dtype(text)).str == text:
            return dtype
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        pass
    raise CorruptDataError(f"an array has the dtype {text[:50]!r}: only plain numbers, text, bytes and times are read")


def _tensor(data: bytes, text: str, shape: Sequence[int]) -> torch.Tensor:
    dtype = _TORCH_DTYPES.get(text)
    if dtype is None:
        raise CorruptDataError(f"a tensor has the dtype {text[:50]!r}, which torch {torch.__version__} does not have")
    _check_size(data, text, dtype.itemsize, shape)
    if dtype is torch.bool:
        _check_bools(data)
    try:
        flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        return flat.view(dtype).reshape(tuple(shape))
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        said = str(error).partition("\n")[0]  # torch adds where it was in C++
        raise CorruptDataError(f"there is no tensor of dtype {text}, shape {_describe_shape(shape)}: {said}") from error


def _check_size(data: bytes, dtype: str, item_bytes: int, shape: Sequence[int]) -> None:
    if len(shape) > _MOST_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
        raise CorruptDataError(f"an array has the shape {_describe_shape(shape)}")
    if math.prod(shape) * item_bytes != len(data):
        raise CorruptDataError(f"an array of dtype {dtype}, shape {_describe_shape(shape)} has {len(data)} bytes")


def _check_bools(data: bytes) -> None:
    if bytes(data).translate(None, b"\0\1"):
        raise CorruptDataError("an array of booleans holds bytes that are neither 0 nor 1")


def _describe_shape(shape: Sequence[object]) -> str:
    # Short, whatever it holds: integers of data may have more digits than Python prints.
    sizes = [str(size) if type(size) is int and size.bit_length() < 100 else type(size).__name__ for size in shape[:8]]
    return f"({', '.join(sizes)}{', ...' if len(shape) > 8 else ''})"


def check_decoded(value: Any, strange: frozenset[type]) -> None:
    """Raise unless containers are nested at most `MAX_DEPTH` deep and hold none of the types in `strange`.

    Raises:
        CorruptDataError: If they don't.
    """
    # Level by level: what is nested too deep must not take the stack with it.
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        inner = []
        for items in level:
            kinds = set(map(type, items))
            if kinds & strange:
                raise CorruptDataError(f"there is a {(kinds & strange).pop().__name__} where no sample has one")
            if kinds & _CONTAINERS:
                inner += [item.values() if type(item) is dict else item for item in items if type(item) in _CONTAINERS]
        if not inner:
            return
        level = inner
    raise CorruptDataError(f"it is nested more than {MAX_DEPTH} deep")
