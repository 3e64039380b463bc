"""A matrix a head, multiplied as one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from krasis.runtime.backend import PackedMatrix
from krasis.runtime.reference import dequantize

Products = Callable[[Sequence[Tensor]], list[Tensor]]
"""x [tokens, K] for each of several matrices -> [tokens, N] of each."""


class PackedHeads:
    """Implements `krasis.models.family.Heads`."""

    def __init__(self, matrices: list[PackedMatrix], products: Products) -> None:
        self._matrices = matrices
        self._products = products

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack(self._products(x.unbind(1)), dim=1)

    def dense(self, heads: slice) -> Tensor:
        return torch.stack([dequantize(matrix) for matrix in self._matrices[heads]])
