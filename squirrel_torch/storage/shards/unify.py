"""The schema of which two others are cases."""

from __future__ import annotations

from dataclasses import replace

from squirrel_torch.errors import SchemaError
from squirrel_torch.storage.shards.field import Field

__all__ = ["unify"]


def unify(field: Field, other: Field, what: str, path: str = "sample", others: str = "in the samples before") -> Field:
    """The field of which both are cases.

    Args:
        field: What was known.
        other: What came now.
        what: Whose field `other` is, for messages.
        path: The place inside the sample.
        others: Where `field` was found, for messages.

    Raises:
        SchemaError: If there is none.
    """
    nullable = field.nullable or other.nullable
    if "none" in (field.kind, other.kind):
        kept = other if field.kind == "none" else field
        # A field without any element yet, of an empty list, is not None.
        return replace(kept, nullable=nullable or (field.kind == other.kind and field.nullable))
    if (field.kind, field.dtype) != (other.kind, other.dtype):
        raise _differs(what, path, other.describe(), field.describe(), others)
    if field.kind == "dict":
        return replace(field, nullable=nullable, parts=_unify_dict(field, other, what, path, others))
    if field.kind == "tuple" and len(field.parts) != len(other.parts):
        raise _differs(what, path, f"a tuple of {len(other.parts)}", f"one of {len(field.parts)} {others}; use a list", "")
    parts = tuple(
        unify(a, b, what, f"{path}[{'...' if field.kind == 'list' else index}]", others)
        for index, (a, b) in enumerate(zip(field.parts, other.parts, strict=True))
    )
    shape = field.shape if field.shape == other.shape else None
    return replace(field, nullable=nullable, shape=shape, ndim=field.ndim if field.ndim == other.ndim else None, parts=parts)


def _unify_dict(field: Field, other: Field, what: str, path: str, others: str) -> tuple[Field, ...]:
    theirs = dict(zip(other.names, other.parts, strict=True))
    for name in (*field.names, *other.names):
        if name not in theirs:
            raise _differs(what, f"{path}[{name!r}]", "missing", f"there {others}; give all samples the same keys", "")
        if name not in field.names:
            raise _differs(what, f"{path}[{name!r}]", "new", f"not there {others}; give all samples the same keys", "")
    return tuple(
        unify(part, theirs[name], what, f"{path}[{name!r}]", others)
        for name, part in zip(field.names, field.parts, strict=True)
    )


def _differs(what: str, path: str, now: str, before: str, others: str) -> SchemaError:
    return SchemaError(f"{what}: {path} is {now}, it was {before} {others}".rstrip())
