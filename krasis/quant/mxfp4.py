"""MXFP4: e2m1 codes and one power of two for every 32 weights (OCP Microscaling Formats v1.0).

A code is a sign (bit 3) and a magnitude: 0, 0.5, 1, 1.5, 2, 3, 4, 6. A scale is an e8m0 byte, 2^(e - 127). Byte 0 means
zero here, so that `e << 23` is the float32 it stands for; 255 is NaN, and no scale.
"""

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.quant import int8
from krasis.quant.codec import Quantized
from krasis.quant.groups import Importance, check_weight, chunks, power_of_two, relative_importance

NAME = "mxfp4"
BITS = 4
ZERO = 0
QUANTIZED = True
GROUP = 32
GROUP_SIZES = (GROUP,)
SCALE_DTYPE = torch.uint8

NUMBERS = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=torch.int8)
"""Twice the value of every code: whole numbers."""

_VALUES = NUMBERS.float() / 2
_MINUS = 8
_NAN = 255
# Midpoints of neighbouring magnitudes. A tie goes to the even code: upwards where the code below is odd.
_BOUNDS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
_BOUNDS[1::2] = _BOUNDS[1::2].nextafter(torch.tensor(0.0))


def quantize(weight: Tensor, group_size: int, importance: Tensor | None = None) -> Quantized:
    """Float [N, K] -> codes uint8 [K, N] and e8m0 scales uint8 [K/32, N], least squared error of two exponents.

    They are OCP's floor(log2(peak)) - 2, which clamps a peak above 6, and the next one; the first of equals wins.
    Codes are the nearest, ties to even. `importance`, float32 [K], weighs every column's squared error. Errors and
    guarantees: `Codec.quantize`; the group size is 32.
    """
    if group_size != GROUP:
        raise InputError(f"mxfp4 with group size {group_size}", expected="32")
    n, k = check_weight(weight, GROUP)
    shares = relative_importance(importance, k, GROUP)
    codes = torch.empty(k, n, dtype=torch.uint8)
    scales = torch.empty(k // GROUP, n, dtype=torch.uint8)
    for chunk in chunks(n, k):
        groups = weight[chunk].float().t().contiguous().view(k // GROUP, GROUP, -1)
        found, exponents = _search(groups, shares)
        codes[:, chunk] = found.view(k, -1)
        scales[:, chunk] = exponents.squeeze(1)
    return Quantized(codes, scales)


def dequantize(quantized: Quantized) -> Tensor:
    """float32 [N, K] = e2m1 value * 2^(e - 127), 0 where e is 0."""
    k, n = quantized.codes.shape
    weight = torch.empty(n, k)
    for chunk in chunks(n, k):
        values = _values(quantized.codes[:, chunk]).view(k // GROUP, GROUP, -1)
        weight[chunk] = values.mul_(_powers(quantized.scales[:, chunk]).unsqueeze(1)).view(k, -1).t()
    return weight


def from_e8m0(codes: Tensor, scales: Tensor) -> Quantized:
    """A checkpoint's e2m1 codes uint8 [K, N] and e8m0 bytes uint8 [K/32, N], with -0 as 0 and zero groups of scale 0.

    Raises InputError for other dtypes or shapes, and for scales of NaN, of 2^-127 (byte 0, a subnormal) where codes are
    not zero, or with which a value overflows float32.
    """
    given = Quantized(codes, scales)
    if scales.dtype != torch.uint8 or given.group_size != GROUP:
        found = f"mxfp4 with {scales.dtype} scales in groups of {given.group_size}"
        raise InputError(found, expected="uint8 scales in groups of 32")
    codes = torch.where(codes == _MINUS, ZERO, codes)
    # Magnitudes rise with their codes, of which the sign is the highest bit.
    peaks = _values((codes % _MINUS).view(-1, GROUP, codes.shape[1]).amax(1))
    used = peaks > 0
    overflows = (peaks * _powers(scales)).isinf()
    unusable = (scales == _NAN) | overflows | (used & (scales == 0))
    if count := int(unusable.sum()):
        found = f"{count} of {scales.numel()} mxfp4 scales are NaN, or too small or large for their codes"
        raise InputError(found, expected="bytes 1 to 254 and finite weights")
    return Quantized(codes, scales * used)


def to_int8(quantized: Quantized) -> Quantized:
    """The same weights in INT8 in groups of 32: numbers are twice the e2m1 values, scales bfloat16 2^(e - 128).

    Raises InputError where a scale would be subnormal.
    """
    if count := int((quantized.scales == 1).sum()):
        raise InputError(f"{count} mxfp4 scales of 2^-126 have no INT8 form", expected="0, or 2^-125 and above")
    codes = NUMBERS[quantized.codes.int()].to(torch.int16) + int8.ZERO
    return Quantized(codes.to(torch.uint8), (_powers(quantized.scales) / 2).bfloat16())


def _values(codes: Tensor) -> Tensor:
    return _VALUES[codes.int()]


def _powers(scales: Tensor) -> Tensor:
    return (scales.int() << 23).view(torch.float32)


def _search(groups: Tensor, importance: Importance) -> tuple[Tensor, Tensor]:
    """float32 groups [G, 32, R] -> codes of that shape and scales [G, 1, R], both uint8."""
    unit, exponent = power_of_two(groups.abs().amax(1, keepdim=True))
    groups = groups / unit
    low, high = _nearest(groups * 4), _nearest(groups * 2)
    coarser = _error(high, groups, 1 / 2, importance) < _error(low, groups, 1 / 4, importance)
    # Below 2^-126 there is no scale: such a group is zero.
    exponent = (exponent - 2 + coarser).clamp_min(0)
    codes = torch.where(coarser, high, low).mul_(exponent > 0)
    return codes, exponent.to(torch.uint8).mul_((codes > 0).any(1, keepdim=True))


def _nearest(values: Tensor) -> Tensor:
    magnitudes = torch.bucketize(values.abs(), _BOUNDS, out_int32=True)
    return (magnitudes + _MINUS * ((values < 0) & (magnitudes > 0))).to(torch.uint8)


def _error(codes: Tensor, groups: Tensor, scale: float, importance: Importance) -> Tensor:
    """Even and odd k are summed apart, each by ascending k."""
    squares = _values(codes).mul_(scale).sub_(groups).square_()
    if importance is not None:
        squares.mul_(importance)
    total = squares[:, :2]
    for k in range(2, GROUP, 2):
        total += squares[:, k : k + 2]
    return total[:, :1] + total[:, 1:]
