"""What the samples of a dataset are made of, field by field: found from samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final

import numpy as np
import torch

from squirrel_torch.errors import SampleEncodingError, SchemaError
from squirrel_torch.storage.sample import check_sample
from squirrel_torch.storage.shards.field import KINDS, MAX_DEPTH, TORCH_DTYPES, WITH_DTYPE, Field, is_safe
from squirrel_torch.storage.shards.unify import unify

__all__ = ["find_field", "kind_of"]

_BASES: Final = ((str, "str"), (bytes, "bytes"), (np.generic, "scalar"), *KINDS.items())
_MAX_NESTED: Final = 60  # Arrow refuses types that are nested more than 64 deep; an array takes up to two


class _DifferError(Exception):
    """The values of one field are not all of one kind: which, is looked for sample by sample."""


def kind_of(kind: type) -> str | None:
    """The kind of a Python type; None if no store can keep it."""
    if kind not in KINDS:
        if issubclass(kind, np.ma.MaskedArray):
            return None  # its mask would be lost
        found = next((name for base, name in _BASES if issubclass(kind, base)), None)
        if found is None:
            return None
        KINDS[kind] = found
    return KINDS[kind]


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
    if kind in WITH_DTYPE:
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
        if not plain or name not in TORCH_DTYPES:
            raise _DifferError
    else:
        name = dtype.str
        if not is_safe(name):
            raise _DifferError
    if kind == "scalar":
        return Field(kind, dtype=name)
    shapes = {value.shape for value in values}
    ndims = {len(shape) for shape in shapes}
    if max(ndims) > MAX_DEPTH:
        raise SampleEncodingError(f"a sample holds an array of {max(ndims)} dimensions: at most {MAX_DEPTH} can be kept")
    shape, ndim = tuple(map(int, next(iter(shapes)))), len(next(iter(shapes)))
    return Field(kind, dtype=name, shape=shape if len(shapes) == 1 else None, ndim=ndim if len(ndims) == 1 else None)
