"""Generators for callbacks that ask for one: a function of (seed, epoch, place in the chain, sample), and of nothing else.

So a sample is augmented in the same way on any worker and executor, in any order of work, and after any resume.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from squirrel_torch.seeding import Path, Seed, key_words

__all__ = ["Keys", "Wanted", "wanted_by"]

_NAME: Final = "rng"


@dataclass(frozen=True)
class Wanted:
    """What a callback asks for.

    Args:
        name: The parameter that takes the generator.
        torch: Whether it is one of torch; else one of numpy.
    """

    name: str
    torch: bool


def wanted_by(callback: Callable[..., Any]) -> Wanted | None:
    """The generator that a callback asks for; None if it asks for none.

    It asks by a parameter behind the first one that has no value yet and is annotated `numpy.random.Generator` or
    `torch.Generator`, or is called "rng"; then it is numpy's.
    """
    try:
        parameters = list(inspect.signature(callback, eval_str=True).parameters.values())
    except Exception:  # noqa: BLE001  # annotations that can't be evaluated here: as text they may do
        try:
            parameters = list(inspect.signature(callback).parameters.values())
        except (TypeError, ValueError):
            return None  # of C: there is nothing to look at
    bound = callback.keywords if isinstance(callback, functools.partial) else {}
    for parameter in parameters[1:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) or parameter.name in bound:
            continue
        of_torch = _is(parameter.annotation, torch.Generator)
        if of_torch or _is(parameter.annotation, np.random.Generator) or parameter.name == _NAME:
            return Wanted(parameter.name, of_torch)
    return None


def _is(annotation: object, kind: type) -> bool:
    if isinstance(annotation, str):  # as `from __future__ import annotations` leaves it
        names = ("torch.Generator",) if kind is torch.Generator else ("np.random.Generator", "numpy.random.Generator")
        return annotation in names
    return annotation is kind


@dataclass(frozen=True)
class Keys:
    """Makes the generators of one stage, in whatever process.

    Args:
        wanted: What its callback asks for.
        seed: Of the last stage before it that has one.
        epoch: Number of the pass.
        path: Where in the chain the stage is.
    """

    wanted: Wanted
    seed: Seed
    epoch: int
    path: Path

    def arguments(self, key: Any) -> dict[str, Any]:
        """The keyword argument for the sample `key` names: a whole number, or a tuple of these."""
        first, second = key_words(self.seed, self.epoch, (*self.path, repr(key)), 2)
        if self.wanted.torch:
            return {self.wanted.name: torch.Generator().manual_seed(first >> 1)}
        words = np.array([first, second], np.uint64)
        return {self.wanted.name: np.random.Generator(np.random.Philox(key=words))}
