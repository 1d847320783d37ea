"""Where samples are kept: stores, and the contract that they share."""

from squirrel_torch.storage.memory import MemoryStore
from squirrel_torch.storage.sample import check_sample
from squirrel_torch.storage.store import PartOfRows, Readable, Store, Written, store_reader, store_writer

__all__ = ["MemoryStore", "PartOfRows", "Readable", "Store", "Written", "check_sample", "store_reader", "store_writer"]
