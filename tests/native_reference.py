"""What native products are held to, in NumPy, and what is made to try them on."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from krasis import layout as layouts
from krasis import quant
from krasis.native import cpu
from krasis.native.cpu import Matrix, Pool

F32 = NDArray[np.float32]
CODECS = ("int4", "int8", "mxfp4")
GROUPS = {name: quant.get(name).GROUP_SIZES for name in CODECS}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
ISAS = [isa for isa in cpu.ISAS if cpu.ISAS.index(isa) <= cpu.ISAS.index(cpu.best_isa())]
ISAS = [*cpu.EMULATED, *ISAS]
LAYOUTS = ("cpu", "marlin")
CODECS_IN_GROUPS = [(codec, group) for codec in CODECS for group in GROUPS[codec]]
every_isa = pytest.mark.parametrize("isa", ISAS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_codec = pytest.mark.parametrize("codec", CODECS)


@cache
def pool(threads: int, isa: str) -> Pool:
    return Pool(threads, isa)


def fma(a: F32, b: F32, c: F32) -> F32:
    """a * b + c rounded once: exact in double but for the last sum, which is rounded to odd and so survives a second
    rounding."""
    product = a.astype(np.float64) * b.astype(np.float64)
    total = product + c
    rest = total - product
    error = (product - (total - rest)) + (c - rest)
    bits = total.view(np.int64)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where((error != 0) & (bits % 2 == 0), bits + towards, bits)
    return odd.view(np.float64).astype(np.float32)


def quantize(x: F32, group: int) -> tuple[NDArray[np.int64], F32]:
    """[m, K] -> integers [m, K/g, g] and scales [m, K/g]."""
    groups = x.reshape(len(x), -1, group)
    largest = np.abs(groups).max(-1)
    usable = largest >= np.float32(2.0**-100)
    inverse = np.where(usable, np.float32(127) / np.where(usable, largest, 1), np.float32(0)).astype(np.float32)
    scale = np.where(usable, largest / np.float32(127), np.float32(0)).astype(np.float32)
    return np.rint(groups * inverse[..., None]).astype(np.int64), scale


@dataclass
class Weights:
    """Codes uint8 [K, N] and scales [K/g, N] as the codec stores them."""

    codec: str
    codes: NDArray[np.uint8]
    scales: torch.Tensor

    @property
    def group(self) -> int:
        return len(self.codes) // len(self.scales)

    def numbers(self) -> NDArray[np.int64]:
        if self.codec == "mxfp4":
            return (2 * E2M1[self.codes]).astype(np.int64)
        return self.codes.astype(np.int64) - quant.get(self.codec).ZERO

    def steps(self) -> F32:
        """What a number counts."""
        if self.codec == "mxfp4":
            exponents = self.scales.numpy().astype(np.float32)
            return np.where(exponents, 2 ** (exponents - 127) / 2, 0).astype(np.float32)
        return self.scales.float().numpy()

    def packed(self, layout: str) -> Matrix:
        order, (k, n), codec = layouts.get(layout), self.codes.shape, quant.get(self.codec)
        codes, scales = order.pack(self.codes, codec.BITS), order.pack_scales(self.scales, k, self.group)
        return Matrix(self.codec, layout, k, n, self.group, torch.from_numpy(codes), scales)


def reference(x: F32, weights: Weights) -> F32:
    """x [m, K] times the weights, in the order that krasis.h states."""
    k, n = weights.codes.shape
    padded = np.zeros((len(x), k), np.float32)
    padded[:, : x.shape[1]] = x
    q, x_scale = quantize(padded, weights.group)
    numbers, steps = weights.numbers().reshape(-1, weights.group, n), weights.steps()
    y = np.zeros((len(x), n), np.float32)
    for g in range(len(numbers)):
        dot = (q[:, g] @ numbers[g]).astype(np.float32)
        y = fma(dot, steps[g] * x_scale[:, g, None], y)
    return y


def bf16(values: F32) -> torch.Tensor:
    return torch.from_numpy(values).to(torch.bfloat16)


def stored_scales(codec: str, scales: F32) -> torch.Tensor:
    """As bf16, or of MXFP4 the powers of two at or below the magnitudes as e8m0."""
    if codec == "mxfp4":
        return torch.from_numpy((np.abs(scales).view(np.uint32) >> 23).astype(np.uint8))
    return bf16(scales)


def random_weights(rng: np.random.Generator, codec: str, k: int, n: int, group: int, size: float = 0.02) -> Weights:
    """Every code; scales of both signs where the codec has them, some of them zero."""
    scales = rng.normal(0, size, (k // group, n)).astype(np.float32)
    scales[rng.random(scales.shape) < 0.05] = 0
    codes = rng.integers(0, 1 << quant.get(codec).BITS, (k, n), dtype=np.uint8)
    return Weights(codec, codes, stored_scales(codec, scales))


def random_x(rng: np.random.Generator, m: int, k: int) -> F32:
    return rng.standard_normal((m, k), dtype=np.float32) * np.exp(rng.normal(0, 3, (m, 1))).astype(np.float32)


def assert_same(found: torch.Tensor, expected: F32) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.numpy().view(np.int32), expected.view(np.int32))
