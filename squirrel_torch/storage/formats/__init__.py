"""Readers of data that other programs have written."""

from squirrel_torch.storage.formats.choose import FORMATS, open_files
from squirrel_torch.storage.formats.images import ImageFolder
from squirrel_torch.storage.formats.reader import FileReader
from squirrel_torch.storage.formats.squirrel import SquirrelShards
from squirrel_torch.storage.formats.tables import ArrowFiles, ParquetFiles
from squirrel_torch.storage.formats.text import CsvFiles, JsonLines
from squirrel_torch.storage.formats.webdataset import TarShards

__all__ = [
    "FORMATS",
    "ArrowFiles",
    "CsvFiles",
    "FileReader",
    "ImageFolder",
    "JsonLines",
    "ParquetFiles",
    "SquirrelShards",
    "TarShards",
    "open_files",
]
