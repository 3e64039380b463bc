"""Blocks that families share, in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.family import Linear


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in float32 (Zhang and Sennrich 2019, eq. 4)."""
    x = x.to(torch.float32)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(torch.float32)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020)."""
    return functional.silu(gate) * up


class Rope:
    """Rotary position embedding with the halves convention: dimension i turns with i + dim/2 (Su et al. 2021)."""

    def __init__(self, dim: int, theta: float) -> None:
        self._frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def angles(self, start: int, tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [tokens, 1, dim/2], of positions start to start + tokens."""
        positions = torch.arange(start, start + tokens, dtype=torch.float64)
        angles = torch.outer(positions, self._frequencies)[:, None, :]
        return angles.cos().to(torch.float32), angles.sin().to(torch.float32)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn x [tokens, heads, dim] by `Rope.angles`."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def softmax_top_k(logits: Tensor, k: int, *, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Softmax over all experts, then the k largest: (ids int64 [tokens, k], weights float32 [tokens, k])."""
    weights, ids = logits.to(torch.float32).softmax(-1).topk(k, dim=-1)
    return ids, weights / weights.sum(-1, keepdim=True) if renormalize else weights


def gated_mlp(gate_up: Linear, down: Linear, x: Tensor) -> Tensor:
    """down(swiglu(gate(x), up(x))), gate and up being the two halves of one matrix."""
    gate, up = gate_up(x).chunk(2, dim=-1)
    return down(swiglu(gate, up))
