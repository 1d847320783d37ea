"""A folder of images, with a folder for each class."""

import io
import struct
import tracemalloc
import warnings
import zlib
from contextlib import suppress

import fsspec
import numpy as np
import pytest
from PIL import Image, ImageFile

from squirrel_torch import CorruptDataError, IterableSource, MissingDependencyError, StoreError
from squirrel_torch.sharding import Shard
from squirrel_torch.storage.formats import ImageFolder
from tests.storage.formats.support import check, same


def pixels(number=0, size=(5, 7)):
    return np.random.default_rng(number).integers(0, 255, (*size, 3), dtype="u1")


def encoded(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name, files in {"dog": ["b.PNG", "a.png"], "cat": ["deep/z.png"], "ape": ["1.png", "10.png", "2.png"]}.items():
        for number, file in enumerate(files):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels(number)))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_text("no image")
    return tmp_path


PATHS = ["ape/1.png", "ape/10.png", "ape/2.png", "cat/deep/z.png", "dog/a.png", "dog/b.PNG"]
NUMBERS = [0, 1, 2, 0, 1, 0]


def expected(make):
    labels = ["ape", "cat", "dog"]
    return [
        {"image": make(number), "label": labels.index(path.split("/")[0]), "class_name": path.split("/")[0], "path": path}
        for path, number in zip(PATHS, NUMBERS, strict=True)
    ]


class TestImageFolder:
    def test_bytes(self, folder):
        reader = ImageFolder(folder)
        assert reader.classes == ["ape", "cat", "dog"]
        check(reader, expected(lambda number: encoded(pixels(number))))

    def test_decoded(self, folder):
        reader = ImageFolder(str(folder), decode=True)
        check(reader, expected(pixels))
        assert reader[0]["image"].flags.writeable
        assert repr(reader) == f"ImageFolder({str(folder)!r}, decode=True)"

    def test_on_another_filesystem(self, folder):
        memory = fsspec.filesystem("memory")
        memory.put(f"{folder}/", "/images/", recursive=True)
        check(ImageFolder("memory://images", decode=True), expected(pixels))

    def test_given_classes(self, folder):
        reader = ImageFolder(folder, classes=["dog", "cat", "bird", "ape"])
        assert [sample["label"] for sample in reader] == [3, 3, 3, 1, 0, 0]
        with pytest.raises(StoreError, match=r"the folder 'ape' in .* is none of the classes"):
            ImageFolder(folder, classes=["dog", "cat"])
        with pytest.raises(ValueError, match="classes must be a list of names"):
            ImageFolder(folder, classes=["dog", "dog"])

    def test_classes_without_an_image(self, folder):
        (folder / "bird").mkdir()
        with pytest.raises(StoreError, match=r"the class 'bird' in .* has no image"):
            ImageFolder(folder)
        assert ImageFolder(folder, classes=["ape", "bird", "cat", "dog"])[-1]["label"] == 3

    def test_images_of_no_class(self, folder):
        (folder / "x.jpg").write_bytes(b"")
        with pytest.raises(StoreError, match=r"'x\.jpg' in .* is in no class"):
            ImageFolder(folder)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            ImageFolder(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError, match="there is no image"):
            ImageFolder(tmp_path)
        with pytest.raises(TypeError, match="url must be one folder"):
            ImageFolder([tmp_path])

    def test_only_own_images_are_read(self, folder):
        reader = ImageFolder(folder)
        (folder / "ape" / "10.png").unlink()
        assert [sample["path"] for sample in reader._part(Shard(0, 2))] == PATHS[::2]
        with pytest.raises(FileNotFoundError):
            list(reader._part(Shard(1, 2)))


def one(tmp_path, data, **options):
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / "x.png").write_bytes(data)
    return ImageFolder(tmp_path, **{"decode": True, **options})[0]["image"]


class TestDecoding:
    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "RGB"])
    def test_modes(self, tmp_path, mode):
        image = Image.fromarray(pixels()).convert(mode)
        file = io.BytesIO()
        image.save(file, "TIFF")
        got = one(tmp_path, file.getvalue())
        assert same(got, np.array(image.convert("RGB")))
        assert got.dtype == np.uint8
        assert got.shape == (5, 7, 3)

    @pytest.mark.parametrize("dtype", ["<u2", "<i4", "<f4"])
    def test_more_than_8_bits(self, tmp_path, dtype):
        data = encoded(np.arange(6, dtype=dtype).reshape(2, 3), "TIFF")
        with pytest.raises(StoreError, match="which 8 bits can't hold: read it with decode=False"):
            one(tmp_path, data)
        assert one(tmp_path, data, decode=False) == data

    def test_transparent_palettes(self, tmp_path):
        image = Image.fromarray(pixels()).convert("P")
        file = io.BytesIO()
        image.save(file, "PNG", transparency=bytes(range(256)))
        assert one(tmp_path, file.getvalue()).shape == (5, 7, 3)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("PNG", {}),
            ("WEBP", {"lossless": True}),
            ("GIF", {}),
            ("BMP", {}),
            ("PPM", {}),
        ],
    )
    def test_cut_at_every_byte(self, tmp_path, kind, options):
        data = encoded(pixels(), kind, **options)
        whole = one(tmp_path, data)
        reader = ImageFolder(tmp_path, decode=True)
        raised = 0
        for size in range(len(data)):
            (tmp_path / "a" / "x.png").write_bytes(data[:size])
            try:
                assert same(reader[0]["image"], whole), size
            except CorruptDataError:
                raised += 1
        assert raised > len(data) - 30

    def test_a_cut_photograph(self, tmp_path):
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
        data = encoded(pixels(size=(400, 400)), "JPEG", quality=95)
        with pytest.raises(CorruptDataError, match=r"x\.png'.*can't be decoded: .*truncated"):
            one(tmp_path, data[: len(data) // 2])

    def test_a_bomb(self, tmp_path):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
        data = (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(500_000))) + chunk(b"IEND", b"")
        )
        assert len(data) < 1024
        tracemalloc.start()
        try:
            with pytest.raises(CorruptDataError, match=r"x\.png'.*decompression bomb"):
                one(tmp_path, data)
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "data", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"SIMPLE  =" + b" " * 80]
    )
    def test_no_image(self, tmp_path, data):
        with pytest.raises(CorruptDataError, match=r"x\.png'"):
            one(tmp_path, data)

    def test_formats_that_are_not_opened(self, tmp_path):
        data = encoded(pixels(), "PCX")
        assert Image.open(io.BytesIO(data)).size == (7, 5)
        with pytest.raises(CorruptDataError, match="cannot identify"):
            one(tmp_path, data)

    def test_random_changes(self, tmp_path):
        rng = np.random.default_rng(0)
        data = encoded(pixels(), "PNG")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(200):
                changed = bytearray(data)
                changed[rng.integers(len(data))] ^= int(rng.integers(1, 256))
                with suppress(StoreError):
                    assert one(tmp_path, bytes(changed)).shape[2] == 3

    def test_an_error_stays(self, folder):
        (folder / "ape" / "10.png").write_bytes(b"no image")
        run = iter(IterableSource(ImageFolder(folder, decode=True)))
        next(run)
        for _ in range(2):
            with pytest.raises(CorruptDataError, match=r"10\.png"):
                next(run)

    def test_without_pillow(self, folder, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "PIL", None)
        assert ImageFolder(folder)[0]["image"]
        with pytest.raises(MissingDependencyError, match=r"pillow is not installed.*\[images\]"):
            ImageFolder(folder, decode=True)[0]
