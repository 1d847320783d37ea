"""Where samples are kept: stores, and the contract that they share."""

from squirrel_torch.storage.filesystem import FilesystemStore
from squirrel_torch.storage.memory import MemoryStore
from squirrel_torch.storage.rows import Ids, KeyRows, ListRows, Located, NumberedBlocks, RangeRows, Rows
from squirrel_torch.storage.sample import check_sample
from squirrel_torch.storage.shards import ShardStore
from squirrel_torch.storage.store import Keys, PartOfRows, Readable, Store, require_store, store_reader
from squirrel_torch.storage.writing import Group, Writing, Written

__all__ = [
    "FilesystemStore",
    "Group",
    "Ids",
    "KeyRows",
    "Keys",
    "ListRows",
    "Located",
    "MemoryStore",
    "NumberedBlocks",
    "PartOfRows",
    "RangeRows",
    "Readable",
    "Rows",
    "ShardStore",
    "Store",
    "Writing",
    "Written",
    "check_sample",
    "require_store",
    "store_reader",
]
