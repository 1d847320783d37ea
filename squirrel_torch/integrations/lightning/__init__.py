"""Streams for Lightning's Trainer.

`module.py` is what users see; `loop.py` is all that knows how Lightning's training loop counts.
"""

from squirrel_torch.integrations.lightning.module import StreamDataModule

__all__ = ["StreamDataModule"]
