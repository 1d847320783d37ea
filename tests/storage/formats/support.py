"""What the tests of all readers share."""

import pickle

import numpy as np
import pytest

from squirrel_torch import IterableSource, StoreError
from squirrel_torch.sharding import Shard


def same(first, second):
    """Whether two samples are equal, types and dtypes included."""
    if type(first) is not type(second):
        return False
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    if isinstance(first, dict):
        return list(first) == list(second) and all(map(same, first.values(), second.values()))
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second or (first != first and second != second)


def check(reader, expected):
    """A reader gives what is expected, in all ways in which it can be read."""
    assert same(list(reader), expected)
    assert same(list(reader), expected)
    assert same([sample for path in reader.files for sample in reader.read_file(path)], expected)
    assert same(list(pickle.loads(pickle.dumps(reader))), expected)
    assert same(IterableSource(reader).collect(), expected)
    for count in (2, 3, 7, len(expected) + 1):
        for index in range(count):
            assert same(list(reader._part(Shard(index, count))), expected[index::count])
    if len_of(reader) is not None:
        assert len(reader) == len(expected)
        assert same([reader[index] for index in range(len(expected))], expected)
        assert same([reader[index] for index in range(-len(expected), 0)], expected)
        for wrong in (len(expected), -len(expected) - 1):
            with pytest.raises(IndexError, match="there is no sample"):
                reader[wrong]


def len_of(reader):
    try:
        return len(reader)
    except TypeError:
        return None


def outcome(read):
    """The samples, or how many came in front of an error of the package."""
    samples = []
    try:
        for sample in read():
            samples.append(sample)
    except StoreError:
        return len(samples), samples
    return None, samples


def right_or_error(read, expected, place):
    """Read: all samples and the right ones, or right ones and an error."""
    failed, samples = outcome(read)
    if failed is None:
        assert same(samples, expected), place
        return False
    assert same(samples, expected[: len(samples)]), place
    return True


def cut_everywhere(data, path, read, expected, step=1):
    """At every byte: the number of cuts that raised."""
    raised = 0
    for size in range(0, len(data), step):
        path.write_bytes(data[:size])
        raised += right_or_error(read, expected, size)
    path.write_bytes(data)
    return raised


def flip_everywhere(data, path, read, expected, flips=(0x01, 0x80, 0xFF)):
    """Every byte changed: the number of changes that raised."""
    raised = 0
    for place in range(len(data)):
        for flip in flips:
            changed = bytearray(data)
            changed[place] ^= flip
            path.write_bytes(changed)
            raised += right_or_error(read, expected, (place, flip))
    path.write_bytes(data)
    return raised
