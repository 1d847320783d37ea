"""Codecs: samples as bytes. No bytes are ever executed, unpickled, or trusted for the memory they ask for."""

from collections.abc import Callable
from typing import Final

from squirrel_torch.checks import require_one_of
from squirrel_torch.storage.codecs.codec import Codec
from squirrel_torch.storage.codecs.json import JsonCodec
from squirrel_torch.storage.codecs.msgpack import MsgpackCodec
from squirrel_torch.storage.codecs.raw import RawCodec

__all__ = ["Codec", "JsonCodec", "MsgpackCodec", "RawCodec", "codec_for"]

_CODECS: Final[dict[str, Callable[[], Codec]]] = {"msgpack": MsgpackCodec, "json": JsonCodec, "raw": RawCodec}


def codec_for(name: str) -> Codec:
    """The codec of this name.

    Args:
        name: "msgpack", "json" or "raw".

    Raises:
        ValueError: If there is none.
    """
    require_one_of("format", name, _CODECS)
    return _CODECS[name]()
