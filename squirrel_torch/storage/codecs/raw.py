"""Bytes as they are."""

from typing import Any, ClassVar

from squirrel_torch.errors import SampleEncodingError

__all__ = ["RawCodec"]


class RawCodec:
    """Bytes as they are, such as those of images that are encoded already. A bytearray or memoryview comes back as bytes."""

    name: ClassVar[str] = "raw"
    suffix: ClassVar[str] = ".bin"

    def encode(self, sample: Any) -> bytes:
        """The bytes themselves; see `Codec.encode`."""
        if type(sample) not in (bytes, bytearray, memoryview):
            raise SampleEncodingError(
                f"a sample must be bytes to be kept raw, got a {type(sample).__qualname__}: use the format 'msgpack' or 'json'"
            )
        return bytes(sample)

    def decode(self, data: bytes) -> bytes:
        """The bytes themselves."""
        return bytes(data)
