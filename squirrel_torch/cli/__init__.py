"""The command ``squirrel-torch``: look at datasets, check them, convert into them; measure pipelines."""

from squirrel_torch.cli.command import main

__all__ = ["main"]
