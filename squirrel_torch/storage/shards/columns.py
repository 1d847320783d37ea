"""Columns of a block of rows, out of arrays of Arrow: as rows, or as batches.

What can be is a view on the block's memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from squirrel_torch.errors import CorruptDataError
from squirrel_torch.storage.shards.arrays import array_column
from squirrel_torch.storage.shards.column import (
    Column,
    NotCollatableError,
    Part,
    as_tensor,
    chosen,
    collate,
    elements_of,
    numbers_of,
)
from squirrel_torch.storage.shards.encoding import MOST_EMPTY, stored_as
from squirrel_torch.storage.shards.field import Field

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["column", "columns_of"]


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
        valid = numbers_of(array.is_valid())
        return _Nullable(valid, _COLUMNS[field.kind](array.drop_null(), field, writable))
    return _COLUMNS[field.kind](array, field, writable)


def columns_of(batch: pa.RecordBatch, field: Field, writable: bool) -> Column:
    """The column of dicts whose values are the columns of a batch."""
    return _Dicts(batch, field, writable)


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
        self._values = numbers_of(array)

    def row(self, index: int) -> Any:
        return self._values.item(index)

    def pick(self, indices: Sequence[int]) -> Iterable[Any]:
        values: list[Any] = self._values[indices].tolist()
        return values

    def rows(self, part: slice) -> Iterable[Any]:
        values: list[Any] = self._values[part].tolist()
        return values

    def collate(self, parts: Sequence[tuple[Any, Part]]) -> Any:
        return torch.from_numpy(np.concatenate([chosen(one._values, part) for one, part in parts]))


class _Complex(Column):
    def __init__(self, array: Any, field: Field, writable: bool) -> None:
        self._values = elements_of(array).view(np.complex128)

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
        flat = numbers_of(array) if count == 1 else elements_of(array)
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
        return as_tensor(np.concatenate([chosen(one._values, part) for one, part in parts]))


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
        self._offsets = numbers_of(array.offsets)
        if len(array.values) > MOST_EMPTY and array.values.nbytes == 0:
            raise CorruptDataError(
                f"a field of {field.describe()} holds lists of {len(array.values)} elements without any bytes"
            )
        self._elements = column(array.values, field.parts[0], writable)

    def row(self, index: int) -> Any:
        return list(self._elements.rows(slice(int(self._offsets[index]), int(self._offsets[index + 1]))))

    def rows(self, part: slice) -> Iterable[Any]:
        return [self.row(index) for index in range(len(self._offsets) - 1)[part]]


_COLUMNS: Final[dict[str, Callable[[Any, Field, bool], Column]]] = {
    "bool": _Numbers,
    "int": _Numbers,
    "float": _Numbers,
    "complex": _Complex,
    "str": _Texts,
    "bytes": _Texts,
    "scalar": _Scalars,
    "array": array_column,
    "tensor": array_column,
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
