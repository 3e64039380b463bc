"""What the module of a codec provides, and how far a quantized matrix is from its weights."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from krasis.errors import InputError
from krasis.quant.treesum import tree_sum

_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Quantized:
    """A matrix as codes uint8 [K, N] and scales [K/g, N], bfloat16 or whatever its codec's SCALE_DTYPE is.

    Raises InputError where dtypes or shapes are not so.
    """

    codes: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        found = f"{self.codes.dtype} {tuple(self.codes.shape)}, {self.scales.dtype} {tuple(self.scales.shape)}"
        expected = "codes uint8 [K, N] and scales bfloat16 or uint8 [K/g, N]"
        if self.codes.dtype != torch.uint8 or self.scales.dtype not in (torch.bfloat16, torch.uint8):
            raise InputError(f"codes and scales are {found}", expected=expected)
        if self.codes.ndim != 2 or self.scales.ndim != 2 or self.codes.shape[1] != self.scales.shape[1]:
            raise InputError(f"codes and scales are {found}", expected=expected)
        if not len(self.scales) or len(self.codes) % len(self.scales):
            raise InputError(f"codes and scales are {found}", expected=expected)

    @property
    def group_size(self) -> int:
        """g: how many consecutive k share a scale. K where the matrix is one group."""
        return len(self.codes) // len(self.scales)


class Codec(Protocol):
    """A codec with QUANTIZED has ZERO, the code of a zero weight, GROUP_SIZES and SCALE_DTYPE of what packs store,
    `quantize` and `dequantize`; one without has DTYPE, `encode` and `decode`.
    """

    NAME: str
    BITS: int
    QUANTIZED: bool
    ZERO: int
    GROUP_SIZES: tuple[int, ...]
    SCALE_DTYPE: torch.dtype
    DTYPE: torch.dtype

    def quantize(self, weight: Tensor, group_size: int, importance: Tensor | None = None) -> Quantized:
        """Float [N, K] -> codes and scales, in groups along K. INT4 and INT8 take any size, and -1 for one group.

        `importance`, float32 [K], finite and not negative, weighs the squared error of every column where a codec has
        a choice.

        A zero weight has the code ZERO, a zero group the scale 0, and every other scale is a normal number. The same
        bytes come out for any number of threads. Raises InputError where the weight is not a float matrix, the codec
        does not take the group size, K is not a multiple of it, or a value is NaN, infinite or beyond 2^127.
        """

    def dequantize(self, quantized: Quantized) -> Tensor:
        """float32 [N, K]."""

    def encode(self, tensor: Tensor) -> Tensor:
        """Float of any shape -> DTYPE. Raises InputError for another dtype and for values not finite in DTYPE."""

    def decode(self, tensor: Tensor) -> Tensor:
        """DTYPE -> float32 of the same shape."""


def relative_rms(weight: Tensor, approx: Tensor) -> float:
    """||weight - approx|| / ||weight||, 0 where the weight is all zero. Raises InputError where shapes differ."""
    error, energy = squares(weight, approx)
    return math.sqrt(error / energy) if energy else 0.0


def squares(weight: Tensor, approx: Tensor) -> tuple[float, float]:
    """Sums of squares of the error and of the weight. Raises InputError where shapes differ."""
    if weight.shape != approx.shape:
        raise InputError(f"shapes {tuple(weight.shape)} and {tuple(approx.shape)}", expected="one shape")
    error = energy = 0.0
    for exact, near in zip(_chunks(weight), _chunks(approx), strict=True):
        energy += _squares(exact.double())
        error += _squares(exact.double() - near.double())
    return error, energy


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    return (flat[start : start + _CHUNK] for start in range(0, len(flat), _CHUNK))


def _squares(values: Tensor) -> float:
    return tree_sum(values.square().view(1, -1, 1)).item()
