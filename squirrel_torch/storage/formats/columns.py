"""From columns of Arrow to samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL
from itertools import pairwise
from typing import Any

from squirrel_torch.errors import CorruptDataError, StoreError
from squirrel_torch.storage.formats.reader import corrupt

__all__ = ["arrow_errors", "check_names", "rows_of", "taken"]


@contextmanager
def arrow_errors(path: str, place: str = "") -> Iterator[None]:
    """Errors of pyarrow as errors of the file; those of the filesystem pass."""
    import pyarrow as pa

    try:
        yield
    except CorruptDataError:
        raise
    except pa.ArrowNotImplementedError as error:
        raise StoreError(f"{path!r}{', ' if place else ''}{place}: pyarrow can't read it: {_first_line(error)}") from error
    except (pa.ArrowException, MemoryError, ValueError, OverflowError) as error:
        raise corrupt(path, place, f"it can't be read: {_first_line(error)}") from error
    except OSError as error:
        # Pyarrow raises bare OSErrors for data that it can't make sense of; EINVAL: it was led to a place that no file has.
        if type(error) is not OSError or error.errno not in (None, EINVAL):
            raise
        raise corrupt(path, place, f"it can't be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:500]


def check_names(path: str, names: list[str], columns: list[str] | None) -> None:
    """Raise unless the columns have names that a dict can hold, and the wanted ones are there.

    Raises:
        StoreError: If two columns have one name.
        ValueError: If there is no such column.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StoreError(f"{path!r} has several columns of the name {twice[0]!r}: a dict would hold only one of them")
    if missing := [name for name in columns or [] if name not in names]:
        raise ValueError(f"{path!r} has no column {missing[0]!r}; it has {', '.join(map(repr, names))}")


def taken(batch: Any, start: int, step: int) -> Any:
    """Every `step`-th row of a batch, from row `start` on."""
    if start >= batch.num_rows:
        return batch.slice(0, 0)
    if step == 1:
        return batch.slice(start)
    import numpy as np
    import pyarrow as pa

    try:
        return batch.take(pa.array(np.arange(start, batch.num_rows, step)))
    except pa.ArrowNotImplementedError:  # some types can't be taken from
        return pa.concat_batches([batch.slice(row, 1) for row in range(start, batch.num_rows, step)])


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch as dicts."""
    names = batch.schema.names
    if not names:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*map(_values, batch.columns), strict=True)]


def _values(array: Any) -> list[Any]:
    """The values of an array, None where it has none."""
    import pyarrow as pa

    if not len(array):
        return []
    kind = array.type
    if isinstance(kind, pa.FixedShapeTensorType):
        return _with_nulls([tensor.copy() for tensor in array.to_numpy_ndarray()], array)
    if isinstance(kind, pa.BaseExtensionType):
        return _values(array.storage)
    for fits, make in _makers():
        if fits(kind):
            return list(make(array))
    return list(array.to_pylist())


def _makers() -> list[tuple[Any, Any]]:
    import pyarrow.types as types

    return [
        (lambda kind: types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind), _numbers),
        (_is_text, _objects),
        (types.is_temporal, _times),
        (types.is_dictionary, _of_dictionary),
        (types.is_struct, _structs),
        (lambda kind: types.is_list(kind) or types.is_large_list(kind), _lists),
        (types.is_fixed_size_list, _fixed_lists),
        (lambda kind: str(kind).startswith(("list_view", "large_list_view")), _list_views),
        (types.is_run_end_encoded, _runs),
    ]


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    return any(
        fits(kind)
        for fits in (
            types.is_string,
            types.is_large_string,
            types.is_binary,
            types.is_large_binary,
            types.is_fixed_size_binary,
        )
    )


def _with_nulls(values: list[Any], array: Any) -> list[Any]:
    if array.null_count:
        for row in array.is_null().to_numpy(zero_copy_only=False).nonzero()[0].tolist():
            values[row] = None
    return values


def _filled(array: Any) -> Any:
    """As numpy's, with anything where there is no value: zeros for integers, which would lose digits beside a NaN."""
    import pyarrow as pa
    import pyarrow.types as types

    if array.null_count and not types.is_floating(array.type):
        array = array.fill_null(pa.scalar(0).cast(array.type))
    return array.to_numpy(zero_copy_only=False)


