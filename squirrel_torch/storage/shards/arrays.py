"""Columns of arrays and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Final

import numpy as np
import torch

from squirrel_torch.errors import CorruptDataError
from squirrel_torch.storage.shards.column import (
    Column,
    NotCollatableError,
    Part,
    as_tensor,
    chosen,
    elements_of,
    numbers_of,
)
from squirrel_torch.storage.shards.encoding import stored_as, torch_dtype
from squirrel_torch.storage.shards.field import Field

__all__ = ["array_column"]

_MOST_DIMENSIONS: Final = 64
_MOST_ELEMENTS: Final = 1 << 48


class _Arrays(Column):
    """Arrays of one shape."""

    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        assert field.shape is not None  # noqa: S101  # chosen by it
        self._writable = writable
        flat = elements_of(array)
        shape, dtype = (len(array), *field.shape), np.dtype(field.dtype)
        # Text of no width has elements that take no bytes.
        self._values = flat.view(dtype).reshape(shape) if flat.size else np.zeros(shape, dtype)
        self._values.flags.writeable = False

    def row(self, index: int) -> Any:
        # An index alone would make a number of an array without dimensions.
        value = self._values[index] if self._values.ndim > 1 else self._values[index : index + 1].reshape(())
        return value.copy() if self._writable else value

    def pick(self, indices: Sequence[int]) -> Iterable[Any]:
        if self._writable or self._values.ndim == 1:
            return super().pick(indices)
        return map(self._values.__getitem__, indices)

    def rows(self, part: slice) -> Iterable[Any]:
        values = self._values[part].copy() if self._writable else self._values[part]
        return (
            values if values.ndim > 1 else [value.reshape(()) for value in np.split(values, len(values))] if len(values) else []
        )

    def collate(self, parts: Sequence[tuple[Any, Part]]) -> Any:
        if not self._values.dtype.isnative:  # to concatenate them would make them so
            raise NotCollatableError
        return as_tensor(np.concatenate([chosen(one._values, part) for one, part in parts]))


class _Tensors(Column):
    """Tensors of one shape. They are copies: torch has no tensors that are read-only."""

    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        assert field.shape is not None  # noqa: S101  # chosen by it
        self._dtype = torch_dtype(field)
        self._shape = field.shape
        self._values = elements_of(array).reshape(len(array), array.type.list_size)

    def _tensor(self, values: Any) -> torch.Tensor:
        if values.size == 0:
            return torch.empty((len(values), *self._shape), dtype=self._dtype)
        data = torch.from_numpy(np.array(values, copy=True).view(np.uint8).reshape(-1))
        return data.view(self._dtype).reshape(len(values), *self._shape)

    def row(self, index: int) -> Any:
        return self._tensor(self._values[index : index + 1])[0]

    def rows(self, part: slice) -> Iterable[Any]:
        # Each with memory of its own: a view would keep all of its block, also where it is pickled or shared.
        return [one.clone() for one in self._tensor(self._values[part]).unbind(0)]

    def collate(self, parts: Sequence[tuple[Any, Part]]) -> Any:
        if any(one._shape != self._shape for one, _ in parts):  # which may have as many elements
            raise NotCollatableError
        return self._tensor(np.concatenate([chosen(one._values, part) for one, part in parts]))


def _can_be(shape: Any, ndim: int | None) -> bool:
    """Whether there can be an array of this shape, which comes out of a file."""
    if shape is None or len(shape) > _MOST_DIMENSIONS or (ndim is not None and len(shape) != ndim):
        return False
    return all(size is not None and size >= 0 for size in shape) and prod(size for size in shape if size) < _MOST_ELEMENTS


class _Varying(Column):
    """Arrays or tensors whose shapes differ."""

    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        _, count = stored_as(field)
        data = array if field.ndim == 1 else array.field("data")
        self._offsets = numbers_of(data.offsets)
        self._flat = numbers_of(data.values)
        self._writable = writable
        lengths = np.diff(self._offsets).tolist()
        self._shapes: list[Any] = (
            [(length // count,) for length in lengths] if field.ndim == 1 else array.field("shape").to_pylist()
        )
        sizes = [prod(shape) * count if _can_be(shape, field.ndim) else -1 for shape in self._shapes]
        if sizes != lengths:
            raise CorruptDataError(f"a field of {field.describe()} holds shapes that don't fit their data")

    def rows(self, part: slice) -> Iterable[Any]:
        return [self.row(index) for index in range(len(self._shapes))[part]]


class _VaryingArrays(_Varying):
    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        super().__init__(array, field, writable)
        self._dtype = np.dtype(field.dtype)

    def row(self, index: int) -> Any:
        data = self._flat[self._offsets[index] : self._offsets[index + 1]]
        shape = self._shapes[index]
        value = data.view(self._dtype).reshape(shape) if data.size else np.zeros(shape, self._dtype)
        value.flags.writeable = False
        return value.copy() if self._writable else value


class _VaryingTensors(_Varying):
    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        super().__init__(array, field, writable)
        self._dtype = torch_dtype(field)

    def row(self, index: int) -> Any:
        data = self._flat[self._offsets[index] : self._offsets[index + 1]]
        if not data.size:
            return torch.empty(self._shapes[index], dtype=self._dtype)
        return torch.from_numpy(data.copy().view(np.uint8)).view(self._dtype).reshape(self._shapes[index])


def array_column(array: Any, field: Field, writable: bool) -> Column:
    """The column of arrays or tensors in an array of Arrow; see `columns.column`."""
    if field.kind == "tensor":
        return (_VaryingTensors if field.shape is None else _Tensors)(array, field, writable)
    return (_VaryingArrays if field.shape is None else _Arrays)(array, field, writable)
