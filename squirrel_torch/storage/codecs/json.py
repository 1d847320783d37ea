"""Samples as JSON."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, ClassVar, Final, NoReturn

from squirrel_torch.errors import CorruptDataError
from squirrel_torch.storage.codecs.typed import Typed, TypedCodec, check_decoded, from_typed

__all__ = ["JsonCodec"]

_TAG: Final = "__squirrel_torch__"
_BYTES: Final = {_TAG, "data"}
_ARRAY: Final = {_TAG, "dtype", "shape", "data"}
_WITH_SHAPE: Final = ("ndarray", "scalar", "tensor")


class JsonCodec(TypedCodec):
    """Samples as JSON text in UTF-8, for people and other programs to read.

    Text, booleans, None, lists, dicts, finite floats and integers of 64 bits are just that in JSON. Other values are objects
    with the key "__squirrel_torch__", which names their type; bytes, and those of arrays in C order, are base64.

    What comes back has the types that were given, with these exceptions: bytearray and memoryview are bytes, a subclass of
    a dict, list, tuple, number or text is the plain type, arrays and tensors are contiguous, tensors are on the CPU and
    require no gradient.
    """

    name: ClassVar[str] = "json"
    suffix: ClassVar[str] = ".json"
    plain: ClassVar[frozenset[type]] = frozenset({str, bool, type(None)})

    def decode(self, data: bytes) -> Any:
        """The sample of these bytes; see `Codec.decode`."""
        try:
            # surrogatepass: names of files may hold halves of characters.
            sample = _DECODER.decode(bytes(data).decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(f"it is no JSON text of a sample: {_said(error)}") from error
        check_decoded(sample, frozenset())
        return sample

    def _pack(self, written: Any) -> bytes:
        return _ENCODER.encode(written).encode("utf-8", "surrogatepass")

    def _list(self, items: list[Any]) -> Any:
        return items

    def _tuple(self, items: list[Any]) -> Any:
        return {_TAG: "tuple", "items": items}

    def _dict(self, items: dict[str, Any]) -> Any:
        # A dict that looks like one of ours is kept as its pairs.
        return items if _TAG not in items else {_TAG: "dict", "pairs": [list(pair) for pair in items.items()]}

    def _tagged(self, typed: Typed) -> Any:
        tagged: dict[str, Any] = {_TAG: typed.kind}
        if typed.kind in _WITH_SHAPE:
            tagged |= {"dtype": typed.dtype, "shape": list(typed.shape)}
        return {**tagged, "data": base64.b64encode(typed.data).decode("ascii")}


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """What a JSON object stands for."""
    items = dict(pairs)
    if len(items) < len(pairs):
        raise CorruptDataError("an object has one key twice")
    if _TAG not in items:
        return items
    kind = items[_TAG]
    if type(kind) is not str:
        raise CorruptDataError(f"an object with the key {_TAG!r} does not name its type")
    if kind == "tuple" and items.keys() == {_TAG, "items"} and type(items["items"]) is list:
        return tuple(items["items"])
    if kind == "dict" and items.keys() == {_TAG, "pairs"}:
        return _escaped(items["pairs"])
    if items.keys() == (_ARRAY if kind in _WITH_SHAPE else _BYTES):
        return from_typed(_typed(kind, **{name: items[name] for name in items if name != _TAG}))
    raise CorruptDataError(f"an object with the key {_TAG!r} has the keys {sorted(items)[:5]}, which no type has")


def _escaped(pairs: Any) -> dict[str, Any]:
    if type(pairs) is not list or any(type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str for pair in pairs):
        raise CorruptDataError("a dict must be written as pairs of a text and a value")
    items = dict(pairs)
    if len(items) < len(pairs):
        raise CorruptDataError("a dict has one key twice")
    return items


def _typed(kind: str, data: Any, dtype: Any = "", shape: Any = ()) -> Typed:
    if type(data) is not str or type(dtype) is not str or type(shape) not in (list, tuple):
        raise CorruptDataError(f"a value of type {kind[:50]!r} must have data and dtype as text and shape as a list")
    try:
        return Typed(kind, binascii.a2b_base64(data, strict_mode=True), dtype, shape)
    except ValueError as error:
        raise CorruptDataError(f"the data of a value of type {kind[:50]!r} is no base64: {error}") from error


def _constant(text: str) -> NoReturn:
    raise CorruptDataError(f"{text} is no JSON")


def _said(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
# No circles: samples are checked before.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)