def _numbers(array: Any) -> list[Any]:
    return _with_nulls(_filled(array).tolist(), array)


def _objects(array: Any) -> list[Any]:
    return list(array.to_numpy(zero_copy_only=False).tolist())


def _as_times(array: Any) -> Any:
    """Times of the day and durations as numpy's timedelta64, days and instants as its datetime64."""
    import pyarrow as pa
    import pyarrow.types as types

    kind = array.type
    if types.is_time32(kind):
        array = array.cast(pa.int32()).cast(pa.int64()).cast(pa.duration(kind.unit))
    elif types.is_time64(kind):
        array = array.cast(pa.int64()).cast(pa.duration(kind.unit))
    elif types.is_date32(kind):
        return array.to_numpy(zero_copy_only=False).astype("datetime64[D]")
    elif types.is_date64(kind):
        return array.to_numpy(zero_copy_only=False).astype("datetime64[ms]")
    return array.to_numpy(zero_copy_only=False)


def _times(array: Any) -> list[Any]:
    import pyarrow.types as types

    if types.is_interval(array.type):
        return list(array.to_pylist())
    return _with_nulls(list(_as_times(array)), array)


def _of_dictionary(array: Any) -> list[Any]:
    import pyarrow.types as types

    kind = array.type.value_type
    if not (_is_text(kind) or types.is_primitive(kind)):
        return _values(array.dictionary_decode())  # rows that shared a list would change each other's
    values = _values(array.dictionary)
    return [None if index is None else values[index] for index in _numbers(array.indices)]


def _structs(array: Any) -> list[Any]:
    names = [array.type.field(number).name for number in range(array.type.num_fields)]
    if len(set(names)) < len(names):
        raise StoreError(f"a struct has several fields of one name: {names}; a dict would hold only one of them")
    if not names:
        return _with_nulls([{} for _ in range(len(array))], array)
    columns = (_values(column) for column in array.flatten())
    return _with_nulls([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], array)


def _lists(array: Any) -> list[Any]:
    offsets = array.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    ends = (offsets - first).tolist()
    return _with_nulls(_cut(array.values.slice(first, last - first), list(pairwise(ends))), array)


def _list_views(array: Any) -> list[Any]:
    present = array.is_valid().to_numpy(zero_copy_only=False)
    starts = array.offsets.to_numpy() * present
    ends = starts + array.sizes.to_numpy() * present
    return _with_nulls(_cut(array.values, list(zip(starts.tolist(), ends.tolist(), strict=True))), array)


def _fixed_lists(array: Any) -> list[Any]:
    size, rows = array.type.list_size, len(array)
    inside = array.values.slice(array.offset * size, rows * size)
    return _with_nulls(_cut(inside, [(row * size, (row + 1) * size) for row in range(rows)]), array)


def _cut(values: Any, bounds: list[tuple[int, int]]) -> list[Any]:
    """Values cut into one array for each row, or a list where they are no numbers or some are missing."""
    if not _is_numeric(values.type):
        made = _values(values)
        return [made[start:end] for start, end in bounds]
    flat = _as_times(values) if _is_time(values.type) else _filled(values)
    # Copies: a view would be read-only, and keep all rows of the batch in memory as long as one of them lives.
    rows: list[Any] = [flat[start:end].copy() for start, end in bounds]
    if values.null_count:
        missing = values.is_null().to_numpy(zero_copy_only=False)
        for number, (start, end) in enumerate(bounds):
            if missing[start:end].any():
                rows[number] = _values(values.slice(start, end - start))
    return rows


def _is_time(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_temporal(kind) and not types.is_interval(kind))


def _is_numeric(kind: Any) -> bool:
    import pyarrow.types as types

    return _is_time(kind) or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)


def _runs(array: Any) -> list[Any]:
    import pyarrow.compute as pc

    return _values(pc.run_end_decode(array))
