"""Checks of arguments: each says the rule and the value, on the line where the chain is written."""

import re
from collections.abc import Iterable
from numbers import Integral, Real

__all__ = [
    "bytes_from",
    "require_at_least",
    "require_callable",
    "require_epoch",
    "require_int",
    "require_one_of",
    "require_positive_seconds",
    "require_seconds",
]


def require_int(name: str, value: object) -> None:
    """Raise TypeError unless `value` is an integer (numpy's count, booleans don't)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")


def require_at_least(name: str, value: object, minimum: int) -> None:
    """Raise TypeError unless `value` is an integer, ValueError if it is below `minimum`."""
    require_int(name, value)
    if value < minimum:  # type: ignore[operator]  # an Integral, by the line above
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")


def require_epoch(epoch: object) -> None:
    """Raise unless `epoch` is an integer from 0 to 2^31 - 1."""
    require_at_least("epoch", epoch, 0)
    if epoch >= 1 << 31:  # type: ignore[operator]  # an Integral, by the line above
        raise ValueError(f"epoch must be below 2**31, got {epoch!r}")


def require_one_of(name: str, value: object, known: Iterable[object]) -> None:
    """Raise ValueError unless `value` is one of those that are known."""
    known = list(known)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def require_callable(name: str, value: object) -> None:
    """Raise TypeError unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r} ({type(value).__name__})")


def require_seconds(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a number, ValueError if it is negative or not a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of seconds, got {value!r} ({type(value).__name__})")
    if not float(value) >= 0:
        raise ValueError(f"{name} must be at least 0 seconds, got {value!r}")


def require_positive_seconds(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a number, ValueError unless it is above 0."""
    require_seconds(name, value)
    if value == 0:
        raise ValueError(f"{name} must be more than 0 seconds, got {value!r}")


_BYTES = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}


def bytes_from(name: str, value: object) -> int:
    """A number of bytes, from an integer or a text such as "64MB" or "1.5 GiB".

    Raises:
        TypeError: If it is neither.
        ValueError: If it is less than 1, or the text is none of these.
    """
    if not isinstance(value, str):
        require_at_least(name, value, 1)
        return int(value)  # type: ignore[call-overload, no-any-return]  # an Integral, by the line above
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)?\s*", value)
    size = 0 if match is None else int(float(match[1]) * _BYTES[match[2] or ""])
    if size < 1:
        raise ValueError(f"{name} must be a number of bytes such as 1000000, '64MB' or '50GB', got {value!r}")
    return size
