"""What the samples of a dataset are made of, field by field: found from samples, agreed on, and kept as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any, Final

import numpy as np
import torch

from squirrel_torch.errors import CorruptDataError, SampleEncodingError, SchemaError
from squirrel_torch.storage.sample import check_sample

__all__ = ["Field", "field_from_json", "find_field", "kind_of", "unify"]

_KINDS: Final[dict[type, str]] = {
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
_BASES: Final = ((str, "str"), (bytes, "bytes"), (np.generic, "scalar"), *_KINDS.items())
_WITH_DTYPE: Final = ("scalar", "array", "tensor")
_TORCH_DTYPES: Final = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"),
    *("float64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    "float8_e8m0fnu",
)
_MAX_DEPTH: Final = 64
_MAX_NESTED: Final = 60  # Arrow refuses types that are nested more than 64 deep; an array takes up to two
_MAX_SIZE: Final = 1 << 40


class _DifferError(Exception):
    """The values of one field are not all of one kind: which, is looked for sample by sample."""


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
        if self.kind in _WITH_DTYPE:
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


def kind_of(kind: type) -> str | None:
    """The kind of a Python type; None if no store can keep it."""
    if kind not in _KINDS:
        if issubclass(kind, np.ma.MaskedArray):
            return None  # its mask would be lost
        found = next((name for base, name in _BASES if issubclass(kind, base)), None)
        if found is None:
            return None
        _KINDS[kind] = found
    return _KINDS[kind]


def find_field(samples: Sequence[Any], first: int = 0) -> Field:
    """The field that all `samples` are of.

    Args:
        samples: At least one.
        first: The number of the first of them, for messages.

    Raises:
        SampleEncodingError: If a sample holds something that a store can't keep.
        SchemaError: If a sample differs from those before it in its fields or their types.
    """
    try:
        return _find(samples, 0)
    except _DifferError:
        _explain(samples, first)
        raise


def _explain(samples: Sequence[Any], first: int) -> None:
    """Raise on the first sample that differs, or can't be kept."""
    field: Field | None = None
    for number, sample in enumerate(samples, first):
        try:
            check_sample(sample)
        except SampleEncodingError as error:
            raise SampleEncodingError(f"sample number {number}: {error}") from None
        try:
            own = _find([sample], 0)
        except _DifferError:
            own = _of_unequal_elements(sample, number)
        field = own if field is None else unify(field, own, f"sample number {number}")


def _of_unequal_elements(sample: Any, number: int) -> Field:
    """Raise for a list inside of one sample whose elements differ."""
    for path, elements in _lists(sample, "sample"):
        field: Field | None = None
        for index, element in enumerate(elements):
            own = _find([element], 0)
            where = f"sample number {number}, element {index}"
            field = own if field is None else unify(field, own, where, path + "[...]", "in the elements")
    raise SchemaError(f"sample number {number} holds lists whose elements differ: use a tuple or a dict")


