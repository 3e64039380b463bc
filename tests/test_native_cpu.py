"""Native kernels against NumPy, bit for bit: codec x layout x instruction set x group x ragged shape x m x threads."""

from itertools import product

import numpy as np
import pytest
import torch
from native_reference import (
    CODECS_IN_GROUPS,
    F32,
    GROUPS,
    ISAS,
    LAYOUTS,
    Weights,
    assert_same,
    bf16,
    every_codec,
    every_isa,
    every_layout,
    fma,
    pool,
    random_weights,
    random_x,
    reference,
    stored_scales,
)

from krasis.native.cpu import Matrix

LEAST_AND_MOST = {"int4": (0, 15), "int8": (0, 255), "mxfp4": (15, 7)}
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
CASES = [(*case, shape) for case, shape in product(CODECS_IN_GROUPS, SHAPES) if shape[0] % case[1] == 0]


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


@every_isa
def test_results_side_by_side_equal_one_by_one(isa: str) -> None:
    """Matrices of different codecs and widths on one x, and on an x each."""
    rng = np.random.default_rng(7)
    weights = [
        *(
            random_weights(rng, codec, 128, n, 32).packed(layout)
            for codec, layout, n in zip(
                ("int4", "int8", "mxfp4"), ("cpu", "marlin", "cpu"), (64, 128, 192), strict=True
            )
        ),
        Matrix("bf16", "plain", 128, 33, 0, bf16(rng.standard_normal((33, 128), dtype=np.float32))),
    ]
    widths = [61, 128, 1, 33]
    x = torch.from_numpy(random_x(rng, 4 * 5, 128)).view(5, 4, 128)
    for threads, tokens in product((1, 3), (0, 1, 5)):
        linears = pool(threads, isa).linears(weights, widths)
        for found, inputs in (
            (linears(x[:tokens, 1]), [x[:tokens, 1]] * 4),
            (linears.each(x[:tokens]), x[:tokens].unbind(1)),
        ):
            jobs = zip(weights, inputs, widths, strict=True)
            assert torch.equal(found, torch.cat([pool(1, isa).matmul(*job) for job in jobs], dim=-1))


def test_many_tokens_are_quantized_by_all_threads() -> None:
    k, n, group, m = 512, 64, 128, 300
    rng = np.random.default_rng(5)
    weights, x = random_weights(rng, "int8", k, n, group), random_x(rng, m, k)
    assert_same(pool(2, ISAS[-1]).matmul(weights.packed("cpu"), torch.from_numpy(x)), reference(x, weights))
