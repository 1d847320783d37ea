"""Sinks for `monitor`, a file each, which imports its library. By name they are imported when a chain is built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from squirrel_torch.reporting import Sink

__all__ = ["sink_named"]

_SINKS: Final[Mapping[str, tuple[str, tuple[bool, ...]]]] = {
    "csv": ("CSVSink", (True,)),
    "mlflow": ("MLflowSink", (False,)),
    "prometheus": ("PrometheusSink", (True,)),
    "tensorboard": ("TensorBoardSink", (False, True)),
    "wandb": ("WandbSink", (False,)),
}
"""The class in the module of that name, and whether it may be named with a path, or without."""

_KNOWN: Final = (
    "'wandb', 'mlflow', 'tensorboard' or 'tensorboard:FOLDER', 'csv:FILE' and 'prometheus:FILE.prom'; "
    "what takes more arguments is an object, such as squirrel_torch.integrations.sinks.wandb.WandbSink"
)


def sink_named(text: str) -> Sink:
    """The sink of a name, such as "wandb" or "csv:figures.csv".

    Raises:
        ValueError: If there is no such sink, or it has an argument that it does not take, or lacks one.
        MissingDependencyError: If its library is not installed.

    Example:
        >>> sink_named("csv:figures.csv")
        CSVSink('figures.csv')
    """
    name, colon, argument = text.partition(":")
    if name not in _SINKS:
        raise ValueError(f"there is no sink named {text!r}; known are {_KNOWN}")
    kind, takes = _SINKS[name]
    if bool(argument) != bool(colon) or bool(argument) not in takes:
        raise ValueError(f"the sink {name!r} can't be named {text!r}; known are {_KNOWN}")
    made: Any = getattr(import_module(f"{__name__}.{name}"), kind)
    sink: Sink = made(argument) if argument else made()
    return sink
