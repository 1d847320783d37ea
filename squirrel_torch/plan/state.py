"""States as they are kept in checkpoints: plain JSON types, with a version and a checksum, and nothing that could do harm.

They may come from anywhere: a state is looked through as a whole before anything is taken from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from squirrel_torch.checksum import checksum_of
from squirrel_torch.errors import StateError

__all__ = ["LEFT_OUT", "seal", "unseal", "whole"]

LEFT_OUT: Final = "left_out"
"""Where a state tells of positions that nobody is to get."""

_PLAIN: Final = 1
_WITH_GAPS: Final = 2
"""The version of states with something under `LEFT_OUT`: whoever knows version 1 alone would deliver it."""

_MARK: Final = "squirrel_torch"
_CHECK: Final = "check"
_MOST_BYTES: Final = 16 << 20
_MOST_NUMBER: Final = 1 << 63
_MOST_DEPTH: Final = 60
_SHOWN: Final = 80


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """A fresh copy of `content`, plain JSON types, marked and with its checksum."""
    text = _text({_MARK: _WITH_GAPS if content.get(LEFT_OUT) else _PLAIN, **content})
    state: dict[str, Any] = json.loads(text)
    state[_CHECK] = checksum_of(text)
    return state


def unseal(state: object) -> dict[str, Any]:
    """The content of a state that `seal` made, as a fresh copy.

    Raises:
        StateError: If it is none, was changed, or is of another version.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"a state must be the dict that state_dict() gave, got {type(state).__name__}: {_shown(state)}")
    if _MARK not in state or _CHECK not in state:
        raise StateError(f"this is no state of a squirrel_torch loader: it has the keys {_shown(list(state))}")
    if type(state[_MARK]) is not int or state[_MARK] not in (_PLAIN, _WITH_GAPS):
        raise StateError(
            f"the state has version {_shown(state[_MARK])}, this is for the versions {_PLAIN} and {_WITH_GAPS}: "
            "load it with the version of squirrel_torch that saved it"
        )
    _Limits().look(state, 0)
    content = {key: value for key, value in state.items() if key != _CHECK}
    text = _text(content)
    if state[_CHECK] != checksum_of(text):
        raise StateError("the state has another checksum than when it was saved: it was damaged or edited")
    told: dict[str, Any] = json.loads(text)
    del told[_MARK]
    return told


def whole(told: Mapping[str, Any], name: str, least: int = 0) -> int:
    """The whole number under `name`.

    Raises:
        StateError: If there is none, or it is below `least`.
    """
    value = told.get(name)
    if type(value) is not int or value < least:
        raise StateError(f"{name} in the state must be a whole number from {least} on, got {_shown(value)}")
    return value


class _Limits:
    """Sees to it that a state is small and plain, before anything copies it."""

    def __init__(self) -> None:
        self._left = _MOST_BYTES

    def look(self, value: object, depth: int) -> None:
        self._left -= 2
        kind = type(value)
        if kind is str:
            self._left -= len(value)  # type: ignore[arg-type]  # seen to be a text
        elif kind is int:
            if not -_MOST_NUMBER <= value < _MOST_NUMBER:  # type: ignore[operator]  # seen to be a number
                raise StateError("a number in the state does not fit 64 bits")
        elif isinstance(value, Mapping | list | tuple):
            self._look_inside(value, depth + 1)
        elif not (value is None or kind is bool):
            raise StateError(
                f"a state holds whole numbers, texts, lists and dicts; there is a {kind.__name__}: {_shown(value)}"
            )
        if self._left < 0:
            raise StateError(f"a state has at most {_MOST_BYTES} bytes, this one has more")

    def _look_inside(self, value: Mapping[Any, Any] | list[Any] | tuple[Any, ...], depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise StateError(f"the state is nested deeper than {_MOST_DEPTH} levels")
        if not isinstance(value, Mapping):
            for part in value:
                self.look(part, depth)
            return
        for key, part in value.items():
            if type(key) is not str:
                raise StateError(f"keys in a state are texts, got {_shown(key)} ({type(key).__name__})")
            self.look(key, depth)
            self.look(part, depth)


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise StateError(f"a state can't hold a {type(value).__name__}: {_shown(value)}")


def _shown(value: object) -> str:
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = _SHOWN
    return short.repr(value)
