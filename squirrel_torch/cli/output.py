"""What the command writes. Data come from anywhere: none of it may steer a terminal, or look like another line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any, Final, TextIO

import numpy as np
import torch

from squirrel_torch.storage.shards.field import Field

__all__ = ["complain", "counted", "describe_field", "plain", "say", "say_json", "show_sample", "to_json"]

_VALUES: Final = 6
_BYTES: Final = 16
_TEXT: Final = 80
_NAME: Final = 60
_FIELDS: Final = 100
_DEPTH: Final = 4
_JSON_VALUES: Final = 64


def plain(text: str) -> str:
    """`text` on one line, with escapes for all that is not printed as a character of its own."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def counted(number: int, what: str) -> str:
    """As ``1 row`` and ``2 rows``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def say(text: str) -> None:
    """One line of the answer."""
    _write(sys.stdout, text)


def say_json(value: Any) -> None:
    """One line of the answer, as JSON in ASCII."""
    _write(sys.stdout, json.dumps(value, ensure_ascii=True, allow_nan=False))


def complain(text: str) -> None:
    """One line about what is wrong, or going on."""
    _write(sys.stderr, text)


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    # A terminal that can't show a character gets its number.
    stream.write(plain(text).encode(encoding, "backslashreplace").decode(encoding) + "\n")


# -- samples for people -----------------------------------------------------------------------------------------------


def show_sample(sample: Any, indent: int = 1) -> Iterator[str]:
    """The lines that show a sample: a field on each."""
    pad = "  " * indent
    if not isinstance(sample, dict) or not sample or indent > _DEPTH:
        yield pad + _short(sample)
        return
    for number, (name, value) in enumerate(sample.items()):
        if number == _FIELDS:
            yield f"{pad}... {len(sample) - number} more fields"
            return
        label = _cut(plain(str(name)), _NAME)
        if isinstance(value, dict) and value and indent < _DEPTH:
            yield f"{pad}{label}:"
            yield from show_sample(value, indent + 1)
        else:
            yield f"{pad}{label}: {_short(value)}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _short(value: Any, depth: int = 0) -> str:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"tensor {dtype}{list(value.shape)}{_some(_first_of_tensor(value), value.numel())}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name}{list(value.shape)}{_some(list(value.flat[:_VALUES]), value.size)}"
    if isinstance(value, str):
        more = f" ({len(value)} characters)" if len(value) > _TEXT else ""
        return _cut(repr(value[:_TEXT]), 4 * _TEXT) + ("..." if more else "") + more
    if isinstance(value, bytes | bytearray | memoryview):
        first = bytes(value[:_BYTES])
        return f"bytes[{len(value)}] {first!r}{'...' if len(value) > _BYTES else ''}"
    if isinstance(value, np.generic):
        return f"{value.dtype.name} {_number(value)}"
    if isinstance(value, dict | list | tuple):
        return _short_container(value, depth)
    return _cut(repr(value), _TEXT)


def _short_container(value: dict[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> str:
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]") if isinstance(value, list) else ("(", ")")
    if depth == _DEPTH:
        return f"{opening}{len(value)} inside{closing}"
    if isinstance(value, dict):
        parts = [f"{_cut(str(name), _NAME)}: {_short(inside, depth + 1)}" for name, inside in list(value.items())[:_VALUES]]
    else:
        parts = [_short(inside, depth + 1) for inside in value[:_VALUES]]
    more = [f"... {len(value) - _VALUES} more"] if len(value) > _VALUES else []
    return f"{opening}{', '.join(parts + more)}{closing}"


def _first_of_tensor(value: torch.Tensor, most: int = _VALUES) -> list[Any]:
    flat = value.detach().reshape(-1)[:most]
    if not flat.dtype.is_floating_point and not flat.dtype.is_complex:
        return flat.tolist()
    # Types of 8 and 16 bits have not all operations.
    return flat.to(torch.complex128 if flat.dtype.is_complex else torch.float64).tolist()


def _some(first: list[Any], count: int) -> str:
    return "".join(f" {_number(one)}" for one in first) + (" ..." if count > len(first) else "")


def _number(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}"
    if isinstance(value, str | bytes):
        return _cut(repr(value), _TEXT)
    return str(value)


# -- samples for programs ---------------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """A sample as plain JSON types: arrays as dtype, shape and their first elements, bytes as their number and the first."""
    if isinstance(value, torch.Tensor):
        first = _first_of_tensor(value, _JSON_VALUES)
        return {"dtype": str(value.dtype), "shape": list(value.shape), "first": to_json(first)}
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.name, "shape": list(value.shape), "first": to_json(list(value.flat[:_JSON_VALUES]))}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": len(value), "first": bytes(value[:_JSON_VALUES]).hex()}
    if isinstance(value, dict):
        return {str(name): to_json(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inside) for inside in value]
    return _leaf_to_json(value)


def _leaf_to_json(value: Any) -> Any:
    if isinstance(value, np.bool_ | np.integer | np.floating):
        value = value.item()
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


# -- what samples are made of -----------------------------------------------------------------------------------------


def describe_field(field: Field | None) -> Iterator[str]:
    """The lines that show what samples are made of: a field on each."""
    if field is None:
        yield "  nothing yet"
    elif field.kind != "dict" or field.nullable:
        yield f"  {field.describe()}"
    else:
        width = min(_NAME, max((len(plain(name)) for name in field.names), default=0))
        for name, part in zip(field.names, field.parts, strict=True):
            yield f"  {_cut(plain(name), _NAME):<{width}}  {part.describe()}"
