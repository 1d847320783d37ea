"""One module for each library that streams work with; each imports it at its top."""

__all__: list[str] = []
