"""What the module of a layout provides."""

from typing import Protocol

import torch
from torch import Tensor

from krasis.layout.arrays import Array


class Layout(Protocol):
    """Pure reordering: `unpack(pack(codes, bits), bits)` is `codes`, and the same for the scales.

    Codes are unsigned, uint8 [K, N]. Scales are [K/g, N], one row where group_size is -1 or K. Arrays may be torch
    tensors or NumPy arrays, and what comes out is of the kind that went in. Every function raises InputError, which
    says what of dtype, range, shape, bits or group size is wrong.
    """

    PACKED_DTYPE: torch.dtype

    def pack(self, codes: Array, bits: int, /) -> Array:
        """uint8 [K, N] -> PACKED_DTYPE packed_shape(K, N, bits). `bits` is 4 or 8."""

    def unpack(self, packed: Array, bits: int, /) -> Array:
        """The inverse of `pack`."""

    def pack_scales(self, scales: Array, k: int, group_size: int, /) -> Array:
        """[K/g, N] -> the same dtype, scales_shape(K, N, group_size)."""

    def unpack_scales(self, packed: Array, k: int, group_size: int, /) -> Array:
        """The inverse of `pack_scales`."""

    def columns(self, packed: Tensor, scales: Tensor, chosen: slice) -> tuple[Tensor, Tensor]:
        """Packed codes and scales of some columns alone, as if these were the matrix. Borders are multiples of 64."""

    def packed_shape(self, k: int, n: int, bits: int) -> tuple[int, ...]:
        """The shape of packed codes."""

    def scales_shape(self, k: int, n: int, group_size: int) -> tuple[int, ...]:
        """The shape of packed scales."""

    def padded_shape(self, k: int, n: int, group_size: int) -> tuple[int, int]:
        """The smallest (K, N) at or above (k, n) that a pack stores. `group_size` is 32, 64, 128 or -1."""
