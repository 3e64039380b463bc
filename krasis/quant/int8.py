"""INT8: 256 codes a weight, symmetric, the scale from the group's largest magnitude."""

import torch
from torch import Tensor

from krasis.quant.codec import Quantized
from krasis.quant.groups import Importance, dequantize_groups, quantize_groups

NAME = "int8"
BITS = 8
ZERO = 128
QUANTIZED = True
GROUP_SIZES = (32, 64, 128)
SCALE_DTYPE = torch.bfloat16


def quantize(weight: Tensor, group_size: int, importance: Tensor | None = None) -> Quantized:
    """Float [N, K] -> codes uint8 [K, N] and bfloat16 scales [K/g, N], scale = max|w| / 127 rounded to nearest.

    Number = w * (1 / scale), the product rounded once. `importance` changes nothing here. Errors and guarantees:
    `Codec.quantize`.
    """
    return quantize_groups(weight, group_size, ZERO, _absmax, importance)


def dequantize(quantized: Quantized) -> Tensor:
    """float32 [N, K] = (code - 128) * scale."""
    return dequantize_groups(quantized, ZERO)


def _absmax(groups: Tensor, peaks: Tensor, _: Importance) -> tuple[Tensor, Tensor]:
    scales = (peaks.abs() / 127).bfloat16().float()
    # Rounding moves a scale by at most 1/256, so a peak stays under 127.5 steps and no code is ever clamped.
    # The product of two float32 is exact in float64.
    return (groups.double() * (1 / scales).double()).round_().float(), scales
