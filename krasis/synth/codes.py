"""Quantized matrices, pieced together from the columns of a small one.

Everything that varies along K comes from one normal matrix, really quantized: so pads hold zeros, and codes and scales
are spread as a checkpoint's. Blocks of columns are copied from random places of it, as packed for each layout, and their
scales from random places of a long row of scales. So a record costs little more than writing it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from krasis import layout as layouts
from krasis import quant
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

Arrays = Mapping[tuple[str, str], Tensor]
"""(tensor, "codes" | "scales" | "values") -> a section of a record."""


class Matrices:
    """Fills matrices like `tensor`, whose weights have the root mean square `spread`, in each of `orders`."""

    def __init__(self, tensor: TensorSpec, orders: tuple[str, ...], spread: float, rng: np.random.Generator) -> None:
        self._codec, self._group = quant.get(tensor.codec), tensor.group_size
        padded_k, k = tensor.padded_shape[1], tensor.shape[1]
        weight = torch.zeros(COLUMNS, padded_k)
        weight[:, :k] = torch.from_numpy(rng.standard_normal((COLUMNS, k), dtype=np.float32) * np.float32(spread))
        weight[:, CHANNEL] = 0
        # What inputs have in common with all others (an activation's mean, say) must not add up: it would favour experts.
        groups = weight.unflatten(1, (-1, self._group))
        groups -= groups.mean(-1, keepdim=True)
        weight[:, k:] = 0
        quantized = self._codec.quantize(weight, self._group)
        self._k = padded_k
        self._codes = {order: self._tiles(layouts.get(order).pack(quantized.codes, self._codec.BITS), order, COLUMNS)
                       for order in orders}
        whole = quantized.scales[: max(1, k // self._group)].flatten()
        length = PLACES + self._groups * BLOCK
        self._scales = whole[torch.from_numpy(rng.integers(len(whole), size=length))]

    def fill(self, arrays: Mapping[str, Arrays], tensor: TensorSpec, rng: np.random.Generator) -> None:
        """Layout -> the zeroed sections of a record: those of `tensor` get one matrix, the same in every layout."""
        n = tensor.padded_shape[0]
        blocks = range(0, n, BLOCK)
        starts = (rng.integers((COLUMNS - BLOCK) // TILE + 1, size=len(blocks)) * TILE).tolist()
        scales = self._draw_scales(tensor, n, rng)
        for layout, sections in arrays.items():
            codes, source = self._tiles(sections[tensor.name, "codes"], layout, n), self._codes[layout]
            axis = self._axis(layout)
            for first, start in zip(blocks, starts, strict=True):
                count = min(BLOCK, n - first) // TILE
                codes.narrow(axis, first // TILE, count).copy_(source.narrow(axis, start // TILE, count))
            packed = layouts.get(layout).pack_scales(scales, self._k, self._group)
            sections[tensor.name, "scales"].copy_(packed)

    def _draw_scales(self, tensor: TensorSpec, n: int, rng: np.random.Generator) -> Tensor:
        """[K/g, n], zero where columns are padding."""
        scales = torch.empty(self._groups, n, dtype=self._scales.dtype)
        blocks = scales.split(BLOCK, dim=1)
        for block, place in zip(blocks, rng.integers(PLACES, size=len(blocks)).tolist(), strict=True):
            block.copy_(self._scales[place : place + block.numel()].view(block.shape))
        rows = tensor.shape[0] // tensor.parts
        scales.view(self._groups, tensor.parts, -1)[:, :, rows:] = 0
        if tensor.name in RESIDUAL:
            scales[:, CHANNEL] = 0
        return scales

    @property
    def _groups(self) -> int:
        return self._k // self._group

    def _tiles(self, packed: Tensor, layout: str, n: int) -> Tensor:
        """Packed codes with the dimension along columns cut into tiles."""
        return packed.unflatten(self._axis(layout), (n // TILE, -1))

    def _axis(self, layout: str) -> int:
        """The dimension of packed codes that grows with N."""
        order, bits = layouts.get(layout), self._codec.BITS
        one, two = (order.packed_shape(self._k, n, bits) for n in (128, 256))
        return next(axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
