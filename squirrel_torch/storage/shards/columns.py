"""Columns of a block of rows, out of arrays of Arrow: as rows, or as batches.

What can be is a view on the block's memory.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from squirrel_torch.errors import CorruptDataError
from squirrel_torch.storage.shards.encoding import MOST_EMPTY, stored_as, torch_dtype
from squirrel_torch.storage.shards.schema import Field

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Column", "Indices", "NotCollatableError", "Part", "collate", "column", "columns_of"]

Indices = npt.NDArray[np.int64]

_MOST_DIMENSIONS: Final = 64
_MOST_ELEMENTS: Final = 1 << 48


Part = slice | Indices
"""Some rows of a column."""

_DTYPES: Final = {"halffloat": "float16", "float": "float32", "double": "float64"}
"""Arrow's names of dtypes that numpy names otherwise."""


class NotCollatableError(Exception):
    """What torch's `default_collate` would make of this column can't be had from the column."""


class Column(ABC):
    """One field of the rows of a block."""

    @abstractmethod
    def row(self, index: int) -> Any:
        """The value in one row."""

    @abstractmethod
    def rows(self, part: slice) -> Iterable[Any]:
        """The values in some rows."""

    def pick(self, indices: Sequence[int]) -> Iterable[Any]:
        """The values in rows of any numbers."""
        return map(self.row, indices)

    def collate(self, parts: Sequence[tuple[Any, Part]]) -> Any:
        """What `default_collate` makes of the values in some rows of several columns of this kind, this one among them.

        Raises:
            NotCollatableError: If rows must be made for that.
        """
        raise NotCollatableError


def column(array: pa.Array, field: Field, writable: bool) -> Column:
    """The column in an array of Arrow that has been validated.

    Args:
        array: Of the type that `arrow_type` gives for the field.
        field: What is in it.
        writable: Make arrays copies, instead of read-only views.
    """
    if field.kind == "none":
        return _Nones(len(array))
    if array.null_count:
        if not field.nullable:
            raise CorruptDataError(f"a field of {field.describe()} holds {array.null_count} nulls")
        valid = _numbers(array.is_valid())
        return _Nullable(valid, _COLUMNS[field.kind](array.drop_null(), field, writable))
    return _COLUMNS[field.kind](array, field, writable)


def columns_of(batch: pa.RecordBatch, field: Field, writable: bool) -> Column:
    """The column of dicts whose values are the columns of a batch."""
    return _Dicts(batch, field, writable)


def collate(parts: Sequence[tuple[Column, Part]]) -> Any:
    """What `default_collate` makes of some rows of several columns of one field.

    Raises:
        NotCollatableError: If rows must be made for that.
    """
    first = parts[0][0]
    if any(type(one) is not type(first) for one, _ in parts):
        raise NotCollatableError
    try:
        return first.collate(parts)
    except ValueError:  # shapes that differ from shard to shard
        raise NotCollatableError from None


def _numbers(array: pa.Array) -> np.ndarray[Any, Any]:
    """The elements of an array of numbers or bools without nulls; numbers as a read-only view.

    Arrow's `to_numpy` does it too, but imports pandas if that is installed: a second, in each process that reads.

    Raises:
        CorruptDataError: If there are nulls, which would be read as whatever lies in their place.
    """
    if array.null_count:
        raise CorruptDataError(f"an array of {array.type} holds {array.null_count} nulls")
    count, offset, name = len(array), array.offset, str(array.type)
    data = (count and array.buffers()[1]) or b""
    if name == "bool":
        bits = np.frombuffer(data, np.uint8)
        return np.unpackbits(bits, count=offset + count, bitorder="little")[offset:].view(np.bool_)
    dtype = np.dtype(_DTYPES.get(name, name))
    values = np.frombuffer(data, dtype, count, offset * dtype.itemsize if count else 0)
    values.flags.writeable = False
    return values


def _elements(array: pa.Array) -> np.ndarray[Any, Any]:
    """The numbers of all lists of one size in an array without nulls. `flatten` would import Arrow's functions."""
    size = array.type.list_size
    return _numbers(array.values)[array.offset * size :][: len(array) * size]


def _chosen(values: np.ndarray[Any, Any], part: Part) -> np.ndarray[Any, Any]:
    return values[part] if isinstance(part, slice) else values.take(part, axis=0)


class _Nones(Column):
    def __init__(self, length: int) -> None:
        self._length = length

    def row(self, index: int) -> Any:
        return None

    def rows(self, part: slice) -> Iterable[Any]:
        return [None] * len(range(self._length)[part])


