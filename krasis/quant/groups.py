"""Quantization in groups along k, whatever the codec does with a group."""

from collections.abc import Callable

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.quant.codec import Quantized

Choose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(groups [G, g, R], peaks [G, 1, R]) -> (whole numbers [G, g, R], scales [G, 1, R] exact in bfloat16), all float32.

A peak is the value of largest magnitude, sign kept. Groups come scaled by a power of two so that 1 <= |peak| < 2 and
no square overflows or vanishes.
"""

_CHUNK = 1 << 19
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
_EXPONENT = 0x7F80_0000
# Rounding up a scale for a larger weight would let a dequantized value overflow.
_LIMIT = 2.0**127


def quantize_groups(weight: Tensor, group_size: int, zero: int, choose: Choose) -> Quantized:
    """`Codec.quantize` with the numbers and scales that `choose` picks and the offset `zero`."""
    n, k = check_weight(weight, group_size)
    group_size = k if group_size == -1 else group_size
    codes = torch.empty(k, n, dtype=torch.uint8)
    scales = torch.empty(k // group_size, n, dtype=torch.bfloat16)
    for chunk in chunks(n, k):
        groups = weight[chunk].float().t().contiguous().view(k // group_size, group_size, -1)
        numbers, chosen = _normalized(groups, choose)
        codes[:, chunk] = numbers.add_(zero).view(k, -1)
        scales[:, chunk] = chosen.squeeze(1)
    return Quantized(codes, scales)


def dequantize_groups(quantized: Quantized, zero: int) -> Tensor:
    """`Codec.dequantize` with the offset `zero`."""
    k, n = quantized.codes.shape
    numbers = quantized.codes.float().sub_(zero).view(-1, quantized.group_size, n)
    return numbers.mul_(quantized.scales.float().unsqueeze(1)).view(k, n).t().contiguous()


def _normalized(groups: Tensor, choose: Choose) -> tuple[Tensor, Tensor]:
    high, low = groups.amax(1, keepdim=True), groups.amin(1, keepdim=True)
    peaks = torch.where(high >= -low, high, low)
    unit, _ = power_of_two(peaks)
    peaks = torch.where(peaks.abs() < unit, unit, peaks)
    numbers, scales = choose(groups / unit, peaks / unit)
    scales = scales * unit
    # A subnormal scale has few bits, and kernels may flush it: such a group is zero.
    normal = scales.abs() >= _SMALLEST_NORMAL
    return numbers.mul_(normal), scales.mul_(normal)


def power_of_two(values: Tensor) -> tuple[Tensor, Tensor]:
    """The power of two at or below each magnitude, at least 2^-126: as float32, and its exponent + 127 as int32."""
    unit = (values.view(torch.int32) & _EXPONENT).view(torch.float32).clamp_min(_SMALLEST_NORMAL)
    return unit, unit.view(torch.int32) >> 23


def check_weight(weight: Tensor, group_size: int) -> tuple[int, int]:
    """(N, K) of a float matrix in whole groups of usable numbers. Raises InputError where it is not one."""
    if weight.ndim != 2 or not weight.is_floating_point() or not weight.numel():
        raise InputError(f"a weight of {weight.dtype} {tuple(weight.shape)}", expected="a float matrix")
    n, k = weight.shape
    if group_size != -1 and (group_size < 1 or k % group_size):
        raise InputError(f"K = {k} with group size {group_size}", expected="whole groups, or -1 for one")
    _refuse_unusable(weight)
    return n, k


def _refuse_unusable(weight: Tensor) -> None:
    # Written so that a NaN counts too.
    count = sum(int((~(weight[chunk].float().abs() < _LIMIT)).sum()) for chunk in chunks(*weight.shape))
    if count:
        what = f"{count} of {weight.numel()} weights are NaN, infinite or beyond 2^127"
        raise InputError(what, expected="finite weights")


def chunks(n: int, k: int) -> list[slice]:
    """Rows at a time, so that temporaries stay in cache whatever the matrix."""
    rows = max(16, _CHUNK // k)
    return [slice(start, start + rows) for start in range(0, n, rows)]
