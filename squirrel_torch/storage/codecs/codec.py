"""The contract of a codec."""

from typing import Any, ClassVar, Protocol

__all__ = ["Codec"]


class Codec(Protocol):
    """Makes bytes of a sample, and the sample of the bytes. It has no memory: one instance serves all threads."""

    name: ClassVar[str]
    """What `codec_for` knows it by."""

    suffix: ClassVar[str]
    """How the names of its files end."""

    def encode(self, sample: Any) -> bytes:
        """The bytes of a sample.

        Raises:
            SampleEncodingError: If it holds something that can't be kept.
        """

    def decode(self, data: bytes) -> Any:
        """The sample that `encode` made `data` of.

        Raises:
            CorruptDataError: If that is not what `data` is; nothing else is raised for any bytes.
        """
