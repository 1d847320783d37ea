"""Datasets in shards: Arrow IPC files, listed in one manifest that is replaced as a whole."""

from squirrel_torch.storage.shards.store import ShardStore

__all__ = ["ShardStore"]