class _Nullable(Column):
    """A column in which some rows are None, over one of those that are not."""

    def __init__(self, valid: Any, inside: Column) -> None:
        self._valid = valid
        self._places = np.cumsum(valid) - 1
        self._inside = inside

    def row(self, index: int) -> Any:
        return self._inside.row(int(self._places[index])) if self._valid[index] else None

    def rows(self, part: slice) -> Iterable[Any]:
        row = self._inside.row
        places = zip(self._places[part].tolist(), self._valid[part].tolist(), strict=True)
        return [row(place) if valid else None for place, valid in places]


class _Numbers(Column):
    """Python's numbers."""

    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        self._values = _numbers(array)

    def row(self, index: int) -> Any:
        return self._values.item(index)

    def pick(self, indices: Sequence[int]) -> Iterable[Any]:
        values: list[Any] = self._values[indices].tolist()
        return values

    def rows(self, part: slice) -> Iterable[Any]:
        values: list[Any] = self._values[part].tolist()
        return values

    def collate(self, parts: Sequence[tuple[Any, Part]]) -> Any:
        return torch.from_numpy(np.concatenate([_chosen(one._values, part) for one, part in parts]))


class _Complex(Column):
    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        self._values = _elements(array).view(np.complex128)

    def row(self, index: int) -> Any:
        return self._values.item(index)

    def rows(self, part: slice) -> Iterable[Any]:
        values: list[Any] = self._values[part].tolist()
        return values


class _Texts(Column):
    """Text or bytes."""

    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        self._array = array

    def row(self, index: int) -> Any:
        return self._array[index].as_py()

    def rows(self, part: slice) -> Iterable[Any]:
        values: list[Any] = self._array[part].to_pylist()
        return values

    def collate(self, parts: Sequence[tuple[Any, Part]]) -> Any:
        values = (one.rows(part) if isinstance(part, slice) else one.pick(part.tolist()) for one, part in parts)
        return list(chain.from_iterable(values))


class _Scalars(Column):
    """Numbers of numpy."""

    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        _, count = stored_as(field)
        flat = _numbers(array) if count == 1 else _elements(array)
        self._values = flat.view(np.dtype(field.dtype))

    def row(self, index: int) -> Any:
        return self._values[index]

    def pick(self, indices: Sequence[int]) -> Iterable[Any]:
        return list(self._values[indices])

    def rows(self, part: slice) -> Iterable[Any]:
        return list(self._values[part])

    def collate(self, parts: Sequence[tuple[Any, Part]]) -> Any:
        if self._values.dtype == np.uint64:  # torch makes no tensor of a list of these
            raise NotCollatableError
        return _as_tensor(np.concatenate([_chosen(one._values, part) for one, part in parts]))


class _Arrays(Column):
    """Arrays of one shape."""

    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        assert field.shape is not None  # noqa: S101  # chosen by it
        self._writable = writable
        flat = _elements(array)
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
        return _as_tensor(np.concatenate([_chosen(one._values, part) for one, part in parts]))


class _Tensors(Column):
    """Tensors of one shape. They are copies: torch has no tensors that are read-only."""

    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        assert field.shape is not None  # noqa: S101  # chosen by it
        self._dtype = torch_dtype(field)
        self._shape = field.shape
        self._values = _elements(array).reshape(len(array), array.type.list_size)

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
        return self._tensor(np.concatenate([_chosen(one._values, part) for one, part in parts]))


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
        self._offsets = _numbers(data.offsets)
        self._flat = _numbers(data.values)
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


class _Dicts(Column):
    """Dicts.

    Args:
        array: A struct, or a batch whose columns are the values.
        field: What is in them.
        writable: As for all columns.
    """

    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        self._names = tuple(map(sys.intern, field.names))
        self._length = len(array)
        children = () if not field.parts else array.columns if hasattr(array, "columns") else array.flatten()
        self._columns = [column(child, part, writable) for child, part in zip(children, field.parts, strict=True)]
        self._make = _makers.get(len(self._names), _make_any)
        self._named = [(name, one.row) for name, one in zip(self._names, self._columns, strict=True)]

    def row(self, index: int) -> Any:
        return {name: row(index) for name, row in self._named}

    def pick(self, indices: Sequence[int]) -> Iterable[Any]:
        if not self._columns:
            return [{} for _ in indices]
        return self._make(self._names, [one.pick(indices) for one in self._columns])

    def rows(self, part: slice) -> Iterable[Any]:
        if not self._columns:
            return [{} for _ in range(self._length)[part]]
        return self._make(self._names, [one.rows(part) for one in self._columns])

    def collate(self, parts: Sequence[tuple[Any, Part]]) -> Any:
        if any(one._names != self._names for one, _ in parts):  # keys in another order, from another shard
            raise NotCollatableError
        return {name: collate([(one._columns[place], part) for one, part in parts]) for place, name in enumerate(self._names)}


