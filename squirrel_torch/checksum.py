"""What texts are told apart by."""

from __future__ import annotations

from typing import Literal

__all__ = ["checksum_of"]


def checksum_of(text: str, bits: Literal[64, 128] = 64) -> str:
    """The xxh3 of a text as UTF-8, hexadecimal."""
    import xxhash

    digest = xxhash.xxh3_64_hexdigest if bits == 64 else xxhash.xxh3_128_hexdigest
    return str(digest(text.encode()))
