"""A folder of images, with a folder for each class."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from squirrel_torch.errors import MissingDependencyError, StoreError
from squirrel_torch.sharding import Shard
from squirrel_torch.storage.formats.opening import below, read_bytes
from squirrel_torch.storage.formats.reader import FileReader, Rows, corrupt, find_row

__all__ = ["ImageFolder"]

# Without those for which Pillow starts other programs, or has decoders that few have looked at.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
_WIDE = ("I", "F")  # the modes of 16 bits and more begin with these


class ImageFolder(FileReader):
    """Images of a folder that has a folder for each class, as dicts.

    A sample is ``{"image", "label", "class_name", "path"}``: the image as it is in the file (bytes) or decoded (uint8,
    [height, width, 3], RGB); the number of its class, by the sorted names of the classes, from 0 on; the name of its class; its
    path below the folder. The order is that of the paths, class by class.

    Decoding is Pillow's: the first image of an animation, without transparency, not turned as EXIF says. Images of more than
    8 bits are refused, as RGB has no room for them.

    Args:
        url: The folder, on any filesystem that fsspec knows. Read are files with the suffixes of `suffixes`, at any depth in a
            class's folder; other files, and what is hidden (``.`` or ``_`` in front of its name), are passed over.
        decode: Whether to decode the images.
        classes: The names of the classes, in the order of their labels, where these are not all or not sorted.
        **storage_options: For the filesystem.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        StoreError: If an image is in no class, a folder is none of `classes`, or a class has no image (unless `classes` names
            it); while reading, if an image has more than 8 bits.
        CorruptDataError: While reading, if an image can't be decoded or was cut off, or has so many pixels that Pillow takes it
            for an attack.
        MissingDependencyError: While reading, if Pillow is needed and not installed.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")

    def __init__(
        self, url: str | os.PathLike[str], decode: bool = False, classes: Sequence[str] | None = None, **storage_options: Any
    ) -> None:
        if not isinstance(url, str | os.PathLike):
            raise TypeError(f"url must be one folder, got {url!r}")
        if classes is not None and (isinstance(classes, str) or len(set(classes)) < len(classes)):
            raise ValueError(f"classes must be a list of names, each its own, got {classes!r}")
        self._folder = url
        self._decode = decode
        self._given = None if classes is None else list(classes)
        super().__init__(url, storage_options)

    def _options(self) -> dict[str, Any]:
        options = {"decode": self._decode, "classes": self._given}
        return {name: value for name, value in options.items() if value}

    def _find(self) -> tuple[str, ...]:
        files, folders = below(self._folder, self._storage_options)
        images = {name: address for name, address in files.items() if name.lower().endswith(self.suffixes)}
        if not images:
            raise FileNotFoundError(f"there is no image in {self._folder!r}: none ends with one of {', '.join(self.suffixes)}")
        if outside := [name for name in images if "/" not in name]:
            raise StoreError(f"{outside[0]!r} in {self._folder!r} is in no class: images must be in a folder for each class")
        self._names = self._given or sorted({*folders, *(name.partition("/")[0] for name in images)})
        self._check_classes(images, folders)
        numbers = {name: number for number, name in enumerate(self._names)}
        ordered = sorted(images, key=lambda name: (name.partition("/")[0], name))
        self._images = {images[name]: (name, numbers[name.partition("/")[0]]) for name in ordered}
        return tuple(self._images)

    def _check_classes(self, images: Iterable[str], folders: Iterable[str]) -> None:
        used = {name.partition("/")[0] for name in images}
        if unknown := sorted((used | set(folders)) - set(self._names)):
            raise StoreError(f"the folder {unknown[0]!r} in {self._folder!r} is none of the classes {self._names}")
        if self._given is None and (empty := sorted(set(folders) - used)):
            raise StoreError(
                f"the class {empty[0]!r} in {self._folder!r} has no image: remove it, or name all classes in classes="
            )

    @property
    def classes(self) -> list[str]:
        """The names of the classes; the label is the place in this list."""
        return list(self._names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        """The sample at `index`.

        Raises:
            IndexError: If there is none.
            CorruptDataError: If the image can't be decoded.
        """
        return self._sample(self._files[find_row(index, len(self._files), self)])

    def _part(self, shard: Shard) -> Iterator[Any]:
        for path in shard.of(self._files):
            yield self._sample(path)

    def _rows(self, path: str, start: int, step: int) -> Rows:
        if start == 0:
            yield self._sample(path)
        return 1

    def _sample(self, path: str) -> dict[str, Any]:
        name, label = self._images[path]
        data = read_bytes(path, self._storage_options)
        if not data:
            raise corrupt(path, "byte 0", "it is empty")
        image = _decoded(path, data) if self._decode else data
        return {"image": image, "label": label, "class_name": self._names[label], "path": name}


def _decoded(path: str, data: bytes) -> Any:
    import numpy as np

    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError("pillow", "images") from None
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            mode = image.mode
            if not mode.startswith(_WIDE):
                # Transparent colours of a palette go by way of RGBA, or Pillow warns.
                return np.array((image.convert("RGBA") if "transparency" in image.info else image).convert("RGB"))
    except Exception as error:  # Pillow raises many kinds at data that it can't read
        raise corrupt(path, "", f"it can't be decoded: {str(error) or type(error).__name__}") from error
    raise StoreError(f"{path!r}: its pixels are of the mode {mode!r}, which 8 bits can't hold: read it with decode=False")
