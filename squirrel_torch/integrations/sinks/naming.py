"""Names of metrics such as a place allows them."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Names"]


class Names:
    """Makes names allowed, and refuses to make one of two.

    Args:
        allowed: Gives the name to use for a name.
    """

    def __init__(self, allowed: Callable[[str], str]) -> None:
        self._allowed = allowed
        self._known: dict[str, str] = {}
        self._of: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        """The name to use for `name`.

        Raises:
            ValueError: If it is the one of another name already, or nothing is left of it.
        """
        if name not in self._known:
            allowed = self._allowed(name)
            if not allowed:
                raise ValueError(
                    f"nothing is left of the metric name {name!r} without the characters that are not allowed here"
                )
            if (other := self._of.setdefault(allowed, name)) != name:
                raise ValueError(
                    f"the metrics {other!r} and {name!r} would both be named {allowed!r} here, where not all characters are "
                    "allowed: give one of the monitors another prefix"
                )
            self._known[name] = allowed
        return self._known[name]