def _lists(value: Any, path: str) -> Iterator[tuple[str, list[Any]]]:
    """The lists inside, the innermost first."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _lists(inside, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, inside in enumerate(value):
            yield from _lists(inside, f"{path}[{index}]")
        if isinstance(value, list):
            yield path, value


def _find(values: Sequence[Any], depth: int) -> Field:
    types = set(map(type, values))
    kinds = {kind_of(kind) for kind in types}
    nullable = "none" in kinds
    kinds.discard("none")
    if nullable and kinds:
        values = [value for value in values if value is not None]
    if not kinds:
        return Field("none", nullable=nullable)
    (kind, *others) = kinds
    if others or kind is None:
        raise _DifferError
    if depth > _MAX_NESTED:
        raise SampleEncodingError(f"a sample is nested more than {_MAX_NESTED} deep: flatten it")
    return replace(_find_parts(kind, values, depth), nullable=nullable)


def _find_parts(kind: str, values: Sequence[Any], depth: int) -> Field:
    if kind in _WITH_DTYPE:
        return _find_array(kind, values)
    if kind == "dict":
        return _find_dict(values, depth)
    if kind == "tuple":
        if set(map(len, values)) != {len(values[0])}:
            raise _DifferError
        return Field(kind, parts=tuple(_find(column, depth + 1) for column in zip(*values, strict=True)))
    if kind == "list":
        return Field(kind, parts=(_find(list(chain.from_iterable(values)), depth + 1),))
    return Field(kind)


def _find_dict(values: Sequence[Any], depth: int) -> Field:
    names = tuple(values[0])
    if set(map(len, values)) != {len(names)} or not all(isinstance(name, str) for name in names):
        raise _DifferError
    names = tuple(name if type(name) is str else str.__str__(name) for name in names)
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise SampleEncodingError(f"a sample holds a dict whose keys {names!r} are no Unicode: {error}") from None
    try:
        return Field("dict", names=names, parts=tuple(_find([v[name] for v in values], depth + 1) for name in names))
    except KeyError:
        raise _DifferError from None


def _find_array(kind: str, values: Sequence[Any]) -> Field:
    (dtype, *others) = {value.dtype for value in values}
    if others:
        raise _DifferError
    if kind == "tensor":
        name = str(dtype).removeprefix("torch.")
        plain = {(value.layout, value.is_quantized or value.is_meta) for value in values} == {(torch.strided, False)}
        if not plain or name not in _TORCH_DTYPES:
            raise _DifferError
    else:
        name = dtype.str
        if not _is_safe(name):
            raise _DifferError
    if kind == "scalar":
        return Field(kind, dtype=name)
    shapes = {value.shape for value in values}
    ndims = {len(shape) for shape in shapes}
    if max(ndims) > _MAX_DEPTH:
        raise SampleEncodingError(f"a sample holds an array of {max(ndims)} dimensions: at most {_MAX_DEPTH} can be kept")
    shape, ndim = tuple(map(int, next(iter(shapes)))), len(next(iter(shapes)))
    return Field(kind, dtype=name, shape=shape if len(shapes) == 1 else None, ndim=ndim if len(ndims) == 1 else None)


def _is_safe(name: str) -> bool:
    """Whether a dtype may come out of a file: plain numbers, times and text, no objects and no records."""
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return False
    return dtype.str == name and dtype.kind in "biufcmMSU" and dtype.str[1:] not in ("f16", "f12", "c32", "c24")


def unify(field: Field, other: Field, what: str, path: str = "sample", others: str = "in the samples before") -> Field:
    """The field of which both are cases.

    Args:
        field: What was known.
        other: What came now.
        what: Whose field `other` is, for messages.
        path: The place inside the sample.
        others: Where `field` was found, for messages.

    Raises:
        SchemaError: If there is none.
    """
    nullable = field.nullable or other.nullable
    if "none" in (field.kind, other.kind):
        kept = other if field.kind == "none" else field
        # A field without any element yet, of an empty list, is not None.
        return replace(kept, nullable=nullable or (field.kind == other.kind and field.nullable))
    if (field.kind, field.dtype) != (other.kind, other.dtype):
        raise _differs(what, path, other.describe(), field.describe(), others)
    if field.kind == "dict":
        return replace(field, nullable=nullable, parts=_unify_dict(field, other, what, path, others))
    if field.kind == "tuple" and len(field.parts) != len(other.parts):
        raise _differs(what, path, f"a tuple of {len(other.parts)}", f"one of {len(field.parts)} {others}; use a list", "")
    parts = tuple(
        unify(a, b, what, f"{path}[{'...' if field.kind == 'list' else index}]", others)
        for index, (a, b) in enumerate(zip(field.parts, other.parts, strict=True))
    )
    shape = field.shape if field.shape == other.shape else None
    return replace(field, nullable=nullable, shape=shape, ndim=field.ndim if field.ndim == other.ndim else None, parts=parts)


def _unify_dict(field: Field, other: Field, what: str, path: str, others: str) -> tuple[Field, ...]:
    theirs = dict(zip(other.names, other.parts, strict=True))
    for name in (*field.names, *other.names):
        if name not in theirs:
            raise _differs(what, f"{path}[{name!r}]", "missing", f"there {others}; give all samples the same keys", "")
        if name not in field.names:
            raise _differs(what, f"{path}[{name!r}]", "new", f"not there {others}; give all samples the same keys", "")
    return tuple(
        unify(part, theirs[name], what, f"{path}[{name!r}]", others)
        for name, part in zip(field.names, field.parts, strict=True)
    )


def _differs(what: str, path: str, now: str, before: str, others: str) -> SchemaError:
    return SchemaError(f"{what}: {path} is {now}, it was {before} {others}".rstrip())


def field_from_json(told: Any, depth: int = 0) -> Field:
    """The field that `Field.to_json` told of.

    Raises:
        CorruptDataError: If it is none.
    """
    if not isinstance(told, dict) or depth > _MAX_DEPTH + 1:
        raise CorruptDataError(
            f"a field of a schema must be an object nested at most {_MAX_DEPTH} deep, got {str(told)[:80]!r}"
        )
    unknown = set(told) - {"kind", "nullable", "dtype", "shape", "ndim", "names", "parts"}
    kind, shape, names, parts = told.get("kind"), told.get("shape"), told.get("names", []), told.get("parts", [])
    sound = (
        not unknown
        and (kind in _KINDS.values() or kind == "scalar")
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
    if kind not in _WITH_DTYPE:
        return dtype is None
    if kind == "tensor":
        return isinstance(dtype, str) and dtype in _TORCH_DTYPES and hasattr(torch, dtype)
    return isinstance(dtype, str) and _is_safe(dtype)


def _sound_shape(kind: Any, shape: Any, ndim: Any) -> bool:
    if kind not in ("array", "tensor"):
        return shape is None and ndim is None
    if shape is None:
        return ndim is None or (type(ndim) is int and 0 <= ndim <= _MAX_DEPTH)
    if not isinstance(shape, list) or len(shape) > _MAX_DEPTH:
        return False
    if not all(type(size) is int and 0 <= size <= _MAX_SIZE for size in shape):
        return False
    return type(ndim) is int and ndim == len(shape) and prod(shape) <= _MAX_SIZE
