"""Integer dot product order: one 64-byte line feeds 16 columns, four bytes each, with no shuffles.

A broadcast of four activations meets a line in one AVX-512 VNNI dpbusd, or in two AVX2 maddubs. Index formulas:
formats/layouts.md.
"""

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.layout.arrays import same_kind
from krasis.layout.check import (
    SCALE_DTYPES,
    check_bits,
    check_codes,
    check_matrix,
    check_shape_is,
    group_count,
)
from krasis.layout.marlin import padded_shape as padded_shape

PACKED_DTYPE = torch.uint8
COLUMNS = 16


@same_kind
def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [K, N] of `bits` 4 or 8 -> uint8 [N/16, 16K*bits/8].

    Raises InputError for another dtype, codes out of range, or K not a multiple of 8 or N of 16.
    """
    check_codes(codes, bits)
    k, n = codes.shape
    shape = packed_shape(k, n, bits)
    if bits == 4:
        low, high = codes.reshape(k // 8, 2, 4, n).unbind(1)
        codes = low | high << 4
    return codes.reshape(-1, 4, n // COLUMNS, COLUMNS).permute(2, 0, 3, 1).reshape(shape)


@same_kind
def unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 [N/16, 16K*bits/8] -> uint8 [K, N], the exact inverse of `pack`. Raises InputError like it."""
    check_bits(bits)
    check_matrix(packed, "packed codes", torch.uint8)
    k, n = packed.shape[1] * 8 // bits // COLUMNS, COLUMNS * packed.shape[0]
    check_shape_is(packed, packed_shape(k, n, bits), "packed codes")
    octets = packed.reshape(n // COLUMNS, -1, COLUMNS, 4).permute(1, 3, 0, 2)
    if bits == 8:
        return octets.reshape(k, n)
    pairs = octets.reshape(k // 8, 4, n)
    return torch.stack((pairs & 15, pairs >> 4), 1).reshape(k, n)


@same_kind
def pack_scales(scales: Tensor, k: int, group_size: int) -> Tensor:
    """[K/g, N] of floats or e8m0 bytes -> the same dtype, [N/16, K/g, 16].

    Raises InputError for another dtype or shape, or a group size other than 32, 64, 128, -1 and K.
    """
    check_matrix(scales, "scales", *SCALE_DTYPES)
    groups, n = scales.shape
    tiles, _, _ = scales_shape(k, n, group_size)
    check_shape_is(scales, (group_count(k, group_size), n), "scales")
    return scales.reshape(groups, tiles, COLUMNS).transpose(0, 1).contiguous()


@same_kind
def unpack_scales(packed: Tensor, k: int, group_size: int) -> Tensor:
    """[N/16, K/g, 16] -> [K/g, N], the exact inverse of `pack_scales`, with its errors."""
    check_matrix(packed, "packed scales", *SCALE_DTYPES, ndim=3)
    n = COLUMNS * packed.shape[0]
    check_shape_is(packed, scales_shape(k, n, group_size), "packed scales")
    return packed.transpose(0, 1).reshape(-1, n)


def columns(packed: Tensor, scales: Tensor, chosen: slice) -> tuple[Tensor, Tensor]:
    """Packed codes and scales of some columns alone, as if these were the matrix. Borders are multiples of 64."""
    tiles = slice(chosen.start // COLUMNS, chosen.stop // COLUMNS)
    return packed[tiles], scales[tiles]


def packed_shape(k: int, n: int, bits: int) -> tuple[int, int]:
    """(N/16, 16K*bits/8). Raises InputError where K is not a multiple of 8 or N of 16."""
    check_bits(bits)
    _check_shape(k, n)
    return n // COLUMNS, COLUMNS * k * bits // 8


def scales_shape(k: int, n: int, group_size: int) -> tuple[int, int, int]:
    """(N/16, K/g, 16). Raises InputError where K is not a multiple of 8 or N of 16, or for a wrong group size."""
    _check_shape(k, n)
    return n // COLUMNS, group_count(k, group_size), COLUMNS


def _check_shape(k: int, n: int) -> None:
    if k % 8 or n % COLUMNS or k < 1 or n < 1:
        raise InputError(f"K = {k}, N = {n}", expected="multiples of 8 and 16")
