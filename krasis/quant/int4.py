"""INT4: 16 codes a weight, one scale of either sign a group, chosen by search."""

import torch
from torch import Tensor

from krasis.quant.codec import Quantized
from krasis.quant.groups import dequantize_groups, quantize_groups
from krasis.quant.treesum import tree_sum

NAME = "int4"
BITS = 4
ZERO = 8
QUANTIZED = True
GROUP_SIZES = (32, 64, 128)
SCALE_DTYPE = torch.bfloat16

LEAST, MOST = -8, 7
FACTORS = tuple(0.75 + 0.025 * step for step in range(13))
# The first half of the candidates sends the peak to the side of -8, the one code without an opposite.
CANDIDATES = tuple(sign * factor / 8 for sign in (-1, 1) for factor in FACTORS)


def quantize(weight: Tensor, group_size: int) -> Quantized:
    """Float [N, K] -> codes uint8 [K, N] and bfloat16 scales [K/g, N], least squared error of 26 candidate scales.

    Candidates are peak * c for c in CANDIDATES, rounded to bfloat16 before codes are chosen; the first of equals wins.
    Errors and guarantees: `Codec.quantize`.
    """
    return quantize_groups(weight, group_size, ZERO, _search)


def dequantize(quantized: Quantized) -> Tensor:
    """float32 [N, K] = (code - 8) * scale."""
    return dequantize_groups(quantized, ZERO)


def _search(groups: Tensor, peaks: Tensor) -> tuple[Tensor, Tensor]:
    best = torch.full_like(peaks, torch.inf)
    chosen = torch.zeros_like(peaks)
    for candidate in CANDIDATES:
        scales = (peaks * candidate).bfloat16().float()
        error = tree_sum(_numbers(groups, scales).mul_(scales).sub_(groups).square_())
        chosen = torch.where(error < best, scales, chosen)
        best = torch.minimum(error, best)
    return _numbers(groups, chosen), chosen


def _numbers(groups: Tensor, scales: Tensor) -> Tensor:
    return (groups / scales).round_().clamp_(LEAST, MOST)
