"""Tar shards as WebDataset writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final

from squirrel_torch.errors import StoreError
from squirrel_torch.storage.formats.inflate import MAX_RATIO, MAX_SAMPLE_BYTES, check_limits, open_inflated
from squirrel_torch.storage.formats.opening import Urls
from squirrel_torch.storage.formats.plain import decode_integer, decode_json, decode_npy, decode_text
from squirrel_torch.storage.formats.reader import FileReader, Rows, corrupt
from squirrel_torch.storage.formats.tar import Member, Tar

__all__ = ["TarShards"]

_NAME: Final = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_META: Final = re.compile(r"__[^/]*__(?:$|/)")
_DECODERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    **dict.fromkeys(("json", "jsn"), decode_json),
    **dict.fromkeys(("txt", "text", "transcript"), decode_text),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), decode_integer),
    "npy": decode_npy,
}
_UNSAFE: Final = ("pyd", "pickle", "pkl", "pth", "pt", "joblib")


class TarShards(FileReader):
    """Samples of tar files as WebDataset writes them: members of one key, one after the other, are one sample.

    ``a/b.seg.png`` has the key ``a/b``, up to the first dot of the file's name, and is the field ``seg.png`` of its sample, in
    lower case. A sample is a dict of these fields and ``__key__``. A key that comes again later, not right behind, makes
    another sample, as in WebDataset. Members ``__name__`` and below a folder of such a name are its own metadata and
    passed over, and folders too; any other member without a key and an extension is an error.

    Decoded are ``json`` and ``jsn``; ``txt``, ``text`` and ``transcript`` (UTF-8); ``cls``, ``cls2``, ``index``, ``inx`` and
    ``id`` (integers); ``npy`` (arrays of numbers or text, writable). All others are bytes. Members that only pickle can read
    (``pyd``, ``pickle``, ``pkl``, ``pth``, ``pt``, ``joblib``) raise, as they can run any code.

    Readers have no length. All shards together read a file as often as there are shards, but each decodes only its own
    samples, and of large members of the others only the end is read where the archive is not compressed.

    Args:
        url: A file, a glob, a folder (its ``*.tar``, ``*.tar.gz``, ``*.tgz``, ``*.tar.bz2`` and ``*.tar.zst``), or a list of
            these; on any filesystem that fsspec knows.
        decode: Whether to decode; without, all fields are bytes, also those of pickle.
        max_sample_bytes: A sample with more bytes is an error.
        max_ratio: A compressed file that holds more than this many times its own size, and more than 64 MiB, is an error.
        **storage_options: For the filesystem.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is named twice, or a limit is not above 0.
        CorruptDataError: While reading, if an archive is cut off anywhere (the blocks that end an archive have to be there), a
            header's checksum does not match, a field can't be decoded, or a sample has one field twice.
        StoreError: While reading, at a link, a device, a sparse file, or a member that only pickle can read.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.zst")

    def __init__(
        self,
        url: Urls,
        decode: bool = True,
        max_sample_bytes: int = MAX_SAMPLE_BYTES,
        max_ratio: float = MAX_RATIO,
        **storage_options: Any,
    ) -> None:
        check_limits(max_ratio, max_sample_bytes)
        self._decode = decode
        self._max_sample_bytes = max_sample_bytes
        self._max_ratio = max_ratio
        super().__init__(url, storage_options)

    def _options(self) -> dict[str, Any]:
        return {} if self._decode else {"decode": False}

    def _rows(self, path: str, start: int, step: int) -> Rows:
        with open_inflated(path, self._storage_options, self._max_ratio) as file:
            samples, sample, size = -1, dict[str, Any](), 0
            archive = Tar(file, path, self._max_sample_bytes)
            for member, key, field in self._named(archive, path):
                if sample.get("__key__") != key:
                    if samples >= 0 and samples % step == start:
                        yield self._finished(path, sample)
                    samples, sample, size = samples + 1, {"__key__": key}, 0
                if field in sample:
                    raise corrupt(path, f"member {member.name!r}", f"the sample {key!r} has the field {field!r} twice")
                size += member.size
                if size > self._max_sample_bytes:
                    raise corrupt(path, f"sample {key!r}", f"it has more than max_sample_bytes={self._max_sample_bytes} bytes")
                sample[field] = archive.read() if samples % step == start else None
            if samples >= 0 and samples % step == start:
                yield self._finished(path, sample)
            return samples + 1

    @staticmethod
    def _named(archive: Tar, path: str) -> Iterator[tuple[Member, str, str]]:
        for member in archive:
            if _META.match(member.name):
                continue
            match = _NAME.fullmatch(member.name)
            if match is None:
                raise StoreError(
                    f"{path!r}, member {member.name!r}: its name is not made of a key and an extension, as `key.jpg` is"
                )
            yield member, match[1], match[2].lower()

    def _finished(self, path: str, sample: dict[str, Any]) -> dict[str, Any]:
        if self._decode:
            for field, data in sample.items():
                if field != "__key__":
                    sample[field] = _decoded(path, sample["__key__"], field, data)
        return sample


def _decoded(path: str, key: str, field: str, data: bytes) -> Any:
    kind = field.rpartition(".")[2]
    if kind in _UNSAFE:
        raise StoreError(
            f"{path!r}, member {f'{key}.{field}'!r}: only pickle could read it, and pickle can run any code. With "
            "decode=False all members come as bytes, to be loaded by whoever trusts them"
        )
    decode = _DECODERS.get(kind)
    if decode is None:
        return data
    try:
        return decode(data)
    except StoreError as error:
        raise StoreError(f"{path!r}, member {f'{key}.{field}'!r}: {error}") from error
    except ValueError as error:
        raise corrupt(path, f"member {f'{key}.{field}'!r}", f"it can't be decoded: {error}") from error
