"""Tensor-core order: tiles of 16 k x 64 columns, each lane of a warp reading its own words.

Bit-exact with the public Marlin layout of vLLM for 16-bit activations. Index formulas: formats/layouts.md.
"""

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.layout.arrays import same_kind
from krasis.layout.check import (
    GROUP_SIZES,
    ONE_GROUP,
    SCALE_DTYPES,
    check_bits,
    check_codes,
    check_matrix,
    check_shape_is,
    group_count,
)

PACKED_DTYPE = torch.int32
TILE = 64


@same_kind
def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [K, N] of `bits` 4 or 8 -> int32 [K/16, 16N/pf], pf = 32/bits codes a word.

    Raises InputError for another dtype, codes out of range, or a shape Marlin cannot run.
    """
    check_codes(codes, bits)
    k, n = codes.shape
    shape = packed_shape(k, n, bits)
    # k = 16*row + 8*half + 2*pair + odd; column = 64*tile + 16*w + 8*h + c.
    tiles = codes.reshape(k // 16, 2, 4, 2, n // 64, 4, 2, 8)
    if bits == 4:
        low, high = tiles.unbind(1)
        ordered = (low | high << 4).permute(0, 3, 6, 1, 4, 2, 5)
    else:
        ordered = tiles.permute(0, 4, 7, 2, 5, 6, 3, 1)
    return ordered.reshape(k // 16, -1).view(torch.int32).reshape(shape)


@same_kind
def unpack(packed: Tensor, bits: int) -> Tensor:
    """int32 [K/16, 16N/pf] -> uint8 [K, N], the exact inverse of `pack`. Raises InputError like it."""
    check_bits(bits)
    check_matrix(packed, "packed codes", torch.int32)
    k, n = 16 * packed.shape[0], packed.shape[1] * 2 // bits
    check_shape_is(packed, packed_shape(k, n, bits), "packed codes")
    octets = packed.contiguous().view(torch.uint8)
    if bits == 8:
        return octets.view(k // 16, n // 64, 8, 4, 4, 2, 2, 2).permute(0, 7, 3, 6, 1, 4, 5, 2).reshape(k, n)
    pairs = octets.view(k // 16, n // 64, 8, 4, 4, 2, 2).permute(0, 3, 5, 1, 4, 6, 2)
    return torch.stack((pairs & 15, pairs >> 4), 1).reshape(k, n)


@same_kind
def pack_scales(scales: Tensor, k: int, group_size: int) -> Tensor:
    """[K/g, N] of floats or e8m0 bytes -> the same shape and dtype, columns permuted within every row.

    Raises InputError for another dtype or shape, or a group size other than 32, 64, 128, -1 and K.
    """
    _check_scales(scales, k, group_size)
    return _swap_middles(_swap_columns(scales))


@same_kind
def unpack_scales(packed: Tensor, k: int, group_size: int) -> Tensor:
    """The exact inverse of `pack_scales`, with its errors."""
    _check_scales(packed, k, group_size)
    return _swap_columns(_swap_middles(packed))


def columns(packed: Tensor, scales: Tensor, chosen: slice) -> tuple[Tensor, Tensor]:
    """Packed codes and scales of some columns alone, as if these were the matrix. Borders are multiples of 64."""
    tiles = packed.view(len(packed), scales.shape[1] // TILE, -1)
    return tiles[:, chosen.start // TILE : chosen.stop // TILE].flatten(1), scales[:, chosen]


def packed_shape(k: int, n: int, bits: int) -> tuple[int, int]:
    """(K/16, 16N/pf), pf = 32/bits. Raises InputError for a shape Marlin cannot run."""
    check_bits(bits)
    _check_runs(k, n)
    return k // 16, n * bits // 2


def scales_shape(k: int, n: int, group_size: int) -> tuple[int, int]:
    """(K/g, N). Raises InputError for a shape Marlin cannot run or a wrong group size."""
    _check_runs(k, n)
    return group_count(k, group_size), n


def padded_shape(k: int, n: int, group_size: int) -> tuple[int, int]:
    """The (K, N) of least area, then of least K, at or above (k, n) that Marlin can run in whole groups.

    `group_size` is 32, 64, 128, or -1 for one group. Raises InputError for another, or for k or n below 1.
    """
    if group_size not in (ONE_GROUP, *GROUP_SIZES):
        raise InputError(f"group size {group_size}", expected="32, 64, 128, or -1 for one group")
    if k < 1 or n < 1:
        raise InputError(f"a matrix of K = {k}, N = {n}", expected="at least 1 x 1")
    deep = _round_up(k, 128), _round_up(n, 64)
    wide = _round_up(k, max(64, group_size)), _round_up(n, 128)
    return min(deep, wide, key=lambda shape: (shape[0] * shape[1], shape[0]))


def _check_scales(scales: Tensor, k: int, group_size: int) -> None:
    check_matrix(scales, "scales", *SCALE_DTYPES)
    check_shape_is(scales, scales_shape(k, scales.shape[1], group_size), "scales")


def _swap_columns(scales: Tensor) -> Tensor:
    """Transpose blocks of columns: 8 x 8, or 4 x 4 pairs where one group has float scales. Its own inverse."""
    groups, n = scales.shape
    pairs = groups == 1 and scales.is_floating_point()
    blocks = (groups, n // 32, 4, 4, 2) if pairs else (groups, n // 64, 8, 8, 1)
    return scales.reshape(blocks).transpose(2, 3).reshape(groups, n)


def _swap_middles(scales: Tensor) -> Tensor:
    """Swap columns 1 and 2 of every four where scales are bytes. Its own inverse."""
    if scales.is_floating_point():
        return scales
    return scales.reshape(len(scales), -1, 2, 2).transpose(2, 3).reshape(scales.shape)


def _check_runs(k: int, n: int) -> None:
    tiled = (k % 64 == 0 and n % 128 == 0) or (k % 128 == 0 and n % 64 == 0)
    if not tiled or k < 1 or n < 1:
        expected = "multiples of 64 and 128, in either order"
        raise InputError(f"Marlin has no tiling for K = {k}, N = {n}", expected=expected)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
