"""Checks of arguments: each says the rule and the value, on the line where the chain is written."""

from numbers import Integral, Real

__all__ = [
    "require_at_least",
    "require_callable",
    "require_epoch",
    "require_int",
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
