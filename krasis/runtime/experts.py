"""The routed sum: each token's chosen experts, weighted. Written once for every backend."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from krasis.models.family import Activation, Linear


class RoutedExperts:
    """Runs the experts that any token chose, in ascending order, so that every sum has one fixed order."""

    def __init__(self, load: Callable[[int], tuple[Linear, Linear]], activation: Activation) -> None:
        self._load = cache(load)
        self._activation = activation

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in torch.unique(ids).tolist():
            tokens, slots = (ids == expert).nonzero(as_tuple=True)
            out.index_add_(0, tokens, self._expert(expert, x[tokens]) * weights[tokens, slots, None])
        return out

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        w13, w2 = self._load(expert)
        gate, up = w13(x).chunk(2, dim=-1)
        return w2(self._activation(gate, up))
