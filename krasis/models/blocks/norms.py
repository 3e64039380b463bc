"""Root mean square normalization."""

import torch
from torch import Tensor

from krasis.models.family import Weights


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in float32 (Zhang and Sennrich 2019, eq. 4)."""
    x = x.to(torch.float32)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def stored_norm(weights: Weights, segment: str, name: str, *, offset: float = 0.0) -> Tensor:
    """float32 weight of a norm. `offset` is added to it: 1 where a family stores weights minus one."""
    return weights.tensor(segment, name).to(torch.float32) + offset


class Norm:
    """`rms_norm` of [tokens, n] with a stored weight; see `stored_norm`."""

    def __init__(self, weights: Weights, segment: str, name: str, eps: float, *, offset: float = 0.0) -> None:
        self._ops = weights.ops
        self._weight = stored_norm(weights, segment, name, offset=offset)
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.norm(x, self._weight, self._eps)

    def after_adding(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + y, or x where there is nothing to add, and its norm. x and y are lost."""
        return (x, self(x)) if y is None else self._ops.add_norm(x, y, self._weight, self._eps)
