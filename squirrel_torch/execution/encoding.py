"""Messages as bytes: a small pickled part, and apart from it the numbers of arrays and tensors."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from ctypes import addressof, c_char, memmove
from io import BytesIO
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Encoded", "decode", "encode"]

_ALIGNED: Final = 64
"""Where numbers begin in memory: at multiples of this, a line of the cache."""

_LARGE: Final = 1 << 20
"""Tensors of so many bytes are copied by torch, which has threads for that; for others it would take longer to begin."""

_NUMBERS: Final = {
    getattr(torch, name): name
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)
}
"""The types of tensors that are plain bytes, and their names."""

_PLAIN_KINDS: Final = frozenset("biufcmMSUV")

_LEAF: Final = pickle.PickleBuffer(bytearray(1))
"""Stands in the pickled part for the next array or tensor; being writable, it leaves nothing but its place there."""


class Encoded:
    """A message on its way.

    Args:
        pickled: The small part.
        leaves: The arrays and tensors, in the order of their places in it.
        size: The bytes that the numbers of `leaves` take up, with the gaps between them.
    """

    __slots__ = ("_leaves", "pickled", "size")

    def __init__(self, pickled: bytes, leaves: Sequence[torch.Tensor | npt.NDArray[Any]], size: int) -> None:
        self.pickled: bytes = pickled
        self.size: int = size
        self._leaves = leaves

    def write(self, memory: Any, start: int) -> None:
        """Copy the numbers to where `decode` will look for them.

        Args:
            memory: Any writable buffer.
            start: Where in it; a multiple of 64 is best.
        """
        if not self.size:
            return
        held = c_char.from_buffer(memory)  # as long as this lives, the memory stays where it is
        address = addressof(held)
        for leaf in self._leaves:
            if isinstance(leaf, np.ndarray):
                if leaf.nbytes:
                    np.copyto(np.ndarray(leaf.shape, leaf.dtype, memory, start, order=_order(leaf)), leaf)
            elif leaf.nbytes:
                _write_tensor(leaf, memory, start, address)
            start += _room(leaf.nbytes)


def _write_tensor(tensor: torch.Tensor, memory: Any, start: int, address: int) -> None:
    size = tensor.nbytes
    # Numpy would be as fast, but a tensor that it has seen can't be resized any more.
    if size < _LARGE and _as_usual(tensor) and (source := tensor.data_ptr()):
        memmove(address + start, source, size)
    else:
        _look(memory, start, tensor, _strides(tensor)).copy_(tensor)


def _as_usual(tensor: torch.Tensor) -> bool:
    """Whether the numbers are there, one after the other, as they are."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


class _Encoder(pickle.Pickler):
    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, 5, buffer_callback=_in_place)
        self.leaves: list[torch.Tensor | npt.NDArray[Any]] = []

    def reducer_override(self, value: Any) -> Any:
        return _reduced(value, self.leaves)


def _in_place(buffer: pickle.PickleBuffer) -> bool:
    return buffer is not _LEAF  # of classes that pickle has its own way with


def _reduced(value: Any, leaves: list[torch.Tensor | npt.NDArray[Any]]) -> Any:
    kind = type(value)
    if kind is torch.Tensor and _plain(value):
        leaves.append(value.detach() if value.requires_grad else value)
        return _tensor, (_LEAF, _NUMBERS[value.dtype], tuple(value.shape), _strides(value), value.requires_grad)
    if kind is np.ndarray and (dtype := value.dtype).kind in _PLAIN_KINDS and not dtype.hasobject:
        leaves.append(value)
        # A name is shorter than a dtype, where it says the same.
        return _array, (_LEAF, dtype.char if dtype.isbuiltin == 1 else dtype, value.shape, _order(value))
    return NotImplemented


