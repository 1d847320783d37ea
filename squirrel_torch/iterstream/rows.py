"""Which sources give their items by number, and so can be started anywhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import IterableDataset

from squirrel_torch.storage import Keys, ListRows, RangeRows, Readable, Rows

__all__ = ["rows_of"]

_FITS = 1 << 62
_SNAPSHOTS: tuple[type, ...] = (Mapping, deque, type({}.keys()), type({}.values()), type({}.items()))


def rows_of(source: object) -> Rows | None:
    """The items of a source under their numbers, in the order in which it gives them; None if it has no numbers.

    Asked where a stream starts: what a list holds then is what the stream gives. A set has no numbers: one of texts has
    another order in each process.
    """
    if isinstance(source, Readable | Keys):
        return source._by_number()
    if isinstance(source, _SNAPSHOTS):
        return ListRows(list(source))  # type: ignore[call-overload]  # all of these can be iterated
    if isinstance(source, range) and max(map(abs, (source.start, source.stop, source.step))) < _FITS:
        return RangeRows(source)
    if isinstance(source, np.ndarray | torch.Tensor):
        return ListRows(source) if source.ndim else None
    if isinstance(source, Sequence) or _is_map_style(source):
        return ListRows(source)
    return None


def _is_map_style(source: object) -> bool:
    kind = type(source)
    if not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__")) or isinstance(source, IterableDataset):
        return False
    # What also iterates may give something else then, as a table does; `__getitems__` is a dataset's.
    return hasattr(kind, "__getitems__") or not (hasattr(kind, "__iter__") or callable(source))
