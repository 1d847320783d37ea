"""How others keep samples on a disk, each as its documentation says: written, read in order, read in random order."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from storage_samples import ARRAYS, IMAGE_BYTES, SMALL, TOKENS, Kind

__all__ = [
    "ARROW",
    "CORE",
    "GRAIN",
    "HF",
    "LITDATA",
    "MDS",
    "WEBDATASET",
    "Peer",
    "arrow_batch",
    "arrow_lists",
    "arrow_rows",
    "arrow_schema",
    "hf_dataset",
    "mosaic",
    "open_batches",
    "unpacked",
]

Samples = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Peer:
    """A format, and what reads and writes it.

    Args:
        name: In tables.
        needs: The module that has to be installed.
        write: Keeps samples in an empty folder.
        read: Gives them in order.
        shuffle: Gives them in random order: shards and a buffer of 1,000, or any permutation, as its format has it.
        note: How it is set up.
    """

    name: str
    needs: str
    write: Callable[[Samples, Kind, Path], None]
    read: Callable[[Kind, Path], Iterable[Any]]
    shuffle: Callable[[Kind, Path], Iterable[Any]] | None = None
    note: str = ""


# -- squirrel-core --------------------------------------------------------------------------------------------------------


def _core_write(samples: Samples, kind: Kind, folder: Path) -> None:
    from squirrel.serialization import MessagepackSerializer
    from squirrel.store import SquirrelStore

    store = SquirrelStore(str(folder), MessagepackSerializer())
    size = 5000 if kind is SMALL else 200
    for start in range(0, len(samples), size):
        store.set(list(samples[start : start + size]), key=f"{start:09d}")


def _core_driver(folder: Path) -> Any:
    from squirrel.driver import MessagepackDriver

    return MessagepackDriver(str(folder))


def _core_read(kind: Kind, folder: Path) -> Any:
    # The order in which a folder lists its files is not that of their names.
    return _core_driver(folder).get_iter(keys_iterable=sorted(_core_driver(folder).keys()))


def _core_shuffle(kind: Kind, folder: Path) -> Any:
    return _core_driver(folder).get_iter(shuffle_key_buffer=1000, shuffle_item_buffer=1000)


# -- litdata --------------------------------------------------------------------------------------------------------------


def _lit_sample(kind: Kind, i: int) -> dict[str, Any]:
    sample = kind.make(i)
    # Not `kind is SMALL`: this runs in a process of litdata, with a copy.
    return {**sample, "meta": json.dumps(sample["meta"])} if "meta" in sample else sample


def _lit_write(samples: Samples, kind: Kind, folder: Path) -> None:
    import litdata

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        numbers = list(range(len(samples)))
        litdata.optimize(partial(_lit_sample, kind), numbers, str(folder), num_workers=1, chunk_bytes="16MB", verbose=False)


def _lit_read(kind: Kind, folder: Path, shuffle: bool = False) -> Any:
    import litdata

    dataset = litdata.StreamingDataset(str(folder), shuffle=shuffle)
    return dataset if kind is SMALL else map(_with_parsed_meta, dataset)


def _with_parsed_meta(sample: dict[str, Any]) -> dict[str, Any]:
    sample["meta"] = json.loads(sample["meta"])
    return sample


# -- mosaic ---------------------------------------------------------------------------------------------------------------


def mosaic() -> Any:
    """Its module."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # Mosaic needs it for datasets that nobody asks for here, and one that was built for another torch is enough.
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    import streaming

    return streaming


def _mds_write(samples: Samples, kind: Kind, folder: Path) -> None:
    image = f"ndarray:uint8:{IMAGE_BYTES}" if kind is ARRAYS else "bytes"
    medium = {"image": image, "label": "int", "meta": "json"}
    columns = {"id": "int", "tokens": f"ndarray:int32:{TOKENS}", "label": "int"} if kind is SMALL else medium
    with mosaic().MDSWriter(out=str(folder), columns=columns) as out:
        for sample in samples:
            out.write(sample)


