"""The samples that storage is measured with, and whether what came back is what went in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np

__all__ = ["ARRAYS", "BYTES", "IMAGE_BYTES", "SMALL", "TOKENS", "Kind"]

TOKENS = 128
IMAGE_BYTES = 100_000
_rng = np.random.default_rng(0)
_tokens = _rng.integers(0, 50_000, (4093, TOKENS), dtype=np.int32)
_images = _rng.integers(0, 256, (61, IMAGE_BYTES), dtype=np.uint8)
_encoded = [image.tobytes() for image in _images]


@dataclass(frozen=True)
class Kind:
    """Samples that are made from their number.

    Args:
        name: In the names of tables.
        make: Gives the sample of a number.
        same: Whether what came back is that sample: its number, and an element of each field.
        number: The number that a sample holds.
    """

    name: str
    make: Callable[[int], dict[str, Any]]
    same: Callable[[dict[str, Any], int], bool]
    number: Callable[[dict[str, Any]], int]

    def samples(self, n: int) -> list[dict[str, Any]]:
        """The first samples."""
        return [self.make(i) for i in range(n)]

    def check(self, given: Iterable[dict[str, Any]], numbers: Iterable[int], whose: str) -> None:
        """Raise AssertionError unless these samples came, in this order."""
        for sample, number in zip(given, numbers, strict=True):
            # Webdataset adds a key.
            assert set(sample) - {"__key__"} == set(self.make(number)), f"{whose}: {set(sample)}"
            assert self.same(sample, number), f"{whose}: sample {number}"


def _small(i: int) -> dict[str, Any]:
    return {"id": i, "tokens": _tokens[i % len(_tokens)], "label": i % 10}


def _same_small(sample: dict[str, Any], i: int) -> bool:
    tokens = sample["tokens"]
    same = tokens[i % TOKENS] == _tokens[i % len(_tokens), i % TOKENS]
    return len(tokens) == TOKENS and bool(same) and (sample["id"], sample["label"]) == (i, i % 10)


def _with_bytes(i: int) -> dict[str, Any]:
    return {"image": _encoded[i % len(_encoded)], "label": i % 10, "meta": {"id": i, "source": f"camera {i % 7}"}}


def _with_array(i: int) -> dict[str, Any]:
    return {"image": _images[i % len(_images)], "label": i % 10, "meta": {"id": i, "source": f"camera {i % 7}"}}


def _same_medium(sample: dict[str, Any], i: int) -> bool:
    image, meta = sample["image"], sample["meta"]
    same = image[i % IMAGE_BYTES] == _images[i % len(_images), i % IMAGE_BYTES]
    told = (sample["label"], meta["id"], meta["source"]) == (i % 10, i, f"camera {i % 7}")
    return len(image) == IMAGE_BYTES and bool(same) and told


def _number_of_medium(sample: dict[str, Any]) -> int:
    return int(sample["meta"]["id"])


SMALL = Kind("small", _small, _same_small, itemgetter("id"))
BYTES = Kind("bytes", _with_bytes, _same_medium, _number_of_medium)
ARRAYS = Kind("arrays", _with_array, _same_medium, _number_of_medium)
