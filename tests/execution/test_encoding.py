"""Messages as bytes: whatever is in them comes out as it was."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from squirrel_torch.execution.encoding import decode, encode

DTYPES = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
]
DTYPES = [getattr(torch, name) for name in DTYPES if hasattr(torch, name)]

Pair = namedtuple("Pair", ["a", "b"])


@dataclass
class Record:
    a: Any
    b: Any


def sent(message, start=64):
    """What arrives."""
    encoded = encode(message)
    memory = bytearray(b"\xff" * (start + encoded.size + 1))
    encoded.write(memory, start)
    return decode(encoded.pickled, memory, start)


def numbers(tensor):
    """The numbers of a tensor, as bytes."""
    usual = tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return usual.reshape(-1).view(torch.uint8).tolist()


def same(found, expected):
    """Whether two messages are the same, to the bit."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape, found.requires_grad) == (expected.dtype, expected.shape, expected.requires_grad)
        assert numbers(found.detach()) == numbers(expected.detach())
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
        assert found.flags.writeable
        assert found.flags.f_contiguous or not expected.flags.f_contiguous
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, Record):
        same((found.a, found.b), (expected.a, expected.b))
    else:
        assert found == expected


@st.composite
def tensors(draw):
    """Tensors of any dtype and layout."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=4))
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype is torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    tensor = (torch.frombuffer(raw, dtype=dtype) if size else torch.empty(0, dtype=dtype)).reshape(shape)
    tensor = tensor.permute(draw(st.permutations(range(tensor.dim()))))
    if tensor.dim() and draw(st.booleans()):
        tensor = tensor[draw(st.integers(0, 1)) :: draw(st.integers(1, 3))]
    if draw(st.booleans()):
        tensor = tensor.expand(2, *tensor.shape)
    if dtype.is_complex and dtype is not torch.complex32 and draw(st.booleans()):
        tensor = tensor.conj()
        if draw(st.booleans()):
            tensor = tensor.imag  # its numbers are the negatives of those in memory
    if (dtype.is_floating_point or dtype.is_complex) and dtype.itemsize > 1 and draw(st.booleans()):
        tensor = tensor.detach().clone().requires_grad_()
    return tensor


@st.composite
def arrays(draw):
    """Arrays of any dtype and layout."""
    dtype = draw(st.one_of(npst.scalar_dtypes(), npst.array_dtypes(max_size=3), npst.unicode_string_dtypes()))
    array = draw(npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    if array.ndim and draw(st.booleans()):
        array = array[:: draw(st.sampled_from([1, 2, -1]))]
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


LEAVES = st.one_of(tensors(), arrays(), st.binary(), st.text(max_size=5), st.integers(), st.none(), st.booleans())
KEYS = st.one_of(st.text(max_size=3), st.integers())
MESSAGES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(Record, inner, inner),
    ),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@given(MESSAGES, st.sampled_from([0, 1, 64, 100]))
def test_round_trip(message, start):
    same(sent(message, start), message)


def test_layouts_without_gaps_are_kept():
    last = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    found = sent([last, last[:, :2], last.permute(3, 0, 2, 1)])
    assert found[0].stride() == last.stride()
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    assert found[2].stride() == last.permute(3, 0, 2, 1).stride()


def test_a_part_brings_nothing_but_itself():
    encoded = encode(torch.arange(1_000_000)[5:7])
    assert len(encoded.pickled) + encoded.size < 300


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_what_is_the_same_object_stays_so(size):
    tensor, array = torch.rand(size), np.random.rand(size)
    first, second = sent(({"t": tensor, "a": array}, [tensor, array]))
    assert first["t"] is second[0]
    assert first["a"] is second[1]
    assert torch.equal(first["t"], tensor)
    assert (first["a"] == array).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.nn.Parameter(torch.ones(3)),
        lambda: torch.ones(3, requires_grad=True) * 2,
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        lambda: torch._efficientzerotensor(3),
        lambda: torch.empty(3, device="meta"),
    ],
    ids=["sparse", "csr", "parameter", "graph", "quantized", "zero", "meta"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:TypedStorage", "ignore:.*[qQ]uantiz")
def test_others_go_as_torch_sends_them(make):
    tensor = make()
    found = sent([tensor, torch.ones(2)])
    assert type(found[0]) is type(tensor)
    assert (found[0].dtype, found[0].layout, found[0].device) == (tensor.dtype, tensor.layout, tensor.device)
    assert found[0].requires_grad == tensor.requires_grad
    if tensor.device.type == "cpu":
        assert torch.equal(found[0].detach().to_dense(), tensor.detach().to_dense())
    assert found[1].tolist() == [1, 1]


def test_attributes_of_a_tensor_are_kept():
    tensor = torch.ones(3)
    tensor.title = "three"
    assert sent(tensor).title == "three"


def test_classes_of_arrays_are_kept():
    masked = np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False])
    record = np.rec.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")])
    objects = np.array([{"a": 1}, None], dtype=object)
    found = sent([masked, record, objects, np.float32(3), np.ones(3)])
    assert found[0].tolist() == [1.0, None, 3.0]
    assert type(found[1]) is np.recarray
    assert found[1].y.tolist() == [2.0]
    assert found[2].tolist() == [{"a": 1}, None]
    assert type(found[3]) is np.float32
    assert found[4].tolist() == [1, 1, 1]


def test_a_sender_may_resize_what_it_has_sent():
    tensor = torch.ones(3)
    sent(tensor)
    assert tensor.resize_(100).shape == (100,)
    assert sent(tensor).resize_(200).shape == (200,)


def test_large_tensors_are_copied_too():
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.arange(1_000_000).to(dtype).reshape(1000, 1000)
        for layout in (tensor, tensor.T, tensor[::2]):
            found = sent(layout)
            assert torch.equal(found, layout)
