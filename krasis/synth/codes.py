"""Quantized matrices, pieced together from the columns of a small one.

That is a normal one, really quantized: codes and scales are spread as a checkpoint's, and pads hold zeros. Blocks of
columns, as packed for each layout, are copied from random places of a row that repeats the small matrix', and scales
from random places of a long row of them. So a record costs little more than writing it.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor

from krasis import layout as layouts
from krasis import quant
from krasis.pack.file_writer import Arrays
from krasis.pack.record import TensorSpec
from krasis.synth.values import CHANNEL, RESIDUAL

COLUMNS = 1024
"""Columns of the small matrix."""

REPEATS = 4
"""How often the row of columns has each, so that a block of it may be long."""

BLOCK = 2048
"""Columns that are copied together."""

TILE = 64
"""Columns that every layout keeps together."""

PLACES = 1 << 20
"""Places in the row of scales, so that no two records are equal."""

WINDOW = 1 << 16
"""Scales that are copied together."""


class Matrices:
    """Fills matrices like `tensor`, whose weights have the root mean square `spread`, in each of `orders`."""

    def __init__(self, tensor: TensorSpec, orders: tuple[str, ...], spread: float, rng: np.random.Generator) -> None:
        padded_k, group = tensor.padded_shape[1], tensor.group_size
        k, codec = tensor.shape[1], quant.get(tensor.codec)
        weight = torch.zeros(COLUMNS, padded_k)
        weight[:, :k] = torch.from_numpy(rng.standard_normal((COLUMNS, k), dtype=np.float32) * np.float32(spread))
        # What all inputs have in common (the mean of an activation, say) must not add up: it would favour experts.
        groups = weight.view(COLUMNS, -1, group)
        groups -= groups.mean(-1, keepdim=True)
        weight[:, CHANNEL] = 0
        weight[:, k:] = 0
        quantized = codec.quantize(weight, group)
        tiles = torch.cat([torch.from_numpy(rng.permutation(COLUMNS // TILE)) for _ in range(REPEATS)])
        self._columns = {order: _Columns(order, quantized.codes, codec.BITS, tiles) for order in orders}
        whole = quantized.scales[: max(1, k // group)].flatten()
        self._scales = whole[torch.from_numpy(rng.integers(len(whole), size=PLACES + WINDOW))]

    def fill(self, arrays: Mapping[str, Arrays], tensor: TensorSpec, rng: np.random.Generator) -> None:
        """Layout -> the sections of a record: those of `tensor` get one matrix, the same in every layout."""
        n, k = tensor.padded_shape
        places = rng.integers((REPEATS * COLUMNS - BLOCK) // TILE + 1, size=-(-n // BLOCK)).tolist()
        for layout, sections in arrays.items():
            self._columns[layout].copy(sections[tensor.name, "codes"], n, places)
        first, *others = arrays
        scales = arrays[first][tensor.name, "scales"]
        self._draw_scales(scales.view(-1), rng)
        scales.view(-1).index_fill_(0, _without(tensor, first), 0)
        for layout in others:
            plain = layouts.get(first).unpack_scales(scales, k, tensor.group_size)
            packed = layouts.get(layout).pack_scales(plain, k, tensor.group_size)
            arrays[layout][tensor.name, "scales"].copy_(packed)

    def _draw_scales(self, out: Tensor, rng: np.random.Generator) -> None:
        """Any order of them is as random."""
        windows = torch.split(out, WINDOW)
        for window, place in zip(windows, rng.integers(PLACES, size=len(windows)).tolist(), strict=True):
            window.copy_(self._scales[place : place + len(window)])


@cache
def _without(tensor: TensorSpec, layout: str) -> Tensor:
    """Which of the packed scales are zero: those of columns that are padding, or that `CHANNEL` is kept free of."""
    n, k = tensor.padded_shape
    scales = torch.ones(k // tensor.group_size, n, dtype=quant.get(tensor.codec).SCALE_DTYPE)
    scales.view(len(scales), tensor.parts, -1)[:, :, tensor.shape[0] // tensor.parts :] = 0
    if tensor.name in RESIDUAL:
        scales[:, CHANNEL] = 0
    return (layouts.get(layout).pack_scales(scales, k, tensor.group_size).flatten() == 0).nonzero().flatten()


class _Columns:
    """The columns of codes uint8 [K, COLUMNS] in the byte order of a layout, a row of the `tiles` that are named."""

    def __init__(self, layout: str, codes: Tensor, bits: int, tiles: Tensor) -> None:
        order = layouts.get(layout)
        one, two = (order.packed_shape(len(codes), n, bits) for n in (COLUMNS, 2 * COLUMNS))
        # The dimension of packed codes that grows with N.
        self._axis = [a == b for a, b in zip(one, two, strict=True)].index(False)
        self._tiles = self._cut(order.pack(codes, bits), COLUMNS).index_select(self._axis, tiles)

    def copy(self, out: Tensor, n: int, places: list[int]) -> None:
        """Fill packed codes of `n` columns, each block of them with the columns from tile number `places` on."""
        tiles = torch.split(self._cut(out, n), BLOCK // TILE, dim=self._axis)
        for block, place in zip(tiles, places, strict=True):
            block.copy_(self._tiles.narrow(self._axis, place, block.shape[self._axis]))

    def _cut(self, packed: Tensor, n: int) -> Tensor:
        """The dimension along columns cut into tiles."""
        before, after = packed.shape[: self._axis], packed.shape[self._axis + 1 :]
        return packed.view(*before, n // TILE, -1, *after)