def encode(message: Any) -> Encoded:
    """`message`, ready to be copied. Arrays and tensors in it must not change before they were written.

    A tensor that requires grad will do so over there, without its graph.

    Raises:
        Exception: Whatever pickling raises.
    """
    file = BytesIO()
    encoder = _Encoder(file)
    try:
        encoder.dump(message)
    except Exception as first:  # noqa: BLE001  # raised below, if cloudpickle can't either
        try:
            return _by_value(message)
        except Exception as error:
            raise first from error  # the first error says it in pickle's well-known words
    return Encoded(file.getvalue(), encoder.leaves, sum(_room(leaf.nbytes) for leaf in encoder.leaves))


def _by_value(message: Any) -> Encoded:
    import cloudpickle

    leaves: list[torch.Tensor | npt.NDArray[Any]] = []

    class Encoder(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
        def reducer_override(self, value: Any) -> Any:
            reduced = _reduced(value, leaves)
            return super().reducer_override(value) if reduced is NotImplemented else reduced

    file = BytesIO()
    Encoder(file, 5, _in_place).dump(message)
    return Encoded(file.getvalue(), leaves, sum(_room(leaf.nbytes) for leaf in leaves))


def decode(pickled: Any, memory: Any, start: int, *, pinned: bool = False) -> Any:
    """The message. Arrays and tensors in it are copies that belong to the caller.

    Args:
        pickled: The small part, as bytes or a view of them.
        memory: Where the numbers are: any writable buffer that is not empty.
        start: From where on.
        pinned: Whether tensors shall be in memory from which CUDA copies without waiting.

    Raises:
        Exception: Whatever unpickling raises.
    """
    return pickle.loads(pickled, buffers=repeat(_Reader(memory, start, pinned)))  # noqa: S301  # from a process of ours


class _Reader:
    """Hands out the numbers, one array after the other."""

    __slots__ = ("_held", "address", "memory", "pinned", "start")

    def __init__(self, memory: Any, start: int, pinned: bool) -> None:
        self.memory = memory
        self.start = start
        self._held = c_char.from_buffer(memory)  # as long as this lives, the memory stays where it is
        self.address = addressof(self._held)
        self.pinned = pinned

    def next(self, size: int) -> int:
        """Where the next `size` bytes are."""
        start = self.start
        self.start += _room(size)
        return start


def _tensor(reader: _Reader, name: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, learns: bool) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, name)
    if strides is None:
        tensor = torch.empty(shape, dtype=dtype, pin_memory=reader.pinned)
    else:
        tensor = torch.empty_strided(shape, strides, dtype=dtype, pin_memory=reader.pinned)
    if size := tensor.nbytes:
        start = reader.next(size)
        if size < _LARGE:
            memmove(tensor.data_ptr(), reader.address + start, size)
        else:
            tensor.copy_(_look(reader.memory, start, tensor, strides))
    return tensor.requires_grad_() if learns else tensor


def _array(reader: _Reader, dtype: Any, shape: tuple[int, ...], order: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.empty(shape, dtype, order)
    if array.nbytes:
        np.copyto(array, np.ndarray(shape, array.dtype, reader.memory, reader.next(array.nbytes), order=order))
    return array


def _look(memory: Any, start: int, like: torch.Tensor, strides: tuple[int, ...] | None) -> torch.Tensor:
    """The numbers at `start` as a tensor, not copied."""
    flat = torch.frombuffer(memory, dtype=like.dtype, count=like.numel(), offset=start)
    return flat.view(like.shape) if strides is None else flat.as_strided(like.shape, strides)


def _plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is its numbers, and nothing else but that it may require grad."""
    return (
        tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.dtype in _NUMBERS
        and not tensor.is_nested
        and not tensor.__dict__
    )


def _strides(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """How the numbers are laid out, without gaps; None if as usual."""
    if tensor.is_contiguous():
        return None
    return torch.empty_like(tensor, device="meta").stride()


def _order(array: npt.NDArray[Any]) -> Any:
    return "F" if array.flags.fnc else "C"


def _room(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
