"""Batches for training: a DataLoader that knows how far it has come, and the worker processes that make batches for it."""

from squirrel_torch.loader.loader import StreamLoader
from squirrel_torch.loader.padding import Padded, unpadded
from squirrel_torch.loader.provenance import Origin
from squirrel_torch.loader.serving import Serve
from squirrel_torch.loader.waits import Waited
from squirrel_torch.loader.workers import END, End, Workers

__all__ = ["END", "End", "Origin", "Padded", "Serve", "StreamLoader", "Waited", "Workers", "unpadded"]
