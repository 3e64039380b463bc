"""A record: the bytes of one expert (or of a layer's dense weights), as sections in a fixed order.

Everything here follows from shape, codec and layout, so the manifest states no section offset.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta

from krasis import layout as layouts
from krasis import quant
from krasis.errors import KrasisError
from krasis.layout.marlin import padded_shape

SECTION_ALIGN = 256
RECORD_ALIGN = 4096
MAX_PAD = 128

Word = Annotated[str, Meta(pattern=r"^[a-z0-9_]+$(?!\n)", max_length=64)]
GroupSize = Literal[32, 64, 128]
Dim = Annotated[int, Meta(ge=1, lt=1 << 31)]
Shape = Annotated[tuple[Dim, ...], Meta(min_length=1, max_length=4)]


class TensorSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One tensor of a record.

    A quantized matrix has shape [N, K] (output, input features); its N rows are `parts` equal blocks (2 for gate and
    up), each padded at its own end, so row r of part p lies at p * padded N / parts + r. `group_size` is 0 for tensors
    that are stored unquantized; of these vectors may be padded like the rows of a matrix, others are not.
    """

    name: Word
    codec: Word
    shape: Shape
    padded_shape: Shape
    group_size: Literal[0, 32, 64, 128] = 0
    parts: Annotated[int, Meta(ge=1, le=2)] = 1

    @property
    def quantized(self) -> bool:
        return self.group_size != 0


@dataclass(frozen=True)
class Section:
    """One array of a record: the codes, scales or values of a tensor, `offset` bytes into the record."""

    tensor: str
    part: Literal["codes", "scales", "values"]
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def align(size: int, to: int) -> int:
    """`size` rounded up to a multiple of `to`."""
    return -(-size // to) * to


@cache
def sections(tensors: tuple[TensorSpec, ...], layout: str) -> tuple[Section, ...]:
    """The sections of a record in order. Raises ValueError where a tensor's fields contradict each other."""
    placed: list[Section] = []
    offset = 0
    for tensor in tensors:
        for part, dtype, shape in _arrays(tensor, layout):
            placed.append(Section(tensor.name, part, dtype, shape, offset))
            offset = align(offset + placed[-1].bytes, SECTION_ALIGN)
    return tuple(placed)


def record_bytes(tensors: tuple[TensorSpec, ...], layout: str) -> int:
    """Bytes from one record to the next: the sections, filled with zeros to 4 KiB."""
    last = sections(tensors, layout)[-1]
    return align(last.offset + last.bytes, RECORD_ALIGN)


_Array = tuple[Literal["codes", "scales", "values"], torch.dtype, tuple[int, ...]]


def _arrays(tensor: TensorSpec, layout: str) -> Iterator[_Array]:
    try:
        codec = quant.get(tensor.codec)
        if not codec.QUANTIZED:
            _check_plain(tensor)
            yield "values", codec.DTYPE, tensor.padded_shape
            return
        order = layouts.get(layout)
    except KrasisError as error:
        raise ValueError(f"tensor {tensor.name}: {error}") from error
    n, k = _check_quantized(tensor, codec.GROUP_SIZES)
    yield "codes", order.PACKED_DTYPE, order.packed_shape(k, n, codec.BITS)
    yield "scales", codec.SCALE_DTYPE, order.scales_shape(k, n, tensor.group_size)


def _check_plain(tensor: TensorSpec) -> None:
    if len(tensor.shape) == 1 and not tensor.group_size:
        _check_rows(tensor)
    elif tensor.group_size or tensor.parts != 1 or tensor.padded_shape != tensor.shape:
        raise ValueError(f"tensor {tensor.name}: {tensor.codec} takes no group size, parts or padding")


def _check_rows(tensor: TensorSpec) -> None:
    """The rows of each part are padded at its end, by less than `MAX_PAD`."""
    n, padded_n = tensor.shape[0], tensor.padded_shape[0]
    whole = n % tensor.parts == 0 and padded_n % tensor.parts == 0
    rows, padded_rows = n // tensor.parts, padded_n // tensor.parts
    if not whole or len(tensor.padded_shape) != len(tensor.shape) or not rows <= padded_rows < rows + MAX_PAD:
        raise ValueError(f"tensor {tensor.name}: {tensor.shape} can't be padded to {tensor.padded_shape}")


def _check_quantized(tensor: TensorSpec, group_sizes: tuple[int, ...]) -> tuple[int, int]:
    if tensor.group_size not in group_sizes or len(tensor.shape) != 2 or len(tensor.padded_shape) != 2:
        sizes = " or ".join(map(str, group_sizes))
        raise ValueError(f"tensor {tensor.name}: {tensor.codec} needs a group size of {sizes} and two dimensions")
    (n, k), (padded_n, padded_k) = tensor.shape, tensor.padded_shape
    rows, padded_rows = n // tensor.parts, padded_n // tensor.parts
    whole = n % tensor.parts == 0 and padded_n % tensor.parts == 0
    near = rows <= padded_rows < rows + MAX_PAD and k <= padded_k < k + MAX_PAD
    if not whole or not near or padded_shape(padded_k, padded_n, tensor.group_size) != (padded_k, padded_n):
        raise ValueError(f"tensor {tensor.name}: {tensor.shape} can't be padded to {tensor.padded_shape}")
    return padded_n, padded_k
