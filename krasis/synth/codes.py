"""Quantized matrices, pieced together from the columns of a small one.

That is a normal one, really quantized: codes and scales are spread as a checkpoint's, and pads hold zeros. Blocks of
its columns, as packed for each layout, are copied from random places, and their scales from random places of a long
row of them. So a record costs little more than writing it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from krasis import layout as layouts
from krasis import quant
from krasis.layout.protocol import Layout
from krasis.pack.file_writer import Arrays
from krasis.pack.record import TensorSpec
from krasis.synth.values import CHANNEL, RESIDUAL

COLUMNS = 1024
"""Columns of the small matrix."""

BLOCK = 512
"""Columns that are copied together."""

TILE = 64
"""Columns that every layout keeps together."""

PLACES = 1 << 20
"""Places in the row of scales, so that no two records are equal."""


class Matrices:
    """Fills matrices like `tensor`, whose weights have the root mean square `spread`, in each of `orders`."""

    def __init__(self, tensor: TensorSpec, orders: tuple[str, ...], spread: float, rng: np.random.Generator) -> None:
        self._k, self._group = tensor.padded_shape[1], tensor.group_size
        k, codec = tensor.shape[1], quant.get(tensor.codec)
        weight = torch.zeros(COLUMNS, self._k)
        weight[:, :k] = torch.from_numpy(rng.standard_normal((COLUMNS, k), dtype=np.float32) * np.float32(spread))
        # What all inputs have in common (the mean of an activation, say) must not add up: it would favour experts.
        groups = weight.view(COLUMNS, -1, self._group)
        groups -= groups.mean(-1, keepdim=True)
        weight[:, CHANNEL] = 0
        weight[:, k:] = 0
        quantized = codec.quantize(weight, self._group)
        self._columns = {order: _Columns(layouts.get(order), quantized.codes, codec.BITS) for order in orders}
        whole = quantized.scales[: max(1, k // self._group)].flatten()
        length = PLACES + self._k // self._group * BLOCK
        self._scales = whole[torch.from_numpy(rng.integers(len(whole), size=length))]

    def fill(self, arrays: Mapping[str, Arrays], tensor: TensorSpec, rng: np.random.Generator) -> None:
        """Layout -> the zeroed sections of a record: those of `tensor` get one matrix, the same in every layout."""
        n = tensor.padded_shape[0]
        places = rng.integers((COLUMNS - BLOCK) // TILE + 1, size=-(-n // BLOCK)).tolist()
        scales = self._draw_scales(tensor, n, rng)
        for layout, sections in arrays.items():
            columns = self._columns[layout]
            columns.copy(sections[tensor.name, "codes"], n, places)
            sections[tensor.name, "scales"].copy_(columns.order.pack_scales(scales, self._k, self._group))

    def _draw_scales(self, tensor: TensorSpec, n: int, rng: np.random.Generator) -> Tensor:
        """[K/g, n], zero where columns are padding."""
        scales = torch.empty(self._k // self._group, n, dtype=self._scales.dtype)
        blocks = torch.split(scales, BLOCK, dim=1)
        for block, place in zip(blocks, rng.integers(PLACES, size=len(blocks)).tolist(), strict=True):
            block.copy_(self._scales[place : place + block.numel()].view(block.shape))
        rows = tensor.shape[0] // tensor.parts
        scales.view(len(scales), tensor.parts, -1)[:, :, rows:] = 0
        if tensor.name in RESIDUAL:
            scales[:, CHANNEL] = 0
        return scales


class _Columns:
    """`COLUMNS` columns of codes uint8 [K, COLUMNS] in the byte order of a layout."""

    def __init__(self, order: Layout, codes: Tensor, bits: int) -> None:
        self.order = order
        one, two = (order.packed_shape(len(codes), n, bits) for n in (COLUMNS, 2 * COLUMNS))
        # The dimension of packed codes that grows with N.
        self._axis = [a == b for a, b in zip(one, two, strict=True)].index(False)
        self._tiles = self._cut(order.pack(codes, bits), COLUMNS)

    def copy(self, out: Tensor, n: int, places: list[int]) -> None:
        """Fill packed codes of `n` columns, each block of them with the columns from tile number `places` on."""
        tiles = torch.split(self._cut(out, n), BLOCK // TILE, dim=self._axis)
        for block, place in zip(tiles, places, strict=True):
            block.copy_(self._tiles.narrow(self._axis, place, block.shape[self._axis]))

    def _cut(self, packed: Tensor, n: int) -> Tensor:
        """The dimension along columns cut into tiles."""
        before, after = packed.shape[: self._axis], packed.shape[self._axis + 1 :]
        return packed.view(*before, n // TILE, -1, *after)
