"""Tar shards as WebDataset writes them."""

import gzip
import io
import json
import pickle
import tarfile
import tracemalloc

import fsspec
import numpy as np
import pytest
import webdataset

from squirrel_torch import CorruptDataError, IterableSource, StoreError
from squirrel_torch.storage.formats import TarShards
from tests.storage.formats.support import check, cut_everywhere, flip_everywhere, outcome, right_or_error, same


def samples(count, first=0):
    return [
        {
            "__key__": f"folder/{number:04d}",
            "cls": number % 3,
            "json": {"number": number, "nan": float("inf")},
            "npy": np.arange(6, dtype="f4").reshape(2, 3) + number,
            "seg.png": bytes([number]) * (number * 100),
            "txt": f"text {number} é",
        }
        for number in range(first, first + count)
    ]


def encoded(samples):
    """For WebDataset's writer, which writes the fields in the order of their names."""
    for sample in samples:
        array = io.BytesIO()
        np.save(array, sample["npy"])
        text = {name: str(sample[name]).encode() for name in ("cls", "txt")}
        yield {**sample, **text, "npy": array.getvalue(), "json": json.dumps(sample["json"]).encode()}


def write(path, samples):
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in encoded(samples):
            writer.write(sample)


def tar(*members, kind=tarfile.USTAR_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for member in members:
            name, data = member[:2]
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in member[2].items() if len(member) > 2 else ():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def header(name=b"a.txt", size=b"00000000000", kind=b"0", magic=b"ustar\x0000"):
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)


def read(tmp_path, data, **options):
    (tmp_path / "a.tar").write_bytes(data)
    return list(TarShards(tmp_path / "a.tar", **options))


class TestSamples:
    def test_several_shards(self, tmp_path):
        with webdataset.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=5, encoder=False, verbose=0) as writer:
            for sample in encoded(samples(13)):
                writer.write(sample)
        reader = TarShards(tmp_path)
        assert len(reader.files) == 3
        check(reader, samples(13))
        with pytest.raises(TypeError, match="has no length"):
            len(reader)

    def test_the_same_as_webdataset_reads(self, tmp_path):
        write(tmp_path / "a.tar", samples(5))
        with (tmp_path / "a.tar").open("rb") as file:
            files = webdataset.tariterators.tar_file_expander([{"stream": file, "url": "a.tar"}])
            theirs = list(webdataset.tariterators.group_by_keys(files))
        for sample in theirs:
            del sample["__url__"]
        assert theirs == list(TarShards(tmp_path, decode=False))

    @pytest.mark.parametrize("mode", ["gz", "bz2"])
    def test_compressed(self, tmp_path, mode):
        write(tmp_path / "plain", samples(5))
        with tarfile.open(tmp_path / f"a.tar.{mode}", f"w:{mode}") as target, tarfile.open(tmp_path / "plain") as source:
            for member in source:
                target.addfile(member, source.extractfile(member))
        check(TarShards(tmp_path), samples(5))

    def test_on_another_filesystem(self, tmp_path):
        write(tmp_path / "a", samples(3))
        write(tmp_path / "b", samples(3, 3))
        memory = fsspec.filesystem("memory")
        memory.pipe({"/tars/b.tar": (tmp_path / "b").read_bytes(), "/tars/a.tgz": gzip.compress((tmp_path / "a").read_bytes())})
        check(TarShards("memory://tars/*.t*"), samples(6))

    @pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_names_of_all_formats(self, tmp_path, kind):
        names = ["a", "d" * 90 + "/" + "x" * 90, "ünïcode", "./here", "a.folder/b"]
        if kind != tarfile.USTAR_FORMAT:
            names.append("long/" * 100 + "y")
        data = tar(*((f"{name}.TXT", name.encode()) for name in names), kind=kind)
        assert read(tmp_path, data) == [{"__key__": name, "txt": name} for name in names]

    def test_large_sizes_of_pax_and_gnu(self, tmp_path):
        record = b"12 size=600\n"
        pax = header(b"PaxHeader", b"%011o" % len(record), b"x") + record.ljust(512, b"\0")
        data = pax + header() + b"x" * 600 + bytes(424) + END
        assert read(tmp_path, data) == [{"__key__": "a", "txt": "x" * 600}]
        data = header(size=b"\x80" + (600).to_bytes(11, "big")) + b"x" * 600 + bytes(424) + END
        assert read(tmp_path, data) == [{"__key__": "a", "txt": "x" * 600}]

    def test_old_headers(self, tmp_path):
        data = header(size=b"%011o" % 3, kind=b"\0", magic=bytes(8)) + b"abc".ljust(512, b"\0") + END
        assert read(tmp_path, data) == [{"__key__": "a", "txt": "abc"}]

    def test_folders_and_webdatasets_metadata_are_passed_over(self, tmp_path):
        data = tar(("folder", b"", {"type": tarfile.DIRTYPE}), ("__info__/x", b"1"), ("__meta__", b"2"), ("folder/a.txt", b"x"))
        assert read(tmp_path, data) == [{"__key__": "folder/a", "txt": "x"}]

    def test_a_key_that_comes_again_is_another_sample(self, tmp_path):
        data = tar(("a.txt", b"1"), ("b.txt", b"2"), ("a.json", b"3"))
        assert read(tmp_path, data) == [{"__key__": "a", "txt": "1"}, {"__key__": "b", "txt": "2"}, {"__key__": "a", "json": 3}]

    def test_an_empty_archive(self, tmp_path):
        assert read(tmp_path, tar()) == []

    def test_samples_of_others_are_not_decoded(self, tmp_path):
        from squirrel_torch.sharding import Shard

        (tmp_path / "a.tar").write_bytes(tar(("a.json", b"1"), ("b.json", b"wrong"), ("c.json", b"3")))
        reader = TarShards(tmp_path)
        assert [sample["json"] for sample in reader._part(Shard(0, 2))] == [1, 3]
        with pytest.raises(CorruptDataError, match=r"a\.tar', member 'b\.json': it can't be decoded"):
            list(reader._part(Shard(1, 2)))

    def test_large_members_of_others_are_not_read(self, tmp_path, monkeypatch):
        from squirrel_torch.sharding import Shard

        (tmp_path / "a.tar").write_bytes(tar(*((f"{n}.bin", bytes([n]) * 5_000_000) for n in range(8))))
        tracemalloc.start()
        try:
            (sample,) = TarShards(tmp_path)._part(Shard(7, 8))
            assert tracemalloc.get_traced_memory()[1] < 15_000_000
        finally:
            tracemalloc.stop()
        assert sample["bin"] == bytes([7]) * 5_000_000

    def test_arrays_can_be_written(self, tmp_path):
        write(tmp_path / "a.tar", samples(1))
        assert next(iter(TarShards(tmp_path)))["npy"].flags.writeable


