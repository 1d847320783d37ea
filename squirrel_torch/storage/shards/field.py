"""What is known of one field of all samples, kept as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import torch

from squirrel_torch.errors import CorruptDataError

__all__ = ["KINDS", "MAX_DEPTH", "TORCH_DTYPES", "WITH_DTYPE", "Field", "field_from_json", "is_safe"]

KINDS: Final[dict[type, str]] = {
    type(None): "none",
    bool: "bool",
    int: "int",
    float: "float",
    complex: "complex",
    str: "str",
    bytes: "bytes",
    bytearray: "bytes",
    memoryview: "bytes",
    np.ndarray: "array",
    torch.Tensor: "tensor",
    dict: "dict",
    list: "list",
    tuple: "tuple",
}
WITH_DTYPE: Final = ("scalar", "array", "tensor")
TORCH_DTYPES: Final = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    *("float64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    "float8_e8m0fnu",
)
MAX_DEPTH: Final = 64
_MAX_SIZE: Final = 1 << 40


@dataclass(frozen=True)
class Field:
    """What is known of one field of all samples.

    Args:
        kind: One of none, bool, int, float, complex, str, bytes, scalar (of numpy), array, tensor, dict, list, tuple.
        nullable: Whether it is None in some samples.
        dtype: Of scalars and arrays as numpy writes it, as "<f4"; of tensors as torch does, without "torch.".
        shape: Of arrays and tensors, if it is the same in all samples.
        ndim: The number of dimensions, if that is the same in all.
        names: The keys of a dict.
        parts: The fields of a dict or a tuple; the one of a list's elements.
    """

    kind: str
    nullable: bool = False
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    ndim: int | None = None
    names: tuple[str, ...] = ()
    parts: tuple[Field, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What is not as usual, as plain JSON types."""
        told: dict[str, Any] = {"kind": self.kind}
        if self.nullable:
            told["nullable"] = True
        for name in ("dtype", "ndim"):
            if getattr(self, name) is not None:
                told[name] = getattr(self, name)
        if self.shape is not None:
            told["shape"] = list(self.shape)
        if self.kind == "dict":
            told["names"] = list(self.names)
        if self.parts:
            told["parts"] = [part.to_json() for part in self.parts]
        return told

    def describe(self) -> str:
        """In few words, as ``int32[128]`` or ``{id: int, text: str or None}``."""
        if self.kind in WITH_DTYPE:
            dtype = self.dtype if self.kind == "tensor" else np.dtype(self.dtype).name
            shape = "" if self.kind == "scalar" else self._describe_shape()
            text = f"{self.kind} {dtype}{shape}"
        elif self.kind == "dict":
            text = (
                "{" + ", ".join(f"{name}: {part.describe()}" for name, part in zip(self.names, self.parts, strict=True)) + "}"
            )
        elif self.kind in ("list", "tuple"):
            text = f"{self.kind} of ({', '.join(part.describe() for part in self.parts)})"
        else:
            text = self.kind
        return text + (" or none" if self.nullable and self.kind != "none" else "")

    def _describe_shape(self) -> str:
        if self.shape is not None:
            return str(list(self.shape))
        return "[...]" if self.ndim is None else f"[{', '.join('?' * self.ndim)}]"


def is_safe(name: str) -> bool:
    """Whether a dtype may come out of a file: plain numbers, times and text, no objects and no records."""
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return False
    return dtype.str == name and dtype.kind in "biufcmMSU" and dtype.str[1:] not in ("f16", "f12", "c32", "c24")


def field_from_json(told: Any, depth: int = 0) -> Field:
    """The field that `Field.to_json` told of.

    Raises:
        CorruptDataError: If it is none.
    """
    if not isinstance(told, dict) or depth > MAX_DEPTH + 1:
        raise CorruptDataError(f"a field of a schema must be an object nested at most {MAX_DEPTH} deep, got {str(told)[:80]!r}")
    unknown = set(told) - {"kind", "nullable", "dtype", "shape", "ndim", "names", "parts"}
    kind, shape, names, parts = told.get("kind"), told.get("shape"), told.get("names", []), told.get("parts", [])
    sound = (
        not unknown
        and (kind in KINDS.values() or kind == "scalar")
        and isinstance(told.get("nullable", False), bool)
        and isinstance(parts, list)
        and _sound_names(kind, names, parts)
        and _sound_dtype(kind, told.get("dtype"))
        and _sound_shape(kind, shape, told.get("ndim"))
    )
    if not sound:
        raise CorruptDataError(f"not a field of a schema: {str(told)[:200]!r}")
    return Field(
        str(kind),
        nullable=told.get("nullable", False),
        dtype=told.get("dtype"),
        shape=None if shape is None else tuple(shape),
        ndim=told.get("ndim"),
        names=tuple(names),
        parts=tuple(field_from_json(part, depth + 1) for part in parts),
    )


def _sound_names(kind: Any, names: Any, parts: list[Any]) -> bool:
    if kind == "dict":
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return bool(named and len(set(names)) == len(names) == len(parts))
    return bool(names == [] and (kind == "tuple" or len(parts) == (kind == "list")))


def _sound_dtype(kind: Any, dtype: Any) -> bool:
    if kind not in WITH_DTYPE:
        return dtype is None
    if kind == "tensor":
        return isinstance(dtype, str) and dtype in TORCH_DTYPES and hasattr(torch, dtype)
    return isinstance(dtype, str) and is_safe(dtype)


def _sound_shape(kind: Any, shape: Any, ndim: Any) -> bool:
    if kind not in ("array", "tensor"):
        return shape is None and ndim is None
    if shape is None:
        return ndim is None or (type(ndim) is int and 0 <= ndim <= MAX_DEPTH)
    if not isinstance(shape, list) or len(shape) > MAX_DEPTH:
        return False
    if not all(type(size) is int and 0 <= size <= _MAX_SIZE for size in shape):
        return False
    return type(ndim) is int and ndim == len(shape) and prod(shape) <= _MAX_SIZE