class _Tuples(Column):
    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        self._length = len(array)
        children = array.flatten() if field.parts else ()
        self._columns = [column(child, part, writable) for child, part in zip(children, field.parts, strict=True)]

    def row(self, index: int) -> Any:
        return tuple(one.row(index) for one in self._columns)

    def rows(self, part: slice) -> Iterable[Any]:
        if not self._columns:
            return [()] * len(range(self._length)[part])
        return list(zip(*(one.rows(part) for one in self._columns), strict=True))

    def collate(self, parts: Sequence[tuple[Any, Part]]) -> Any:
        if not self._columns:
            raise NotCollatableError
        batches = [collate([(one._columns[place], part) for one, part in parts]) for place in range(len(self._columns))]
        # Of text right in a tuple torch makes a tuple, elsewhere a list.
        return [tuple(batch) if type(one) is _Texts else batch for one, batch in zip(self._columns, batches, strict=True)]


class _Lists(Column):
    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        self._offsets = _numbers(array.offsets)
        if len(array.values) > MOST_EMPTY and array.values.nbytes == 0:
            raise CorruptDataError(
                f"a field of {field.describe()} holds lists of {len(array.values)} elements without any bytes"
            )
        self._elements = column(array.values, field.parts[0], writable)

    def row(self, index: int) -> Any:
        return list(self._elements.rows(slice(int(self._offsets[index]), int(self._offsets[index + 1]))))

    def rows(self, part: slice) -> Iterable[Any]:
        return [self.row(index) for index in range(len(self._offsets) - 1)[part]]


def _array_column(array: Any, field: Field, writable: bool) -> Column:
    if field.kind == "tensor":
        return (_VaryingTensors if field.shape is None else _Tensors)(array, field, writable)
    return (_VaryingArrays if field.shape is None else _Arrays)(array, field, writable)


def _as_tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
    try:
        return torch.from_numpy(values)
    except (TypeError, ValueError):  # a dtype that torch has not, or bytes the other way round
        raise NotCollatableError from None


_COLUMNS: Final[dict[str, Callable[[Any, Field, bool], Column]]] = {
    "bool": _Numbers,
    "int": _Numbers,
    "float": _Numbers,
    "complex": _Complex,
    "str": _Texts,
    "bytes": _Texts,
    "scalar": _Scalars,
    "array": _array_column,
    "tensor": _array_column,
    "dict": _Dicts,
    "tuple": _Tuples,
    "list": _Lists,
}


# Written out, a dict is made three times as fast as dict(zip(...)) makes it; one by one, as the consumer drops them, the next
# one takes the memory of the last, and the garbage collector never looks.


def _make_1(names: Sequence[str], columns: Sequence[Iterable[Any]]) -> Iterable[Any]:
    (i,) = names
    return ({i: a} for a in columns[0])


def _make_2(names: Sequence[str], columns: Sequence[Iterable[Any]]) -> Iterable[Any]:
    i, j = names
    return ({i: a, j: b} for a, b in zip(*columns, strict=True))


def _make_3(names: Sequence[str], columns: Sequence[Iterable[Any]]) -> Iterable[Any]:
    i, j, k = names
    return ({i: a, j: b, k: c} for a, b, c in zip(*columns, strict=True))


def _make_4(names: Sequence[str], columns: Sequence[Iterable[Any]]) -> Iterable[Any]:
    i, j, k, m = names
    return ({i: a, j: b, k: c, m: d} for a, b, c, d in zip(*columns, strict=True))


def _make_5(names: Sequence[str], columns: Sequence[Iterable[Any]]) -> Iterable[Any]:
    i, j, k, m, n = names
    return ({i: a, j: b, k: c, m: d, n: e} for a, b, c, d, e in zip(*columns, strict=True))


def _make_6(names: Sequence[str], columns: Sequence[Iterable[Any]]) -> Iterable[Any]:
    i, j, k, m, n, o = names
    return ({i: a, j: b, k: c, m: d, n: e, o: f} for a, b, c, d, e, f in zip(*columns, strict=True))


def _make_any(names: Sequence[str], columns: Sequence[Iterable[Any]]) -> Iterable[Any]:
    return (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


_makers: Final = {1: _make_1, 2: _make_2, 3: _make_3, 4: _make_4, 5: _make_5, 6: _make_6}
