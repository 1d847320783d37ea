"""A pipeline by its name, as ``module:name``: what the commands that run one are told."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from squirrel_torch.iterstream import Composable, TorchIterable
from squirrel_torch.loader import StreamLoader

__all__ = ["Pipeline", "pipeline_of"]

Pipeline = Composable[Any] | StreamLoader[Any]


def pipeline_of(name: str) -> Pipeline:
    """The chain or the loader of that name. Its module is imported, which runs its code.

    Args:
        name: ``module:name``, or ``file.py:name``. The module is looked for in the working directory too. What it names is a
            chain, what `to_torch_iterable()` made of one, a StreamLoader, or a function without arguments that gives one.

    Raises:
        ValueError: If there is none of that name.
        TypeError: If it is something else.
        ImportError: If the module can't be imported.
    """
    module_name, colon, path = name.rpartition(":")
    if not (colon and module_name and path):
        raise ValueError(f"a pipeline is named as module:name or file.py:name, got {name!r}")
    found: Any = _module_of(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module_name} has no {path}, and no pipeline is found as {name!r}")
        found = getattr(found, part)
    if callable(found) and not isinstance(found, Composable | TorchIterable | StreamLoader):
        found = found()
    if isinstance(found, TorchIterable):
        found = found.chain
    if not isinstance(found, Composable | StreamLoader):
        kind = type(found).__name__
        raise TypeError(f"{name} is a {kind}, and neither a chain, a StreamLoader, nor a function that gives one")
    return found


def _module_of(name: str) -> Any:
    if not name.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"there is no file {name!r}")
    known = path.stem
    spec = importlib.util.spec_from_file_location(known, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{name!r} is no file of Python code")
    # By its own name, with its folder to import from: worker processes that are spawned import it again.
    sys.path.insert(0, str(path.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module
    spec.loader.exec_module(module)
    return module
