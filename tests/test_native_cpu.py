"""Native kernels against NumPy, bit for bit: codec x layout x instruction set x group x ragged shape x m x threads."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from krasis import layout as layouts
from krasis.native import cpu
from krasis.native.cpu import Matrix, Pool

F32 = NDArray[np.float32]
BITS = {"int4": 4, "int8": 8}
ISAS = [isa for isa in cpu.ISAS if cpu.ISAS.index(isa) <= cpu.ISAS.index(cpu.best_isa())]
LAYOUTS = ("cpu", "marlin")
GROUPS = (32, 64, 128)
TOKENS = (1, 2, 3, 7, 33)
# K, N, k_in, n_out: whole; a single group; every kind of ragged end.
SHAPES = [
    (128, 64, 128, 64),
    (256, 192, 256, 192),
    (64, 128, 64, 128),
    (384, 128, 333, 101),
    (256, 128, 97, 17),
    (128, 192, 1, 1),
]
CASES = [(shape, group) for shape in SHAPES for group in GROUPS if shape[0] % group == 0]


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


def reference(x: F32, codes: NDArray[np.uint8], scales: F32, bits: int, group: int) -> F32:
    """x [m, K] times (codes [K, N] - zero) * scales [K/g, N], in the order that krasis.h states."""
    k, n = codes.shape
    padded = np.zeros((len(x), k), np.float32)
    padded[:, : x.shape[1]] = x
    q, x_scale = quantize(padded, group)
    weights = (codes.astype(np.int64) - (1 << bits - 1)).reshape(-1, group, n)
    y = np.zeros((len(x), n), np.float32)
    for g in range(k // group):
        dot = (q[:, g] @ weights[g]).astype(np.float32)
        y = fma(dot, scales[g] * x_scale[:, g, None], y)
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


def packed(codec: str, layout: str, codes: NDArray[np.uint8], scales: F32, group: int) -> Matrix:
    order, (k, n) = layouts.get(layout), codes.shape
    stored = order.pack_scales(bf16(scales), k, group)
    return Matrix(codec, layout, k, n, group, torch.from_numpy(order.pack(codes, BITS[codec])), stored)


def random_codes(rng: np.random.Generator, codec: str, k: int, n: int) -> NDArray[np.uint8]:
    return rng.integers(0, 1 << BITS[codec], (k, n), dtype=np.uint8)


def random_scales(rng: np.random.Generator, k: int, n: int, group: int) -> F32:
    """Signed, some of them zero, as bf16 stores them."""
    scales = rng.normal(0, 0.02, (k // group, n)).astype(np.float32)
    scales[rng.random(scales.shape) < 0.05] = 0
    return bf16(scales).float().numpy()


def random_x(rng: np.random.Generator, m: int, k: int) -> F32:
    return rng.standard_normal((m, k), dtype=np.float32) * np.exp(rng.normal(0, 3, (m, 1))).astype(np.float32)


def assert_same(found: torch.Tensor, expected: F32) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.numpy().view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", BITS)
@pytest.mark.parametrize(("shape", "group"), CASES, ids=str)
def test_matmul(codec: str, layout: str, isa: str, group: int, shape: tuple[int, int, int, int]) -> None:
    k, n, k_in, n_out = shape
    rng = np.random.default_rng(k + n + group)
    codes, scales = random_codes(rng, codec, k, n), random_scales(rng, k, n, group)
    matrix, x = packed(codec, layout, codes, scales, group), random_x(rng, max(TOKENS), k_in)
    expected = reference(x, codes, scales, BITS[codec], group)[:, :n_out]
    for m, threads in product(TOKENS, (1, 2)):
        assert_same(pool(threads, isa).matmul(matrix, torch.from_numpy(x[:m]), n_out), expected[:m])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", BITS)
def test_matmul_of_an_experts_size(codec: str, isa: str) -> None:
    k, n, group = 2048, 1536, 128
    rng = np.random.default_rng(0)
    codes, scales, x = random_codes(rng, codec, k, n), random_scales(rng, k, n, group), random_x(rng, 2, k)
    expected = reference(x, codes, scales, BITS[codec], group)
    for layout, threads in product(LAYOUTS, (1, 2, 5)):
        matrix = packed(codec, layout, codes, scales, group)
        assert_same(pool(threads, isa).matmul(matrix, torch.from_numpy(x)), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_extremes_do_not_overflow(codec: str, layout: str, isa: str, group: int) -> None:
    """Every code at its least or greatest, every activation at +-127."""
    k, n, m = 256, 128, 4
    signs = np.where(np.random.default_rng(1).random((1, k)) < 0.5, 1, -1)
    x = np.concatenate([np.ones((1, k)), -np.ones((1, k)), signs, -signs]).astype(np.float32)
    scales = np.ones((k // group, n), np.float32)
    most = (1 << BITS[codec]) - 1
    opposed = np.where(signs.T > 0, most, 0).repeat(n, 1)
    for codes in (np.zeros((k, n)), np.full((k, n), most), opposed, most - opposed):
        matrix = packed(codec, layout, codes.astype(np.uint8), scales, group)
        expected = reference(x, codes.astype(np.uint8), scales, BITS[codec], group)
        assert_same(pool(1, isa).matmul(matrix, torch.from_numpy(x)), expected)
        for token in range(m):
            assert_same(
                pool(1, isa).matmul(matrix, torch.from_numpy(x[token : token + 1])), expected[token : token + 1]
            )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", BITS)
def test_magnitudes_at_the_ends_of_float32(codec: str, layout: str, isa: str) -> None:
    """Zeros, subnormals, the threshold, halves that round to even, and the largest numbers."""
    k, n, group = 256, 128, 32
    rng = np.random.default_rng(2)
    codes, scales = random_codes(rng, codec, k, n), random_scales(rng, k, n, group) / 1024
    x = rng.integers(-127, 128, (1, k)).astype(np.float32) + np.float32(0.5)
    for g, top in enumerate([0, 1e-45, 2.0**-101, 2.0**-100, 127, 3.4e38, -0.0, 1e-30]):
        x[0, g * group : (g + 1) * group] *= np.float32(top) / 127 if top != 127 else 1
        x[0, g * group] = top
    expected = reference(x, codes, scales, BITS[codec], group)
    assert np.isfinite(expected).all()
    assert_same(pool(2, isa).matmul(packed(codec, layout, codes, scales, group), torch.from_numpy(x)), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", BITS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_own_token_only(codec: str, layout: str, isa: str, bad: float) -> None:
    k, n, group = 128, 128, 64
    rng = np.random.default_rng(3)
    codes, scales, x = random_codes(rng, codec, k, n), random_scales(rng, k, n, group), random_x(rng, 5, k)
    expected = reference(x, codes, scales, BITS[codec], group)
    x[3, 70] = bad
    found = pool(1, isa).matmul(packed(codec, layout, codes, scales, group), torch.from_numpy(x)).numpy()
    assert np.isnan(found[3]).all()
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(expected, 3, 0))


@pytest.mark.parametrize("isa", ISAS)
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


@pytest.mark.parametrize("isa", ISAS)
def test_batch_equals_one_by_one(isa: str) -> None:
    """Jobs of different codecs, layouts, shapes and token counts, some sharing x, more and fewer than threads."""
    rng = np.random.default_rng(4)
    jobs: list[tuple[Matrix, torch.Tensor, int]] = []
    for k, n in ((128, 128), (256, 192)):
        x = torch.from_numpy(random_x(rng, 3, k))
        for codec, layout, group in product(BITS, LAYOUTS, (64, 128)):
            codes, scales = random_codes(rng, codec, k, n), random_scales(rng, k, n, group)
            jobs.append((packed(codec, layout, codes, scales, group), x[:2] if layout == "cpu" else x, n - 3))
        weights = bf16(rng.standard_normal((n, k), dtype=np.float32))
        jobs.append((Matrix("bf16", "plain", k, n, 0, weights), x, n))
    expected = [pool(1, isa).matmul(*job) for job in jobs]
    for threads, some in product((1, 2, 7), (jobs, jobs[::-1], jobs[:1], jobs[:3], [])):
        found = pool(threads, isa).matmul_batch(some)
        wanted = [expected[jobs.index(job)] for job in some]
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_many_tokens_are_quantized_by_all_threads() -> None:
    k, n, group, m = 512, 64, 128, 300
    rng = np.random.default_rng(5)
    codes, scales, x = random_codes(rng, "int8", k, n), random_scales(rng, k, n, group), random_x(rng, m, k)
    matrix = packed("int8", "cpu", codes, scales, group)
    assert_same(pool(2, ISAS[-1]).matmul(matrix, torch.from_numpy(x)), reference(x, codes, scales, 8, group))
