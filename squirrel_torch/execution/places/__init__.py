"""The places where callbacks run, a file for each kind."""

__all__: list[str] = []
