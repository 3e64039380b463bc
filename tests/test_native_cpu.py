"""Native kernels against NumPy, bit for bit: codec x layout x instruction set x group x ragged shape x m x threads."""

from dataclasses import dataclass
from functools import cache
from itertools import product

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
LEAST_AND_MOST = {"int4": (0, 15), "int8": (0, 255), "mxfp4": (15, 7)}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
ISAS = [isa for isa in cpu.ISAS if cpu.ISAS.index(isa) <= cpu.ISAS.index(cpu.best_isa())]
ISAS = [*cpu.EMULATED, *ISAS]
LAYOUTS = ("cpu", "marlin")
TOKENS = (1, 2, 3, 7, 9, 33)
# K, N, k_in, n_out: whole; a single group; every kind of ragged end.
SHAPES = [
    (128, 64, 128, 64),
    (256, 192, 256, 192),
    (64, 128, 64, 128),
    (384, 128, 333, 101),
    (256, 128, 97, 17),
    (128, 192, 1, 1),
]
CODECS_IN_GROUPS = [(codec, group) for codec in CODECS for group in GROUPS[codec]]
CASES = [(*case, shape) for case, shape in product(CODECS_IN_GROUPS, SHAPES) if shape[0] % case[1] == 0]
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


def plain_reference(x: F32, weights: F32) -> F32:
    """x [m, K] times weights [N, K] transposed, with 32 sums each."""
    steps = -(-weights.shape[1] // 32)
    x, weights = (np.pad(a, ((0, 0), (0, 32 * steps - a.shape[1]))) for a in (x, weights))
    sums = np.zeros((len(x), len(weights), 32), np.float32)
    for i in range(steps):
        part = slice(32 * i, 32 * i + 32)
        sums = fma(x[:, None, part], weights[None, :, part], sums)
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


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


@every_isa
@every_layout
@pytest.mark.parametrize(("codec", "group", "shape"), CASES, ids=str)
def test_matmul(codec: str, layout: str, isa: str, group: int, shape: tuple[int, int, int, int]) -> None:
    k, n, k_in, n_out = shape
    rng = np.random.default_rng(k + n + group)
    weights, x = random_weights(rng, codec, k, n, group), random_x(rng, max(TOKENS), k_in)
    matrix, expected = weights.packed(layout), reference(x, weights)[:, :n_out]
    for m, threads in product(TOKENS, (1, 2)):
        assert_same(pool(threads, isa).matmul(matrix, torch.from_numpy(x[:m]), n_out), expected[:m])


@every_isa
@every_codec
def test_matmul_of_an_experts_size(codec: str, isa: str) -> None:
    k, n = 2048, 1536
    rng = np.random.default_rng(0)
    weights, x = random_weights(rng, codec, k, n, GROUPS[codec][-1]), random_x(rng, 2, k)
    expected = reference(x, weights)
    for layout, threads in product(LAYOUTS, (1, 2, 5)):
        assert_same(pool(threads, isa).matmul(weights.packed(layout), torch.from_numpy(x)), expected)


@every_isa
@every_layout
@pytest.mark.parametrize(("codec", "group"), CODECS_IN_GROUPS)
def test_extremes_do_not_overflow(codec: str, layout: str, isa: str, group: int) -> None:
    """Every code at its least or greatest, every activation at +-127."""
    k, n, m = 256, 128, 4
    signs = np.where(np.random.default_rng(1).random((1, k)) < 0.5, 1, -1)
    x = np.concatenate([np.ones((1, k)), -np.ones((1, k)), signs, -signs]).astype(np.float32)
    scales = stored_scales(codec, np.ones((k // group, n), np.float32))
    least, most = LEAST_AND_MOST[codec]
    towards, against = (np.where(signs.T * sign > 0, most, least).repeat(n, 1) for sign in (1, -1))
    for codes in (np.full((k, n), least), np.full((k, n), most), towards, against):
        weights = Weights(codec, codes.astype(np.uint8), scales)
        matrix, expected = weights.packed(layout), reference(x, weights)
        assert_same(pool(1, isa).matmul(matrix, torch.from_numpy(x)), expected)
        for token in range(m):
            assert_same(
                pool(1, isa).matmul(matrix, torch.from_numpy(x[token : token + 1])), expected[token : token + 1]
            )


@every_isa
@every_layout
@every_codec
def test_magnitudes_at_the_ends_of_float32(codec: str, layout: str, isa: str) -> None:
    """Zeros, subnormals, the threshold, halves that round to even, and the largest numbers."""
    k, n, group = 256, 128, 32
    rng = np.random.default_rng(2)
    weights = random_weights(rng, codec, k, n, group, 2e-5)
    x = rng.integers(-127, 128, (1, k)).astype(np.float32) + np.float32(0.5)
    for g, top in enumerate([0, 1e-45, 2.0**-101, 2.0**-100, 127, 3.4e38, -0.0, 1e-30]):
        x[0, g * group : (g + 1) * group] *= np.float32(top) / 127 if top != 127 else 1
        x[0, g * group] = top
    expected = reference(x, weights)
    assert np.isfinite(expected).all()
    assert_same(pool(2, isa).matmul(weights.packed(layout), torch.from_numpy(x)), expected)


@every_isa
@every_layout
@pytest.mark.parametrize("exponent", [-20, 0, 40])
def test_every_mxfp4_scale(layout: str, isa: str, exponent: int) -> None:
    """From zero, over those that give subnormal products with the smallest x, to 2^127 or just short of infinity."""
    k, n = 128, 256
    rng = np.random.default_rng(8)
    weights = random_weights(rng, "mxfp4", k, n, 32)
    weights.scales[:] = torch.arange(n).clamp(max=254 - 20 - exponent)
    x = rng.standard_normal((1, k), dtype=np.float32) * np.float32(2.0**exponent)
    expected = reference(x, weights)
    assert np.isfinite(expected).all()
    assert_same(pool(1, isa).matmul(weights.packed(layout), torch.from_numpy(x)), expected)


@every_isa
@every_layout
@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_own_token_only(codec: str, layout: str, isa: str, bad: float) -> None:
    k, n, group = 128, 128, GROUPS[codec][0]
    rng = np.random.default_rng(3)
    weights, x = random_weights(rng, codec, k, n, group), random_x(rng, 5, k)
    expected = reference(x, weights)
    x[3, 70] = bad
    found = pool(1, isa).matmul(weights.packed(layout), torch.from_numpy(x)).numpy()
    assert np.isnan(found[3]).all()
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(expected, 3, 0))


@every_isa
@pytest.mark.parametrize(
    ("k", "n", "k_in", "n_out"), [(64, 8, 64, 8), (1, 1, 1, 1), (77, 5, 77, 3), (200, 31, 129, 31)]
)
def test_bf16(k: int, n: int, k_in: int, n_out: int, isa: str) -> None:
    rng = np.random.default_rng(k)
    weights, x = bf16(rng.standard_normal((n, k), dtype=np.float32)), random_x(rng, max(TOKENS), k_in)
    matrix = Matrix("bf16", "plain", k, n, 0, weights)
    padded = np.pad(x, ((0, 0), (0, k - k_in)))
    expected = plain_reference(padded, weights.float().numpy())[:, :n_out]
    for m, threads in product(TOKENS, (1, 2)):
        assert_same(pool(threads, isa).matmul(matrix, torch.from_numpy(x[:m]), n_out), expected[:m])


@every_isa
def test_batch_equals_one_by_one(isa: str) -> None:
    """Jobs of different codecs, layouts, shapes and token counts, some sharing x, more and fewer than threads."""
    rng = np.random.default_rng(4)
    jobs: list[tuple[Matrix, torch.Tensor, int]] = []
    for k, n in ((128, 128), (256, 192)):
        x = torch.from_numpy(random_x(rng, 3, k))
        for (codec, group), layout in product(CODECS_IN_GROUPS, LAYOUTS):
            matrix = random_weights(rng, codec, k, n, group).packed(layout)
            jobs.append((matrix, x[:2] if layout == "cpu" else x, n - 3))
        plain = bf16(rng.standard_normal((n, k), dtype=np.float32))
        jobs.append((Matrix("bf16", "plain", k, n, 0, plain), x, n))
    expected = [pool(1, isa).matmul(*job) for job in jobs]
    for threads, some in product((1, 2, 7), (jobs, jobs[::-1], jobs[:1], jobs[:3], [])):
        found = pool(threads, isa).matmul_batch(some)
        wanted = [expected[jobs.index(job)] for job in some]
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_many_tokens_are_quantized_by_all_threads() -> None:
    k, n, group, m = 512, 64, 128, 300
    rng = np.random.default_rng(5)
    weights, x = random_weights(rng, "int8", k, n, group), random_x(rng, m, k)
    assert_same(pool(2, ISAS[-1]).matmul(weights.packed("cpu"), torch.from_numpy(x)), reference(x, weights))
