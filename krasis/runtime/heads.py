"""A matrix a head, multiplied as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from krasis.models.family import Linear
from krasis.runtime.backend import PackedMatrix
from krasis.runtime.dequantize import dequantize


class PackedHeads:
    """Implements `krasis.models.family.Heads`; `product` is what it does when called."""

    def __init__(self, matrices: Sequence[PackedMatrix], product: Linear) -> None:
        self._matrices = matrices
        self._product = product

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x)

    def leading(self, x: Tensor) -> Tensor:
        k = self._matrices[0].spec.shape[1]
        return torch.cat((self(x[..., :k]), x[..., k:]), dim=-1)

    def dense(self, heads: slice) -> Tensor:
        return torch.stack([dequantize(matrix) for matrix in self._matrices[heads]])
