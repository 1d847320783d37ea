"""What the places of a tracked run remember, on its way from a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from squirrel_torch.errors import StateError

__all__ = ["as_id", "check_memory", "restored", "said"]

_MOST: Final = 1 << 63
_DEEPEST: Final = 50


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_id(value: object, depth: int = 0) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 0 and depth < _DEEPEST and all(part is None or _is_id(part, depth + 1) for part in value)
    return _is_count(value)


def _are(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


_CHECKS: Final[Mapping[str, Callable[[object], bool]]] = {
    "count": _is_count,
    "counts": _are(_is_count),
    "flag": lambda value: type(value) is bool,
    "id": lambda value: value is None or _is_id(value),
    "ids": _are(_is_id),
    "tally": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "any": lambda _: True,
}


def check_memory(state: object, names: Sequence[Mapping[str, str]], links: Sequence[Any]) -> None:
    """Raise StateError unless `state` has a memory for each place, which holds what that may remember.

    Args:
        state: A list of memories, plain JSON types.
        names: For each place what it may remember: names, and "count", "counts", "flag", "id", "ids", "tally" or "any".
        links: The places, for messages.
    """
    if not isinstance(state, list) or len(state) != len(names):
        size = f"{len(state)} places" if isinstance(state, list) else f"a {type(state).__name__}"
        raise StateError(f"the state of a run of this chain tells of {len(names)} places, this one has {size}")
    for memory, allowed, link in zip(state, names, links[len(links) - len(names) :], strict=True):
        if not isinstance(memory, dict):
            raise StateError(f"the memory of {link._describe()} must be a dict, got {type(memory).__name__}")
        for name, value in memory.items():
            if name not in allowed:
                raise StateError(f"{link._describe()} does not remember {said(name)}")
            if not _CHECKS[allowed[name]](value):
                raise StateError(f"{name} of {link._describe()} must be of kind {allowed[name]!r}, got {said(value)}")


def said(value: object) -> str:
    """A part of a state in few words: what it is may be nested deeply, or a number that Python refuses to print."""
    if value is None or type(value) is str or (type(value) is int and abs(value) < 2 * _MOST):
        return f"{value!r:.60}"
    return f"a {type(value).__name__}"


def as_id(value: Any) -> Any:
    """An id as runs use it: tuples where JSON has lists."""
    return tuple([as_id(part) for part in value]) if isinstance(value, list | tuple) else value


def restored(memory: Mapping[str, Any]) -> dict[str, Any]:
    """A memory of a run's own, made from that of a state."""
    fresh = dict(memory)
    for name in ("held", "given"):
        if isinstance(fresh.get(name), list):
            fresh[name] = [as_id(value) for value in fresh[name]]
    if "open" in fresh:
        fresh["open"] = as_id(fresh["open"])
    return fresh
