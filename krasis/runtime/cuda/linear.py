"""Products on the GPU as families ask for them: of few rows or many, with a bias, or added to something."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.ops import Ops, Routing
from krasis.native.cuda.gemm import MOST_FEW, Product, Products, Scratch, linear, linear_few
from krasis.native.cuda.plain import choose, plain, takes


class PackedLinear:
    """Products of one x bfloat16 [tokens, K] side by side: bfloat16 [tokens, N], float32 where `wide`.

    Implements `krasis.models.family.Adds` and `TakesBias`. `fixed`: see `Products`.
    """

    def __init__(self, products: Sequence[Product], scratch: Scratch, *, wide: bool, fixed: bool) -> None:
        self._parts, self._scratch, self._wide = products, scratch, wide
        self._products = Products(products, fixed=fixed)

    def __call__(self, x: Tensor) -> Tensor:
        dtype = torch.float32 if self._wide else torch.bfloat16
        out = torch.empty(len(x), self._products.n_out, dtype=dtype, device=x.device)
        if len(x) <= MOST_FEW:
            return linear_few(self._products, x, out, self._scratch)
        return linear(self._products, x, out)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        if len(x) <= MOST_FEW:
            linear_few(self._products, x, out, self._scratch, add=True)
        else:
            out += self(x)

    def biased(self, bias: Tensor) -> "PackedLinear":
        ends = [0, *accumulate(product.n_out for product in self._parts)]
        parts = [
            replace(product, bias=bias[first:last])
            for product, (first, last) in zip(self._parts, pairwise(ends), strict=True)
        ]
        return PackedLinear(parts, self._scratch, wide=self._wide, fixed=self._products.fixed)


class PlainLinear:
    """x bfloat16 [tokens, K] times a matrix [N, K] that is not packed: bfloat16, or float32 where `wide`.

    Implements `krasis.models.family.Routes`. `fixed`: see `Products`.
    """

    def __init__(self, weight: Tensor, ops: Ops, scratch: Scratch, *, wide: bool, fixed: bool) -> None:
        self._weight, self._ops, self._scratch, self._wide, self._fixed = weight, ops, scratch, wide, fixed

    def __call__(self, x: Tensor) -> Tensor:
        weight = self._weight
        if takes(weight, x):
            dtype = torch.float32 if self._wide else torch.bfloat16
            return plain(weight, x, torch.empty(len(x), len(weight), dtype=dtype, device=x.device), fixed=self._fixed)
        if self._wide and weight.dtype is torch.bfloat16 and x.is_cuda:
            return torch.mm(x, weight.T, out_dtype=torch.float32)
        if self._wide:
            return x.float() @ weight.float().T
        return functional.linear(x, weight.to(x.dtype))

    def choose(self, x: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        if not takes(self._weight, x):
            return self._ops.route(self(x), bias, routing)
        way = (routing.k, routing.scores, routing.normalize, routing.scale)
        return choose(self._weight, x, bias, *way, self._scratch, fixed=self._fixed)
