"""Batches for training: a DataLoader that knows how far it has come."""

from squirrel_torch.loader.loader import StreamLoader
from squirrel_torch.loader.padding import Padded

__all__ = ["Padded", "StreamLoader"]
