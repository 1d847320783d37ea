"""Fields of samples as arrays of Arrow: how their elements lie in memory, and how they get there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from squirrel_torch.errors import SampleEncodingError
from squirrel_torch.storage.shards.field import Field

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MOST_EMPTY", "arrow_type", "encode", "stored_as", "torch_dtype"]

MOST_EMPTY: Final = 1 << 24
"""So many elements may lists have that take no bytes in a file, such as None: a few bytes must not become gigabytes."""

_ITEM_TYPES: Final = {"b": "u1", "M": "i8", "m": "i8", "S": "u1", "U": "u1"}
_VIEWS: Final = {"bool": "u1", "bfloat16": "u2", "complex32": "f2", "complex64": "f4", "complex128": "f8"}


def stored_as(field: Field) -> tuple[np.dtype[Any], int]:
    """The dtype in which elements are stored, one that Arrow has, and how many of it make up one element."""
    if field.kind == "tensor":
        dtype = torch_dtype(field)
        name = str(field.dtype)
        stored = np.dtype("u1" if name.startswith("float8") else _VIEWS.get(name, name))
        return stored, dtype.itemsize // stored.itemsize
    kept = np.dtype(field.dtype)
    if not kept.isnative:
        stored = np.dtype("u1")
    elif kept.kind == "c":
        stored = np.dtype(f"f{kept.itemsize // 2}")
    else:
        stored = np.dtype(_ITEM_TYPES.get(kept.kind, kept.str))
    return stored, kept.itemsize // stored.itemsize


def torch_dtype(field: Field) -> torch.dtype:
    """The dtype of a field of tensors."""
    dtype: torch.dtype = getattr(torch, str(field.dtype))
    return dtype


def arrow_type(field: Field) -> pa.DataType:
    """The type of Arrow in which a field is stored; None may stand in all of them."""
    import pyarrow as pa

    plain: dict[str, Callable[[], pa.DataType]] = {
        "none": pa.null,
        "bool": pa.bool_,
        "int": pa.int64,
        "float": pa.float64,
        "str": pa.large_string,
        "bytes": pa.large_binary,
    }
    if field.kind in plain:
        return plain[field.kind]()
    if field.kind == "complex":
        return pa.list_(pa.float64(), 2)
    if field.kind in ("dict", "tuple"):
        names = field.names or [str(index) for index in range(len(field.parts))]
        parts = [pa.field(name, arrow_type(part)) for name, part in zip(names, field.parts, strict=True)]
        return pa.struct(parts) if parts else pa.bool_()  # a struct without fields has no length
    if field.kind == "list":
        return pa.large_list(arrow_type(field.parts[0]))
    stored, count = stored_as(field)
    element = pa.from_numpy_dtype(stored)
    if field.kind == "scalar":
        return element if count == 1 else pa.list_(element, count)
    if field.shape is not None:
        size = prod(field.shape) * count
        if size >= 1 << 31:
            raise SampleEncodingError(
                f"an array of {size} numbers is too large for one field: at most {(1 << 31) - 1} can be kept"
            )
        return pa.list_(element, size)
    data = pa.large_list(element)
    return data if field.ndim == 1 else pa.struct([("data", data), ("shape", pa.large_list(pa.int64()))])


def encode(values: Sequence[Any], field: Field) -> pa.Array:
    """An array of Arrow that holds `values`, all of `field`.

    Raises:
        SampleEncodingError: If one does not fit: an integer of more than 64 bits, text that is no Unicode.
    """
    import pyarrow as pa

    if field.kind == "none":
        return pa.nulls(len(values))
    if not field.nullable:
        return _ENCODERS[field.kind](values, field)
    present = np.fromiter((value is not None for value in values), bool, len(values))
    inside = _ENCODERS[field.kind]([value for value in values if value is not None], field)
    if present.all():
        return inside
    places = np.cumsum(present) - 1
    return inside.take(pa.array(places, mask=~present))


def _encode_plain(values: Sequence[Any], field: Field) -> pa.Array:
    import pyarrow as pa

    try:
        if field.kind == "int":
            return pa.array(np.array(values, dtype=np.int64))
        return pa.array(values, type=arrow_type(field), from_pandas=False)
    except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid) as error:
        raise _does_not_fit(values, field, error) from None


def _does_not_fit(values: Sequence[Any], field: Field, error: Exception) -> SampleEncodingError:
    if field.kind == "int":
        large = next(value for value in values if not -(2**63) <= value < 2**63)
        return SampleEncodingError(f"the integer {large} does not fit into 64 bits: keep it as text")
    return SampleEncodingError(f"a {field.kind} can't be kept: {error}")


def _encode_bytes(values: Sequence[Any], _: Field) -> pa.Array:
    import pyarrow as pa

    return pa.array([value if type(value) is bytes else bytes(value) for value in values], type=pa.large_binary())


def _encode_complex(values: Sequence[Any], _: Field) -> pa.Array:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(np.array(values, dtype=np.complex128).view(np.float64)), 2)


def _encode_scalar(values: Sequence[Any], field: Field) -> pa.Array:
    import pyarrow as pa

    stored, count = stored_as(field)
    flat = pa.array(np.array(values, dtype=np.dtype(field.dtype)).view(stored))
    return flat if count == 1 else pa.FixedSizeListArray.from_arrays(flat, count)


def _encode_struct(values: Sequence[Any], field: Field) -> pa.Array:
    import pyarrow as pa

    if not field.parts:
        return pa.array(np.zeros(len(values), bool))
    keys: Sequence[Any] = field.names if field.kind == "dict" else range(len(field.parts))
    columns = [encode([value[key] for value in values], part) for key, part in zip(keys, field.parts, strict=True)]
    return pa.StructArray.from_arrays(columns, names=[str(key) for key in keys])


def _encode_list(values: Sequence[Any], field: Field) -> pa.Array:
    import pyarrow as pa

    elements = encode([element for value in values for element in value], field.parts[0])
    if len(elements) > MOST_EMPTY and elements.nbytes == 0:
        raise SampleEncodingError(f"lists of {len(elements)} elements that hold nothing can't be kept: at most {MOST_EMPTY}")
    return pa.LargeListArray.from_arrays(_offsets(map(len, values), len(values)), elements)


def _offsets(lengths: Iterable[int], count: int) -> Any:
    import pyarrow as pa

    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.fromiter(lengths, np.int64, count), out=offsets[1:])
    return pa.array(offsets)


def _encode_array(values: Sequence[Any], field: Field) -> pa.Array:
    import pyarrow as pa

    arrow_type(field)  # raises if they are too large
    stored, count = stored_as(field)
    flatten = _flat_tensors if field.kind == "tensor" else _flat_arrays
    flat = pa.array(flatten(values, field, stored))
    if field.shape is not None:
        size = prod(field.shape) * count
        if size == 0:  # Arrow can't tell their number from their elements, and dies of a division by zero
            return pa.array([[]] * len(values), type=pa.list_(flat.type, 0))
        return pa.FixedSizeListArray.from_arrays(flat, size)
    sizes = (prod(value.shape) * count for value in values)
    data = pa.LargeListArray.from_arrays(_offsets(sizes, len(values)), flat)
    if field.ndim == 1:
        return data
    shape = np.fromiter((size for value in values for size in value.shape), np.int64)
    dims = pa.LargeListArray.from_arrays(_offsets((value.ndim for value in values), len(values)), pa.array(shape))
    return pa.StructArray.from_arrays([data, dims], names=["data", "shape"])


def _flat_arrays(values: Sequence[Any], field: Field, stored: np.dtype[Any]) -> np.ndarray[Any, Any]:
    dtype = np.dtype(field.dtype)
    if not values:
        return np.empty(0, stored)
    if field.shape is not None:
        flat = np.array(values, dtype=dtype).reshape(-1)
    else:
        # Without its dtype, numbers the other way round would become native ones.
        flat = np.concatenate([np.asarray(value).reshape(-1) for value in values], dtype=dtype)
    return np.ascontiguousarray(flat).view(stored) if flat.size else np.empty(0, stored)


def _flat_tensors(values: Sequence[Any], _: Field, stored: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if not values:
        return np.empty(0, stored)
    flat = torch.cat([value.detach().cpu().resolve_conj().resolve_neg().reshape(-1) for value in values])
    return flat.view(torch.uint8).numpy().view(stored) if flat.numel() else np.empty(0, stored)


_ENCODERS: Final[dict[str, Callable[[Sequence[Any], Field], Any]]] = {
    "bool": _encode_plain,
    "int": _encode_plain,
    "float": _encode_plain,
    "str": _encode_plain,
    "bytes": _encode_bytes,
    "complex": _encode_complex,
    "scalar": _encode_scalar,
    "array": _encode_array,
    "tensor": _encode_array,
    "dict": _encode_struct,
    "tuple": _encode_struct,
    "list": _encode_list,
}
