"""Values inside of foreign files, decoded without ever running what they say."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any, Final

from squirrel_torch.errors import StoreError

__all__ = ["array_of", "decode_integer", "decode_json", "decode_npy", "decode_text", "json_decoder", "plain_dtype"]

_DTYPE: Final = re.compile(r"[<>|=]?(?:[biufcSU]\d{1,9}|[mM]8(?:\[\d{0,9}[A-Za-z]{1,2}\])?|\?)")
_MAX_DIMENSIONS: Final = 32
_MAX_HEADER: Final = 10_000
_INTEGER: Final = re.compile(rb"\s*[+-]?[0-9]{1,1000}\s*")


def plain_dtype(text: Any) -> Any:
    """The numpy dtype of a text like ``<f4``: booleans, numbers, bytes, text, times.

    Raises:
        StoreError: If it stands for objects or records, which only pickle could read.
        ValueError: If it is none.
    """
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    if isinstance(text, str):
        return _dtype(text)
    if isinstance(text, list | tuple):
        raise _objects(text)
    raise ValueError(f"{str(text)[:80]!r} is no dtype")


def _objects(dtype: Any) -> StoreError:
    return StoreError(
        f"it holds an array of dtype {str(dtype)[:80]!r}: only booleans, numbers, bytes, text and times are read. Arrays of "
        "objects are made of pickle, which can run any code; where the file is trusted, write it again without them"
    )


@lru_cache(256)
def _dtype(text: str) -> Any:
    import numpy as np

    if text.lstrip("<>|=")[:1] in ("O", "V", "o"):
        raise _objects(text)
    if not _DTYPE.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no dtype")
    try:
        return np.dtype(text)
    except TypeError as error:
        raise ValueError(str(error)) from None


def array_of(data: Any, dtype: Any, shape: Any, by_columns: bool = False) -> Any:
    """A writable array of `shape` with a copy of `data`, which is in the order of its columns or of its rows.

    Raises:
        ValueError: If `shape` is none, or does not fit the size of `data`.
    """
    import numpy as np

    if not isinstance(shape, list | tuple) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{str(shape)[:80]} is no shape")
    count = prod(shape) if all(type(size) is int and 0 <= size < 1 << 62 for size in shape) else -1
    if count < 0:
        raise ValueError(f"{str(shape)[:80]} is no shape")
    if not isinstance(data, bytes | memoryview):
        raise ValueError(f"the array's data is of type {type(data).__name__}")  # noqa: TRY004  # wrong data, no wrong argument
    size = count * dtype.itemsize
    if size != len(data):
        raise ValueError(f"an array of shape {tuple(shape)} and dtype {dtype} has {size} bytes, {len(data)} are there")
    flat = np.frombuffer(data, dtype=dtype) if size else np.empty(0, dtype=dtype)
    return flat.reshape(shape, order="F" if by_columns else "C").copy()


def decode_npy(data: bytes) -> Any:
    """The array of an npy file.

    Raises:
        StoreError: If it holds objects or records.
        ValueError: If it is damaged.
    """
    # Numpy's own reader allocates what the header announces before it looks what is there.
    length_bytes = {b"\x01\0": 2, b"\x02\0": 4, b"\x03\0": 4}.get(data[6:8])
    if not data.startswith(b"\x93NUMPY") or length_bytes is None:
        raise ValueError(f"it begins with {data[:8]!r}, which no npy file does")
    start = 8 + length_bytes
    end = start + int.from_bytes(data[8:start], "little")
    if end > min(len(data), _MAX_HEADER):
        raise ValueError(f"its header is announced to end at byte {end}, of {len(data)}")
    try:
        header = ast.literal_eval(data[start:end].decode("utf-8").strip())
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"its header can't be read: {type(error).__name__}") from error
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header does not say what it holds")
    return array_of(memoryview(data)[end:], plain_dtype(header["descr"]), header["shape"], bool(header["fortran_order"]))


def decode_text(data: bytes) -> str:
    """UTF-8."""
    return data.decode("utf-8")


def decode_integer(data: bytes) -> int:
    """A decimal integer, with blanks around it.

    Raises:
        ValueError: If it is none.
    """
    if not _INTEGER.fullmatch(data):
        raise ValueError(f"{data[:40]!r} is no integer")
    return int(data)


def json_decoder(hook: Callable[[dict[str, Any]], Any] | None = None) -> Callable[[str], Any]:
    """A function that decodes JSON as it is written by Python: with NaN and Infinity.

    It raises ValueError where a key stands twice in an object, and where objects are nested too deep.

    Args:
        hook: What to make of each object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
        return made if hook is None else hook(made)

    decode = json.JSONDecoder(object_pairs_hook=unique).decode

    def decoded(text: str) -> Any:
        try:
            return decode(text)
        except RecursionError:
            raise ValueError("it is nested too deep") from None

    return decoded


_decode_json: Final = json_decoder()


def decode_json(data: bytes) -> Any:
    """JSON in UTF-8.

    Raises:
        ValueError: If it is none, or a key stands twice in an object.
    """
    return _decode_json(data.decode("utf-8"))