def _mds_read(kind: Kind, folder: Path, shuffle: bool = False) -> Any:
    return mosaic().StreamingDataset(local=str(folder), batch_size=64, shuffle=shuffle)


# -- webdataset -----------------------------------------------------------------------------------------------------------


def _tar_sample(sample: dict[str, Any], kind: Kind) -> dict[str, Any]:
    if kind is SMALL:
        return {"__key__": f"{sample['id']:09d}", "tokens.npy": sample["tokens"], "cls": sample["label"]}
    image = "image.npy" if kind is ARRAYS else "image.bin"
    return {"__key__": f"{sample['meta']['id']:09d}", image: sample["image"], "cls": sample["label"], "json": sample["meta"]}


def _sample_of_tar(kind: Kind, found: dict[str, Any]) -> dict[str, Any]:
    if kind is SMALL:
        return {"id": int(found["__key__"]), "tokens": found["tokens.npy"], "label": found["cls"]}
    image = "image.npy" if kind is ARRAYS else "image.bin"
    return {"image": found[image], "label": found["cls"], "meta": found["json"]}


def _tar_write(samples: Samples, kind: Kind, folder: Path) -> None:
    import webdataset as wds

    with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=5000 if kind is SMALL else 200, verbose=0) as out:
        for sample in samples:
            out.write(_tar_sample(sample, kind))


def _tar_read(kind: Kind, folder: Path, shuffle: bool = False) -> Any:
    import webdataset as wds

    files = sorted(map(str, folder.glob("*.tar")))
    stages = wds.WebDataset(files, shardshuffle=len(files) if shuffle else False)
    return (stages.shuffle(1000) if shuffle else stages).decode().map(partial(_sample_of_tar, kind))


# -- array_record and grain -----------------------------------------------------------------------------------------------


def _packed(sample: dict[str, Any], kind: Kind) -> bytes:
    import msgpack

    name = "tokens" if kind is SMALL else "image"
    value = sample[name]
    return msgpack.packb({**sample, name: value if isinstance(value, bytes) else value.tobytes()})


def unpacked(kind: Kind, record: bytes) -> Any:
    """The sample in a record."""
    import msgpack

    sample = msgpack.unpackb(record)
    if kind is SMALL:
        sample["tokens"] = np.frombuffer(sample["tokens"], np.int32)
    elif kind is ARRAYS:
        sample["image"] = np.frombuffer(sample["image"], np.uint8)
    return sample


def _record_write(samples: Samples, kind: Kind, folder: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    out = ArrayRecordWriter(str(folder / "0.array_record"), "group_size:1,uncompressed")
    for sample in samples:
        out.write(_packed(sample, kind))
    out.close()


def _record_read(kind: Kind, folder: Path, shuffle: bool = False) -> Any:
    import grain.python as grain

    data = grain.MapDataset.source(grain.ArrayRecordDataSource(str(folder / "0.array_record")))
    data = data.shuffle(seed=0) if shuffle else data
    return data.map(partial(unpacked, kind)).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


# -- Arrow by hand --------------------------------------------------------------------------------------------------------


def arrow_schema(kind: Kind) -> Any:
    """The types that our own shards have."""
    if kind is SMALL:
        return pa.schema([("id", pa.int64()), ("tokens", pa.list_(pa.int32(), TOKENS)), ("label", pa.int64())])
    image = pa.list_(pa.uint8(), IMAGE_BYTES) if kind is ARRAYS else pa.large_binary()
    meta = pa.struct([("id", pa.int64()), ("source", pa.large_string())])
    return pa.schema([("image", image), ("label", pa.int64()), ("meta", meta)])


def _stacked(arrays: Sequence[Any]) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.stack(arrays).reshape(-1)), arrays[0].size)


def arrow_batch(samples: Samples, kind: Kind) -> Any:
    """Samples as a batch, by somebody who knows them."""
    labels = pa.array([sample["label"] for sample in samples])
    if kind is SMALL:
        columns = [pa.array([s["id"] for s in samples]), _stacked([s["tokens"] for s in samples]), labels]
    else:
        images = [sample["image"] for sample in samples]
        meta = pa.array([sample["meta"] for sample in samples], type=arrow_schema(kind).field("meta").type)
        columns = [_stacked(images) if kind is ARRAYS else pa.array(images, pa.large_binary()), labels, meta]
    return pa.record_batch(columns, schema=arrow_schema(kind))


