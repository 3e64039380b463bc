"""Rotary position embedding (Su et al. 2021), plain or stretched by YaRN (Peng et al. 2023)."""

import math
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from krasis.models.family import MOST_FLOAT, Count, Positive

Angles = tuple[Tensor, Tensor]
"""(cos, sin), each float32 [tokens, 1, dim/2]."""


TABLE = 1 << 16
"""Positions whose angles are kept once computed."""


class Yarn(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How far a rope is stretched. `attention_factor` multiplies cos and sin; `softmax_factor` the logits of MLA."""

    factor: Positive
    original_positions: Count
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: bool = True
    attention_factor: Positive = 1.0
    softmax_factor: Positive = 1.0


class RopeSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`partial` is the share of a head's dimensions that turns."""

    theta: Annotated[float, Meta(gt=1, le=MOST_FLOAT)]
    partial: Annotated[float, Meta(gt=0, le=1)] = 1.0
    yarn: Yarn | None = None


class Rope:
    """The angles of a head of `dim` dimensions, of which `rope.partial` turn."""

    def __init__(self, head_dim: int, rope: RopeSpec) -> None:
        self.dim = int(head_dim * rope.partial)
        self._frequencies = rope.theta ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        self._factor = 1.0
        if rope.yarn is not None:
            self._frequencies *= stretch(self.dim, rope.theta, rope.yarn)
            self._factor = rope.yarn.attention_factor
        self._table = self._computed(0, 0)

    def angles(self, start: int, tokens: int) -> Angles:
        """Those of positions start to start + tokens."""
        end = start + tokens
        if end > TABLE:
            return self._computed(start, end)
        if end > self._table[0].shape[0]:
            # Doubled, so that a growing sequence computes each angle about once.
            self._table = self._computed(0, min(2 * end, TABLE))
        cos, sin = self._table
        return cos[start:end], sin[start:end]

    def _computed(self, start: int, end: int) -> Angles:
        positions = torch.arange(start, end, dtype=torch.float64)
        angles = torch.outer(positions, self._frequencies)[:, None, :]
        return (angles.cos() * self._factor).to(torch.float32), (angles.sin() * self._factor).to(torch.float32)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Turn the first dimensions of x [tokens, heads, dim], i with i + dim/2; what the angles leave over stays."""
    cos, sin = angles
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def stretch(dim: int, theta: float, yarn: Yarn) -> Tensor:
    """float64 [dim/2]: what each frequency is multiplied by (Peng et al. 2023, eq. 22 and 23).

    A dimension that turns more than beta_fast times over the original positions stays, one that turns less than
    beta_slow times is divided by the factor; `truncate` rounds the borders of the ramp between outwards.
    """

    def dimension(turns: float) -> float:
        return dim * math.log(yarn.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    # A ramp without length would divide by zero.
    ramp = (torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low or 0.001)
    ramp = ramp.clamp(0, 1)
    return 1 - ramp + ramp / yarn.factor


def mscale(factor: float, weight: float = 1.0) -> float:
    """0.1 weight ln(factor) + 1: how much sharper attention is to be over a stretched context (Peng et al., eq. 24)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
