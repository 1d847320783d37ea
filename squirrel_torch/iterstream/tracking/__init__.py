"""Runs that can be gone on with from between any two items, though their order is not arithmetic."""

from squirrel_torch.iterstream.tracking.tracked import Given, Tracked, check_state, followed, track

__all__ = ["Given", "Tracked", "check_state", "followed", "track"]