def _arrow_write(opened: Callable[..., Any], samples: Samples, kind: Kind, folder: Path) -> None:
    size = 2000 if kind is SMALL else 10
    with opened(str(folder / "0.arrow"), arrow_schema(kind)) as out:
        for start in range(0, len(samples), size):
            out.write_batch(arrow_batch(samples[start : start + size], kind))


def open_batches(paths: Iterable[str | Path]) -> Iterator[Any]:
    """The batches of files of Arrow, mapped into memory."""
    for path in paths:
        with pa.memory_map(str(path)) as mapped:
            file = pa.ipc.open_file(mapped)
            for number in range(file.num_record_batches):
                yield file.get_batch(number)


def _views(column: Any, size: int) -> Any:
    return column.flatten().to_numpy().reshape(-1, size)


def _small_columns(batch: Any) -> Iterator[tuple[Any, ...]]:
    ids, tokens, labels = batch.columns
    return zip(ids.to_numpy().tolist(), _views(tokens, TOKENS), labels.to_numpy().tolist(), strict=True)


def _medium_columns(kind: Kind, batch: Any) -> Iterator[tuple[Any, ...]]:
    image, labels, meta = batch.columns
    images = _views(image, IMAGE_BYTES) if kind is ARRAYS else image.to_pylist()
    ids, sources = meta.flatten()
    return zip(images, labels.to_numpy().tolist(), ids.to_numpy().tolist(), sources.to_pylist(), strict=True)


def arrow_rows(kind: Kind, batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows of batches, by somebody who knows their schema: one by one, each in the memory of the one before."""
    if kind is SMALL:
        for batch in batches:
            for number, tokens, label in _small_columns(batch):
                yield {"id": number, "tokens": tokens, "label": label}
    else:
        for batch in batches:
            for image, label, number, source in _medium_columns(kind, batch):
                yield {"image": image, "label": label, "meta": {"id": number, "source": source}}


def arrow_lists(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows of small samples, a list for each batch: what comes to mind first."""
    return chain.from_iterable([{"id": a, "tokens": b, "label": c} for a, b, c in _small_columns(batch)] for batch in batches)


def _arrow_read(kind: Kind, folder: Path) -> Iterator[dict[str, Any]]:
    return arrow_rows(kind, open_batches([folder / "0.arrow"]))


# -- HF datasets ----------------------------------------------------------------------------------------------------------


def hf_dataset(folder: Path) -> Any:
    """A Dataset over one file."""
    from datasets import Dataset

    return Dataset.from_file(str(folder / "0.arrow")).with_format("numpy")


CORE = Peer("squirrel-core", "squirrel", _core_write, _core_read, _core_shuffle, "MessagepackDriver.get_iter; gzip")
LITDATA = Peer("litdata", "litdata", _lit_write, _lit_read, partial(_lit_read, shuffle=True), "chunks of 16 MB")
MDS = Peer("mosaic MDS", "streaming", _mds_write, _mds_read, partial(_mds_read, shuffle=True), "not compressed")
WEBDATASET = Peer("webdataset", "webdataset", _tar_write, _tar_read, partial(_tar_read, shuffle=True), "tokens.npy, cls")
GRAIN = Peer(
    "grain, array_record",
    "grain",
    _record_write,
    _record_read,
    partial(_record_read, shuffle=True),
    "group_size:1, not compressed, msgpack; no threads",
)
ARROW = Peer("pyarrow by hand", "pyarrow", partial(_arrow_write, pa.ipc.new_file), _arrow_read)
HF = Peer(
    "HF Dataset",
    "datasets",
    partial(_arrow_write, pa.ipc.new_stream),
    lambda kind, folder: hf_dataset(folder),
    lambda kind, folder: hf_dataset(folder).shuffle(seed=0),
    "from_file, numpy format (integers as int64)",
)
