"""What a manifest says of a shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from squirrel_torch.storage.shards.encoding import arrow_type
from squirrel_torch.storage.shards.field import Field

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FOLDER", "ShardEntry", "is_struct"]

FOLDER: Final = "shards"


@dataclass(frozen=True)
class ShardEntry:
    """What a manifest says of a shard.

    Args:
        name: The name of its file.
        rows: How many samples it holds.
        size: Its bytes.
        checksum: xxh3 (128 bits, hexadecimal) of its bytes.
        field: What its samples are made of.
        block_rows: How many rows each block has, the last one perhaps fewer.
        ends: Where the first block begins and where each one ends, in bytes.
        sums: xxh3 (64 bits, hexadecimal) of the bytes of each block.
        keyed: Whether the samples have keys of their own.
        compression: None, "lz4" or "zstd".
    """

    name: str
    rows: int
    size: int
    checksum: str
    field: Field
    block_rows: int
    ends: tuple[int, ...]
    sums: tuple[str, ...]
    keyed: bool
    compression: str | None = None

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return len(self.sums)

    def rows_of(self, block: int) -> int:
        """How many rows a block has."""
        return min(self.block_rows, self.rows - block * self.block_rows)

    def schema(self) -> pa.Schema:
        """The schema of its file."""
        import pyarrow as pa

        fields = [pa.field("key", pa.large_string())] if self.keyed else []
        if is_struct(self.field):
            parts = zip(self.field.names, self.field.parts, strict=True)
            fields += [pa.field(name, arrow_type(part)) for name, part in parts]
        else:
            fields.append(pa.field("value", arrow_type(self.field)))
        return pa.schema(fields)


def is_struct(field: Field) -> bool:
    """Whether the fields of the samples are columns of the file: not if samples may be None, or are no dicts."""
    return field.kind == "dict" and not field.nullable and bool(field.parts)
