"""Checks that this package's own stages and stores pass, for stages and stores of your own too."""

from squirrel_torch.testing.resume import check_resume
from squirrel_torch.testing.stages import check_stage
from squirrel_torch.testing.stores import check_store

__all__ = ["check_resume", "check_stage", "check_store"]