class TestFaults:
    @pytest.mark.slow
    def test_cut_at_every_byte(self, tmp_path):
        path = tmp_path / "a.tar"
        write(path, samples(3))
        data = path.read_bytes()
        reader = TarShards(path)
        raised = cut_everywhere(data, path, lambda: reader, samples(3), step=61)
        assert raised > 0
        end = len(data.rstrip(b"\0"))
        members = -(-end // 512) * 512
        for size in {
            *range(0, len(data), 512),
            *range(members - 5, members + 5),
            *range(members + 508, members + 516),
            *range(members + 1020, members + 1030),
        }:
            path.write_bytes(data[:size])
            assert right_or_error(lambda: reader, samples(3), size) == (size < members + 1024), size

    @pytest.mark.slow
    def test_every_byte_of_headers_changed(self, tmp_path):
        path = tmp_path / "a.tar"
        path.write_bytes(tar(("a.cls", b"1"), ("b.cls", b"2")))
        expected = [{"__key__": "a", "cls": 1}, {"__key__": "b", "cls": 2}]
        reader = TarShards(path)
        data = path.read_bytes()
        raised = 0
        for start in (0, 1024, 2048, 2560):
            for place in range(start, start + 512):
                for flip in ((0x01, 0x20, 0x80)[place % 3],):
                    changed = bytearray(data)
                    changed[place] ^= flip
                    path.write_bytes(changed)
                    raised += right_or_error(lambda: reader, expected, (place, flip))
        # The two that end the text of a checksum don't count.
        assert raised > 4 * 508

    @pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst"])
    def test_compressed_cut_and_changed(self, tmp_path, suffix):
        import pyarrow

        path = tmp_path / f"a.{suffix}"
        plain = tar(("a.cls", b"1"), ("b.cls", b"2"))
        compress = gzip.compress if suffix == "tar.gz" else lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True)
        data = compress(plain)
        path.write_bytes(data)
        expected = [{"__key__": "a", "cls": 1}, {"__key__": "b", "cls": 2}]
        reader = TarShards(path)
        check(reader, expected)
        assert cut_everywhere(data, path, lambda: reader, expected) == len(data)
        if suffix == "tar.gz":
            assert flip_everywhere(data, path, lambda: reader, expected) > 3 * (len(data) - 12)

    def test_two_archives_in_one_file(self, tmp_path):
        with pytest.raises(CorruptDataError, match="something follows the end of the archive"):
            read(tmp_path, tar(("a.txt", b"1")) + tar(("b.txt", b"2")))

    def test_zeros_between_members(self, tmp_path):
        with pytest.raises(CorruptDataError, match="byte 1024: a block of zeros stands between two members"):
            read(tmp_path, tar(("a.txt", b"1"))[:1024] + bytes(512) + tar(("b.txt", b"2")))

    @pytest.mark.parametrize(
        ("kind", "what"),
        [
            (tarfile.LNKTYPE, "a hard link"),
            (tarfile.SYMTYPE, "a symbolic link"),
            (tarfile.CHRTYPE, "a character device"),
            (tarfile.BLKTYPE, "a block device"),
            (tarfile.FIFOTYPE, "a pipe"),
            (tarfile.GNUTYPE_SPARSE, "a sparse file"),
            (b"Z", "of the unknown kind"),
        ],
    )
    def test_what_is_no_file(self, tmp_path, kind, what):
        data = tar(("a.txt", b"1"), ("b.txt", b"", {"type": kind, "linkname": "/etc/passwd"}))
        with pytest.raises(StoreError, match=rf"a\.tar', member 'b\.txt': it is {what}"):
            read(tmp_path, data)

    def test_sparse_by_pax(self, tmp_path):
        data = tar(("a.txt", b"1", {"pax_headers": {"GNU.sparse.realsize": str(2**40)}}), kind=tarfile.PAX_FORMAT)
        with pytest.raises(StoreError, match="a sparse file"):
            read(tmp_path, data)

    @pytest.mark.parametrize("size", [b"77777777777", b"\x80\0\0\0\0\x01" + bytes(6)])
    def test_announced_sizes(self, tmp_path, size):
        data = header(size=size) + b"x" * 512 + END
        tracemalloc.start()
        try:
            with pytest.raises(CorruptDataError, match="more than max_sample_bytes"):
                read(tmp_path, data)
            with pytest.raises(CorruptDataError, match="ends here, where a member should be"):
                read(tmp_path, data, max_sample_bytes=1 << 62)
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("record", [b"13 size=1000\n", b"9 size=-1\n"[:10], b"99 path=x\n", b"x", b"11 size=1e3\n"])
    def test_attributes_that_lie(self, tmp_path, record):
        data = header(b"PaxHeader", b"%011o" % len(record), b"x") + record.ljust(512, b"\0")
        with pytest.raises(CorruptDataError, match=r"attributes can't be read|by pax"):
            read(tmp_path, data + header(size=b"%011o" % 3) + b"abc".ljust(512, b"\0") + END)

    @pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
    def test_attributes_without_end(self, tmp_path, kind):
        with pytest.raises(CorruptDataError, match="announces a name or attributes of 1073741824 bytes"):
            read(tmp_path, header(b"x", b"10000000000", kind) + END)

    def test_a_name_without_its_member(self, tmp_path):
        with pytest.raises(CorruptDataError, match="ends behind a name"):
            read(tmp_path, header(b"x", b"00000000005", b"L") + b"a.txt".ljust(512, b"\0") + END)

    def test_a_field_twice(self, tmp_path):
        with pytest.raises(CorruptDataError, match=r"member 'a\.TXT': the sample 'a' has the field 'txt' twice"):
            read(tmp_path, tar(("a.txt", b"1"), ("a.TXT", b"2")))
        with pytest.raises(CorruptDataError, match="the field '__key__' twice"):
            read(tmp_path, tar(("a.__key__", b"1")))

    @pytest.mark.parametrize("name", ["README", ".hidden", "folder/.x.jpg", "a."])
    def test_members_of_no_sample(self, tmp_path, name):
        with pytest.raises(StoreError, match="is not made of a key and an extension"):
            read(tmp_path, tar((name, b"1")))

    def test_names_can_not_write_to_the_terminal(self, tmp_path):
        with pytest.raises(CorruptDataError) as caught:
            read(tmp_path, tar(("\x1b[31m\nred.json", b"{")))
        assert "\x1b" not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_samples_that_are_too_large(self, tmp_path):
        data = tar(("a.txt", b"1" * 60), ("a.bin", b"2" * 60))
        with pytest.raises(CorruptDataError, match="sample 'a': it has more than max_sample_bytes=100"):
            read(tmp_path, data, max_sample_bytes=100)
        assert len(read(tmp_path, data, max_sample_bytes=120)) == 1

    def test_an_error_stays(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(tar(("a.txt", b"1"), ("b.txt", b"1"))[:1024])
        run = iter(IterableSource(TarShards(tmp_path)))
        for _ in range(2):
            with pytest.raises(CorruptDataError, match="byte 1024: it ends here, where the end-of-archive marker"):
                next(run)

    def test_a_bomb(self, tmp_path):
        data = gzip.compress(header(size=b"%011o" % 100_000_000) + bytes(100_000_000 // 512 * 512 + 512) + END, 9)
        (tmp_path / "a.tgz").write_bytes(data)
        with pytest.raises(CorruptDataError, match="over 200 times its compressed size: if it is meant to, raise max_ratio"):
            list(TarShards(tmp_path))


class Harmful:
    def __reduce__(self):
        return open, ("PWNED", "w")


class TestFields:
    @pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "pt"])
    def test_pickles(self, tmp_path, extension, monkeypatch):
        monkeypatch.chdir(tmp_path)
        data = tar((f"a.x.{extension}", pickle.dumps(Harmful())))
        with pytest.raises(StoreError, match=rf"member 'a\.x\.{extension}': only pickle could read it.*decode=False"):
            read(tmp_path, data)
        assert read(tmp_path, data, decode=False)[0][f"x.{extension}"] == pickle.dumps(Harmful())
        assert not (tmp_path / "PWNED").exists()

    def test_arrays_of_objects(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for value in (np.array([Harmful()]), np.zeros(2, [("x", "O")]), np.zeros(2, [("x", "i4")])):
            file = io.BytesIO()
            np.save(file, value, allow_pickle=True)
            with pytest.raises(StoreError, match=r"member 'a\.npy': it holds an array of dtype"):
                read(tmp_path, tar(("a.npy", file.getvalue())))
        assert not (tmp_path / "PWNED").exists()

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{'descr'",
            b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16,
            b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}"[:64],
            b"\x93NUMPY\x01\x00\x50\x00"
            + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}".ljust(80)
            + b"12345678",
            b"\x93NUMPY\x01\x00\x50\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}".ljust(80) + b"12345678",
            b"\x93NUMPY\x01\x00\x50\x00" + b"{'descr': '|S0', 'fortran_order': False, 'shape': (1099511627776,)}".ljust(80),
            b"\x93NUMPY\x01\x00\xd0\x07" + b"(" * 2000,
        ],
    )
    def test_harmful_arrays(self, tmp_path, data):
        with pytest.raises(CorruptDataError, match=r"member 'a\.npy': it can't be decoded"):
            read(tmp_path, tar(("a.npy", data)))

    @pytest.mark.parametrize(
        "value",
        [
            np.array(3.5),
            np.zeros((0, 3)),
            np.asfortranarray(np.arange(6).reshape(2, 3)),
            np.array(["é", "b"]),
            np.array(["2020-01-02"], "M8[D]"),
            np.arange(3).astype(">i2"),
            np.array([b"ab", b"c"]),
            np.array([True, False]),
            np.array([1j]),
        ],
    )
    def test_arrays(self, tmp_path, value):
        file = io.BytesIO()
        np.save(file, value)
        (sample,) = read(tmp_path, tar(("a.npy", file.getvalue())))
        assert same(sample["npy"], np.ascontiguousarray(value).reshape(value.shape))
        assert sample["npy"].flags.writeable

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("a.json", b'{"a": 1, "a": 2}'),
            ("a.json", b"[" * 100_000),
            ("a.json", b"\xff"),
            ("a.txt", b"\xff"),
            ("a.cls", b"1_0"),
            ("a.cls", "٣".encode()),
            ("a.cls", b""),
            ("a.index", b"1.0"),
            ("a.id", b"9" * 1001),
        ],
    )
    def test_wrong_values(self, tmp_path, name, data):
        with pytest.raises(CorruptDataError, match=rf"a\.tar', member '{name}': it can't be decoded"):
            read(tmp_path, tar((name, data)))

    def test_numbers_with_blanks(self, tmp_path):
        assert read(tmp_path, tar(("a.cls", b" -12\n")))[0]["cls"] == -12

    def test_outcome_counts(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(tar(("a.cls", b"1"), ("b.cls", b"x")))
        assert outcome(lambda: TarShards(tmp_path)) == (1, [{"__key__": "a", "cls": 1}])
