"""The monitors of a chain, wherever in it they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from squirrel_torch.iterstream.stage import Stage
from squirrel_torch.iterstream.stages import Monitored

__all__ = ["Place", "monitors_of"]


class Place(Protocol):
    """One place of a chain, as it is looked through."""

    @property
    def _stage(self) -> Stage[Any, Any] | None:
        """What is done there."""

    @property
    def _branches(self) -> Iterable[Iterable[Place]]:
        """The places of the streams that are mixed there."""


def monitors_of(links: Iterable[Place]) -> list[Monitored[Any]]:
    """The monitors of a chain and of the streams that it mixes, from the source on."""
    found: list[Monitored[Any]] = []
    for link in links:
        for branch in link._branches:
            found += monitors_of(branch)
        if isinstance(link._stage, Monitored):
            found.append(link._stage)
    return found
