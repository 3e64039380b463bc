"""INT4: 16 codes a weight, one scale of either sign a group, chosen by search."""

import torch
from torch import Tensor

from krasis.quant.codec import Quantized
from krasis.quant.groups import Importance, dequantize_groups, quantize_groups

NAME = "int4"
BITS = 4
ZERO = 8
QUANTIZED = True
GROUP_SIZES = (32, 64, 128)
SCALE_DTYPE = torch.bfloat16

LEAST, MOST = -8, 7
MULTIPLIERS = tuple(range(20, 28))
"""Candidate scales are peak / -(m / 2.75): the peak goes to the side of -8, the one number without an opposite."""

_PEAK = 2.0**15 / 2.75
_PARTS = 4095


def quantize(weight: Tensor, group_size: int, importance: Tensor | None = None) -> Quantized:
    """Float [N, K] -> codes uint8 [K, N] and bfloat16 scales [K/g, N], of 8 candidates the one whose codes fit best.

    Works in whole numbers: formats/codecs.md. `importance`, float32 [K], weighs every column's squared error. Errors
    and guarantees: `Codec.quantize`.
    """
    return quantize_groups(weight, group_size, ZERO, _search, importance)


def dequantize(quantized: Quantized) -> Tensor:
    """float32 [N, K] = (code - 8) * scale."""
    return dequantize_groups(quantized, ZERO)


def _search(groups: Tensor, peaks: Tensor, importance: Importance) -> tuple[Tensor, Tensor]:
    factors = torch.tensor(-_PEAK) / peaks
    whole = (groups * factors).round().int()
    values, parts, unit = whole, torch.ones(1, dtype=torch.int32), 1
    if importance is not None:
        # Five bits less of the weights make room for twelve of the importance.
        values, parts, unit = _times(whole, 1024), (importance * _PARTS).round().clamp_min(1).int(), 32
    best_a, best_b = torch.zeros_like(peaks), torch.ones_like(peaks)
    for multiplier in MULTIPLIERS:
        numbers = _times(whole, multiplier).clamp(LEAST, MOST)
        a = (values * numbers * parts).sum(1, keepdim=True).float()
        b = (numbers * numbers * parts).sum(1, keepdim=True).float()
        # Of these codes the best scale is a / b, and it leaves sum w^2 - a^2 / b.
        better = a.square() * best_b > best_a.square() * b
        best_a, best_b = torch.where(better, a, best_a), torch.where(better, b, best_b)
    scales = (best_a / best_b * unit / factors).bfloat16().float()
    # Quotients in 2^-9, then rounded.
    multipliers = (2.0**24 / (scales * factors)).clamp(-32767, 32767).round().int()
    numbers = _times(_times(whole, multipliers), 64).clamp(LEAST, MOST)
    return numbers.float(), scales


def _times(whole: Tensor, factor: Tensor | int) -> Tensor:
    """Times factor / 2^15, to the nearest integer, ties upwards."""
    return (whole * factor + 0x4000) >> 15
