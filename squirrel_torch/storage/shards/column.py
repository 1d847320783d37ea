"""What a column of a block is: the contract, and how numbers are taken out of arrays of Arrow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from squirrel_torch.errors import CorruptDataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Column", "Indices", "NotCollatableError", "Part", "as_tensor", "chosen", "collate", "elements_of", "numbers_of"]

Indices = npt.NDArray[np.int64]

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


def numbers_of(array: pa.Array) -> np.ndarray[Any, Any]:
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


def elements_of(array: pa.Array) -> np.ndarray[Any, Any]:
    """The numbers of all lists of one size in an array without nulls. `flatten` would import Arrow's functions."""
    size = array.type.list_size
    return numbers_of(array.values)[array.offset * size :][: len(array) * size]


def chosen(values: np.ndarray[Any, Any], part: Part) -> np.ndarray[Any, Any]:
    """The values in some rows."""
    return values[part] if isinstance(part, slice) else values.take(part, axis=0)


def as_tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor on the memory of an array.

    Raises:
        NotCollatableError: If torch has no such dtype.
    """
    try:
        return torch.from_numpy(values)
    except (TypeError, ValueError):  # a dtype that torch has not, or bytes the other way round
        raise NotCollatableError from None
