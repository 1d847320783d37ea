"""The chain whose picture the README shows: photographs as JPEG, from a store that takes 20 ms to answer.

squirrel-torch profile docs/tools/slow_bucket.py:chain --save docs/pictures/verdict.svg
"""

import io
import time

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from squirrel_torch import IterableSource, MemoryStore
from torch.utils.data import default_collate

store = MemoryStore()
_rows = np.random.default_rng(0).integers(0, 427 - 224, 400)
for _number, _row in enumerate(_rows):
    _written = io.BytesIO()
    Image.fromarray(load_sample_images().images[_number % 2][_row : _row + 224, :224]).save(_written, "JPEG", quality=90)
    store.set(_written.getvalue(), f"{_number:03}")


def fetch(key: str) -> bytes:
    """A sample, as late as a bucket gives it."""
    time.sleep(0.02)
    sample: bytes = store.get(key)
    return sample


def decode(sample: bytes) -> np.ndarray:
    """The image: uint8, [224, 224, 3]."""
    with Image.open(io.BytesIO(sample)) as image:
        return np.array(image.convert("RGB"))


chain = IterableSource(store.keys()).shuffle(1000).async_map(fetch, max_workers=4).map(decode).batched(32, default_collate)
