"""Quantization in groups along k, whatever the codec does with a group."""

from collections.abc import Callable

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.quant.codec import Quantized

Importance = Tensor | None
"""float32 [G, g, 1], of every group relative to its largest, or None where all weights count alike."""

Choose = Callable[[Tensor, Tensor, Importance], tuple[Tensor, Tensor]]
"""(groups [G, g, R], peaks [G, 1, R], importance) -> (whole numbers [G, g, R], scales [G, 1, R] exact in bfloat16), all
float32.

A peak is the value of largest magnitude, sign kept. Groups come scaled by a power of two so that 1 <= |peak| < 2 and
no square overflows or vanishes. Of a group that counts as zero all values are 0 and the peak is 1.
"""

_CHUNK = 1 << 19
# Reciprocals of scales stay far inside float32.
_LEAST_PEAK = 2.0**-100
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
_EXPONENT = 0x7F80_0000
# Rounding up a scale for a larger weight would let a dequantized value overflow.
_LIMIT = 2.0**127


def quantize_groups(weight: Tensor, group_size: int, zero: int, choose: Choose, importance: Tensor | None) -> Quantized:
    """`Codec.quantize` with the numbers and scales that `choose` picks and the offset `zero`."""
    n, k = check_weight(weight, group_size)
    group_size = k if group_size == -1 else group_size
    shares = relative_importance(importance, k, group_size)
    codes = torch.empty(k, n, dtype=torch.uint8)
    scales = torch.empty(k // group_size, n, dtype=torch.bfloat16)
    for chunk in chunks(n, k):
        groups = weight[chunk].float().t().contiguous().view(k // group_size, group_size, -1)
        numbers, chosen = _normalized(groups, choose, shares)
        codes[:, chunk] = numbers.add_(zero).view(k, -1)
        scales[:, chunk] = chosen.squeeze(1)
    return Quantized(codes, scales)


def dequantize_groups(quantized: Quantized, zero: int) -> Tensor:
    """`Codec.dequantize` with the offset `zero`."""
    k, n = quantized.codes.shape
    numbers = quantized.codes.float().sub_(zero).view(-1, quantized.group_size, n)
    return numbers.mul_(quantized.scales.float().unsqueeze(1)).view(k, n).t().contiguous()


def _normalized(groups: Tensor, choose: Choose, importance: Importance) -> tuple[Tensor, Tensor]:
    high, low = groups.amax(1, keepdim=True), groups.amin(1, keepdim=True)
    peaks = torch.where(high >= -low, high, low)
    unit, _ = power_of_two(peaks)
    used = peaks.abs() >= _LEAST_PEAK
    groups, peaks = torch.where(used, groups / unit, 0.0), torch.where(used, peaks / unit, 1.0)
    numbers, scales = choose(groups, peaks, importance)
    return numbers, scales.mul_(unit).mul_(used)


def relative_importance(importance: Tensor | None, k: int, group_size: int) -> Importance:
    """Importance [K] as codecs want it. Raises InputError where it is not float32 [K], finite and not negative."""
    if importance is None:
        return None
    if importance.dtype != torch.float32 or importance.shape != (k,):
        found = f"importance is {importance.dtype} {tuple(importance.shape)}"
        raise InputError(found, expected=f"float32 ({k},)")
    if not bool(((importance >= 0) & importance.isfinite()).all()):
        raise InputError("importance has values that are negative or not finite", expected="0 and above")
    groups = importance.view(-1, group_size, 1)
    largest = groups.amax(1, keepdim=True)
    # Without any importance all are equal.
    return torch.where(largest > 0, groups / largest, 1.0)


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
