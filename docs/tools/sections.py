"""Docstrings as the reference shows them."""

import ast
import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """`Example:` is the section of examples, which griffe knows by its plural only."""

    def on_instance(self, *, node: ast.AST | griffe.ObjectNode, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object that has been read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
