"""Batches made in worker processes, and handed over through memory that is used again and again."""

from squirrel_torch.loader.serving import Serve
from squirrel_torch.loader.workers import END, End, Workers

__all__ = ["END", "End", "Serve", "Workers"]
