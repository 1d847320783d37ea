"""Streams for Lightning's Trainer.

`module.py` and `monitor.py` are what users see; `loop.py` is all that knows how Lightning's training loop counts.
"""

from squirrel_torch.integrations.lightning.module import StreamDataModule
from squirrel_torch.integrations.lightning.monitor import StreamMonitor

__all__ = ["StreamDataModule", "StreamMonitor"]
