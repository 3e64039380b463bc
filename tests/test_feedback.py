"""Error feedback against the textbook, and the compiled one against it, bit for bit."""

import numpy as np
import pytest
import torch

from krasis.errors import InputError, KrasisError
from krasis.native import cpu
from krasis.native import feedback as native
from krasis.quant import feedback, int4

ISAS = [isa for isa in cpu.ISAS if cpu.ISAS.index(isa) <= cpu.ISAS.index(cpu.best_isa())]


def inputs(k, seed, tokens=400):
    """Tokens whose features go together, as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(tokens, max(k // 4, 1), generator=generator) @ torch.randn(max(k // 4, 1), k, generator=generator)
    return few + torch.randn(tokens, k, generator=generator)


def moments(x):
    return x.T @ x / len(x)


def weights(n, k, seed):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def damped(c):
    return c.double() + feedback.DAMPING * c.double().diagonal().mean() * torch.eye(len(c), dtype=torch.float64)


def output_error(weight, quantized, c):
    """The mean square of what the error of the weights does to the outputs."""
    error = (weight - int4.dequantize(quantized)).double()
    return ((error @ c.double()) * error).sum().item()


def gptq(weight, scales, c):
    """Frantar et al. 2022, equation 2 with the Cholesky factor of the inverse, in float64."""
    factor = torch.linalg.cholesky(torch.linalg.inv(damped(c)), upper=True)
    rest, step = weight.double().T.clone(), scales.double().repeat_interleave(weight.shape[1] // len(scales), dim=0)
    codes = torch.empty(rest.shape, dtype=torch.uint8)
    for k in range(len(rest)):
        number = (rest[k] / step[k]).round().clamp(-8, 7)
        codes[k] = number + 8
        rest[k:] -= factor[k, k:, None] * ((rest[k] - number * step[k]) / factor[k, k])
    return codes


def test_shares_factor_the_moments():
    c = moments(inputs(24, seed=1))
    shares = feedback.coefficients(c)
    assert torch.equal(shares, shares.tril(-1))
    unit = shares.double().T + torch.eye(24, dtype=torch.float64)
    diagonal = torch.linalg.solve_triangular(unit, damped(c), upper=True)
    diagonal = torch.linalg.solve_triangular(unit, diagonal.T, upper=True)
    off = diagonal - torch.diag(diagonal.diagonal())
    assert off.abs().max() < 1e-4 * diagonal.diagonal().min()
    assert (diagonal.diagonal() > 0).all()


def test_inputs_that_do_not_go_together_share_nothing():
    assert not feedback.coefficients(torch.diag(torch.arange(5.0))).any()
    assert not feedback.coefficients(torch.zeros(5, 5)).any()


def test_what_are_no_moments_is_refused():
    with pytest.raises(InputError, match="positive semidefinite"):
        feedback.coefficients(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(InputError, match="positive semidefinite"):
        feedback.coefficients(torch.full((3, 3), torch.nan))


@pytest.mark.parametrize(("n", "k", "group_size"), [(16, 32, 32), (5, 64, 16), (3, 21, 7)])
def test_it_is_gptq(n, k, group_size):
    c, weight = moments(inputs(k, seed=k)), weights(n, k, seed=n)
    scales = int4.quantize(weight, group_size).scales
    found = feedback.quantize(weight, scales, feedback.coefficients(c))
    assert torch.equal(found.codes, gptq(weight, scales, c))


def test_outputs_come_nearer_than_by_rounding():
    c, weight = moments(inputs(128, seed=3)), weights(32, 128, seed=4)
    rounded = int4.quantize(weight, 64)
    fed = feedback.quantize(weight, rounded.scales, feedback.coefficients(c))
    assert output_error(weight, fed, c) < 0.6 * output_error(weight, rounded, c)


def test_a_zero_weight_or_scale_has_the_zero_code():
    weight = weights(16, 64, seed=5)
    weight[:, 7] = 0
    weight[3] = 0
    weight[:, 32:] = 0
    rounded = int4.quantize(weight, 32)
    shares = feedback.coefficients(moments(inputs(64, seed=6)))
    found = feedback.quantize(weight, rounded.scales, shares)
    assert found.codes[weight.T == 0].eq(int4.ZERO).all()
    assert torch.equal(compiled(weight, rounded.scales, shares)[0], found.codes)


def test_a_product_and_sum_are_rounded_once():
    generator = np.random.default_rng(7)
    a, b, c = (generator.standard_normal(4000).astype(np.float32) for _ in range(3))
    # Near cancellation and halfway cases among them.
    c[:2000] = -(a[:2000] * b[:2000])
    c[1000:2000] *= np.float32(1 + 2**-20)
    exact = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
    found = feedback.fma(*map(torch.from_numpy, (a, b, c))).numpy()
    assert np.array_equal(found, exact.astype(np.float32))


def compiled(weight, scales, shares, isa=None):
    """Codes [K, N] and errors [N, 4]."""
    importance = torch.linspace(0.5, 2, weight.shape[1])
    codes, errors = native.codes(weight, shares, scales.T, importance, isa)
    return codes.T, errors


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("n", "k", "group_size"), [(16, 16, 16), (48, 256, 128), (208, 64, 32), (64, 128, 64), (80, 96, 32)]
)
def test_the_compiled_codes_are_the_same(isa, n, k, group_size):
    weight, shares = weights(n, k, seed=n + k), feedback.coefficients(moments(inputs(k, seed=n)))
    weight[:, k // 2] = 0
    weight[n // 2] = 0
    scales = int4.quantize(weight, group_size).scales
    expected = feedback.quantize(weight, scales, shares)
    codes, errors = compiled(weight, scales, shares, isa)
    assert torch.equal(codes, expected.codes)
    off = (weight.double() - int4.dequantize(expected).double()).square()
    importance = torch.linspace(0.5, 2, k).double()
    sums = [off.sum(1), weight.double().square().sum(1), off @ importance, weight.double().square() @ importance]
    torch.testing.assert_close(errors, torch.stack(sums, 1), rtol=1e-12, atol=0)
    assert torch.equal(errors, compiled(weight, scales, shares, "scalar")[1])


@pytest.mark.parametrize("isa", ISAS)
def test_overflow_is_the_same_too(isa):
    weight = weights(16, 32, seed=8) * 1e37
    shares = torch.randn(32, 32, generator=torch.Generator().manual_seed(9)).tril(-1) * 1e3
    scales = int4.quantize(weight, 32).scales
    assert torch.equal(compiled(weight, scales, shares, isa)[0], feedback.quantize(weight, scales, shares).codes)


@pytest.mark.parametrize(
    ("n", "k", "groups", "shares"), [(16, 24, 1, 24), (8, 32, 1, 32), (16, 32, 3, 32), (16, 32, 1, 16), (16, 32, 0, 32)]
)
def test_shapes_that_do_not_fit_are_refused(n, k, groups, shares):
    with pytest.raises(InputError, match="multiples of 16"):
        compiled(torch.ones(n, k), torch.ones(groups, n, dtype=torch.bfloat16), torch.zeros(shares, shares))


def test_wrong_dtypes_and_instruction_sets_are_refused():
    weight, shares = torch.ones(16, 32), torch.zeros(32, 32)
    with pytest.raises(InputError, match="bfloat16"):
        compiled(weight, torch.ones(1, 16), shares)
    with pytest.raises(KrasisError, match="unknown instruction set"):
        compiled(weight, torch.ones(1, 16, dtype=torch.bfloat16), shares, "mmx")
