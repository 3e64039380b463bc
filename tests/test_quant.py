"""Codecs against a plain search in NumPy, and against the errors that theory and measurement give."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krasis import quant
from krasis.errors import InputError, KrasisError
from krasis.quant import bf16, int4, int8, mxfp4
from krasis.quant.codec import Quantized, relative_rms

CODECS = [quant.get(name) for name in quant.names()]
QUANTIZED = [codec for codec in CODECS if codec.QUANTIZED]
every_quantized = pytest.mark.parametrize("codec", QUANTIZED, ids=lambda codec: codec.NAME)
every_group_size = pytest.mark.parametrize(
    ("codec", "group_size"),
    [(c, g) for c in QUANTIZED for g in c.GROUP_SIZES],
    ids=lambda v: getattr(v, "NAME", v),
)
every_cast = pytest.mark.parametrize("codec", [c for c in CODECS if not c.QUANTIZED], ids=lambda codec: codec.NAME)


def gaussian(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def scale_values(found):
    """float32 [K/g, N], also where scales are e8m0."""
    if found.scales.dtype == torch.bfloat16:
        return found.scales.float()
    return torch.where(found.scales == 0, 0, 2.0 ** (found.scales.double() - 127)).float()


def to_bfloat16(value):
    """Round a normal float32 to bfloat16, to nearest, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    return np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def times(value, factor):
    """value * factor / 2^15, to the nearest integer, ties upwards."""
    return (value * factor + 2**14) >> 15


def within(number):
    return min(max(number, -8), 7)


def search_group(group, importance=None):
    """The scale and codes of one group of ordinary float32 values, in Python's integers, candidate by candidate."""
    peak = group.max() if group.max() >= -group.min() else group.min()
    factor = np.float32(-(2**15) / 2.75) / peak
    whole = [int(v) for v in np.rint(group * factor)]
    values, parts, unit = whole, [1] * len(whole), 1
    if importance is not None:
        parts = [max(int(np.rint(h / importance.max() * np.float32(4095))), 1) for h in importance]
        values, unit = [times(value, 1024) for value in whole], 32
    best = np.float32(0), np.float32(1)
    for multiplier in range(20, 28):
        numbers = [within(times(value, multiplier)) for value in whole]
        a = np.float32(sum(v * q * h for v, q, h in zip(values, numbers, parts, strict=True)))
        b = np.float32(sum(q * q * h for q, h in zip(numbers, parts, strict=True)))
        if a * a * best[1] > best[0] * best[0] * b:
            best = a, b
    scale = to_bfloat16(best[0] / best[1] * np.float32(unit) / factor)
    multiplier = int(np.rint(np.clip(np.float32(2**24) / (scale * factor), -32767, 32767)))
    return scale, np.array([within(times(times(value, multiplier), 64)) for value in whole]) + 8


@pytest.mark.parametrize(("n", "k", "group_size"), [(3, 64, 32), (5, 21, 7), (1, 128, 128), (17, 12, 1), (4, 33, 33)])
def test_int4_is_the_plain_search(n, k, group_size):
    weight = gaussian(n, k, seed=k)
    found = int4.quantize(weight, group_size)
    for row in range(n):
        for group in range(k // group_size):
            ks = slice(group * group_size, (group + 1) * group_size)
            scale, codes = search_group(weight[row, ks].numpy())
            assert found.scales[group, row].item() == scale
            assert found.codes[ks, row].tolist() == codes.tolist()


@settings(max_examples=40)
@given(st.lists(st.integers(-9, 9), min_size=8, max_size=8).filter(any), st.integers(-40, 40))
def test_int4_is_the_plain_search_where_candidates_tie(whole, exponent):
    # Few distinct values make many candidates equal; powers of two keep their errors so.
    weight = torch.tensor([whole]).float() * 2.0**exponent
    scale, codes = search_group(weight[0].numpy())
    found = int4.quantize(weight, 8)
    assert found.scales.item() == scale
    assert found.codes[:, 0].tolist() == codes.tolist()


@pytest.mark.parametrize("group_size", [32, 128])
def test_int4_is_the_plain_search_with_importance(group_size):
    weight, importance = gaussian(3, 256), gaussian(1, 256, seed=1)[0].square()
    importance[::7] = 0
    importance[11] = 5000
    found = int4.quantize(weight, group_size, importance)
    for row in range(3):
        for group in range(256 // group_size):
            ks = slice(group * group_size, (group + 1) * group_size)
            scale, codes = search_group(weight[row, ks].numpy(), importance[ks].numpy())
            assert found.scales[group, row].item() == scale
            assert found.codes[ks, row].tolist() == codes.tolist()


@pytest.mark.parametrize("codec", [int4, mxfp4], ids=lambda codec: codec.NAME)
def test_importance_lowers_the_error_it_weighs(codec):
    weight, importance = gaussian(256, 1024), gaussian(1, 1024, seed=1)[0].square()
    errors = [
        (codec.dequantize(codec.quantize(weight, 32, given)) - weight).square() * importance
        for given in (None, importance)
    ]
    assert errors[1].sum() < 0.995 * errors[0].sum()


@every_group_size
def test_equal_importance_is_no_importance(codec, group_size):
    weight = gaussian(16, 256)
    plain = codec.quantize(weight, group_size)
    for value in (0.0, 3.0):
        found = codec.quantize(weight, group_size, torch.full((256,), value))
        assert (found.codes != plain.codes).float().mean() < 0.02
        assert torch.equal(found.codes, codec.quantize(weight, group_size, torch.ones(256)).codes)


@every_quantized
def test_importance_that_is_not_one_is_refused(codec):
    for bad in (torch.ones(63), torch.ones(64).double(), torch.ones(64).neg(), torch.full((64,), torch.nan)):
        with pytest.raises(InputError, match="importance"):
            codec.quantize(gaussian(2, 64), 32, bad)


def test_int8_is_absmax_over_127():
    weight = gaussian(6, 60)
    found = int8.quantize(weight, 20)
    for row in range(6):
        for group in range(3):
            values = weight[row, 20 * group : 20 * (group + 1)].numpy()
            scale = to_bfloat16(np.abs(values).max() / np.float32(127))
            assert found.scales[group, row].item() == scale
            codes = found.codes[20 * group : 20 * (group + 1), row]
            exact = values.astype(np.float64) * np.float64(np.float32(1) / scale)
            assert codes.tolist() == (np.rint(exact) + 128).tolist()


@pytest.mark.parametrize(("group_size", "expected"), [(128, 0.0969), (64, 0.0901), (32, 0.0812)])
def test_int4_error_of_gaussian_weights(group_size, expected):
    weight = gaussian(512, 2048)
    error = relative_rms(weight, int4.dequantize(int4.quantize(weight, group_size)))
    assert error == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("group_size", [128, 64, 32])
def test_int8_error_is_that_of_uniform_rounding(group_size):
    weight = gaussian(512, 2048)
    peaks = weight.view(-1, group_size).abs().amax(1)
    # Rounding to steps of s has the variance s^2 / 12; the peak itself lies on a step, and bfloat16 moves it off.
    expected = (peaks.double() / 127).square().mean().div(12).sqrt().item()
    error = relative_rms(weight, int8.dequantize(int8.quantize(weight, group_size)))
    assert error == pytest.approx(expected, rel=0.015)


@settings(max_examples=60)
@given(st.integers(1, 40), st.sampled_from([8, 32, 128]), st.integers(-95, 100), st.integers(0, 999))
def test_int8_is_within_half_a_step(n, group_size, exponent, seed):
    weight = gaussian(n, 2 * group_size, seed) * 2.0**exponent
    found = int8.quantize(weight, group_size)
    step = found.scales.double().repeat_interleave(group_size, 0).t()
    slack = 2.0**-20 * weight.abs().max()
    assert ((int8.dequantize(found).double() - weight).abs() <= step / 2 + slack).all()
    assert found.codes.min() >= 1


def test_int4_uses_scales_of_both_signs_and_all_codes():
    found = int4.quantize(gaussian(64, 1024), 64)
    negative = (found.scales < 0).float().mean()
    assert 0.4 < negative < 0.6
    assert found.codes.unique().tolist() == list(range(16))


@pytest.mark.parametrize("sign", [-1, 1])
def test_int4_sends_the_peak_to_the_lowest_code(sign):
    weight = torch.tensor([[0.5, -0.5] * 16])
    weight[0, 3] = sign
    found = int4.quantize(weight, 32)
    assert found.codes[3, 0] == 0
    assert found.scales.item() * sign < 0


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def nearest_e2m1(values):
    """The code of the nearest value, the even one of two; never 8, the other zero."""
    distance = np.abs(values[:, None] - E2M1)
    best = distance == distance.min(1, keepdims=True)
    return [min(np.flatnonzero(row), key=lambda code: (code % 2, code)) for row in best]


def ascending_sum(values):
    return np.add.accumulate(values)[-1]


def search_mxfp4(group):
    """The e8m0 byte and codes of one group of ordinary float32 values, exponent by exponent."""
    exponent = int(np.floor(np.log2(np.abs(group).max()))) - 2
    best = None
    for candidate in (exponent, exponent + 1):
        scale = np.float32(2.0**candidate)
        codes = nearest_e2m1(group / scale)
        squares = (E2M1[codes] * scale - group) ** 2
        error = ascending_sum(squares[::2]) + ascending_sum(squares[1::2])
        if best is None or error < best[0]:
            best = error, candidate + 127, codes
    return best[1:]


def test_mxfp4_is_the_plain_search():
    weight = gaussian(7, 96, seed=1) * 0.02
    found = mxfp4.quantize(weight, 32)
    for row in range(7):
        for group in range(3):
            ks = slice(32 * group, 32 * group + 32)
            scale, codes = search_mxfp4(weight[row, ks].numpy())
            assert found.scales[group, row] == scale
            assert found.codes[ks, row].tolist() == codes


@settings(max_examples=40)
@given(st.lists(st.integers(-63, 63), min_size=32, max_size=32).filter(any), st.integers(-40, 40))
def test_mxfp4_is_the_plain_search_where_codes_and_exponents_tie(whole, exponent):
    weight = torch.tensor([whole]).float() * 2.0**exponent
    scale, codes = search_mxfp4(weight[0].numpy())
    found = mxfp4.quantize(weight, 32)
    assert found.scales.item() == scale
    assert found.codes[:, 0].tolist() == codes


def every_mxfp4_group(scales):
    """Quantized [32, N] whose columns hold 32 random codes each, no -0, under the e8m0 bytes `scales`."""
    codes = torch.randint(0, 16, (32, len(scales)), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    codes[codes == 8] = 0
    return Quantized(codes * (scales > 0), scales[None])


def test_mxfp4_means_what_ocp_states():
    found = every_mxfp4_group(torch.arange(253, dtype=torch.uint8))
    for column, scale in enumerate(found.scales[0].tolist()):
        expected = E2M1[found.codes[:, column]].astype(np.float64) * 2.0 ** (scale - 127)
        assert mxfp4.dequantize(found)[column].tolist() == expected.tolist()


def test_mxfp4_quantizes_its_own_values_without_error():
    # Weights end below 2^127.
    exact = mxfp4.dequantize(every_mxfp4_group(torch.arange(252, dtype=torch.uint8)))
    assert torch.equal(mxfp4.dequantize(mxfp4.quantize(exact, 32)), exact)


def test_mxfp4_error_of_gaussian_weights():
    weight = gaussian(512, 2048)
    error = relative_rms(weight, mxfp4.dequantize(mxfp4.quantize(weight, 32)))
    assert error == pytest.approx(0.112, rel=0.015)


def test_mxfp4_of_a_checkpoint_has_one_zero():
    codes = torch.randint(0, 16, (64, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    codes[:32, 4], codes[32:, 5] = 8, 0
    scales = torch.randint(1, 250, (2, 9), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    scales[1, 5] = 0
    found = mxfp4.from_e8m0(codes, scales)
    assert (found.codes[codes % 8 == 0] == 0).all()
    assert torch.equal(found.codes[codes % 8 > 0], codes[codes % 8 > 0])
    assert (found.scales[0, 4], found.scales[1, 5]) == (0, 0)
    assert (found.scales == scales).sum() == 17
    transposed = mxfp4.from_e8m0(codes.t().contiguous().t(), scales.t().contiguous().t())
    assert torch.equal(transposed.codes, found.codes)
    assert torch.equal(transposed.scales, found.scales)


@pytest.mark.parametrize(("scale", "code"), [(0, 1), (255, 1), (255, 0), (254, 4), (254, 7), (253, 6), (253, 15)])
def test_mxfp4_of_a_checkpoint_is_refused_beyond_float32(scale, code):
    codes, scales = torch.zeros(64, 4, dtype=torch.uint8), torch.full((2, 4), 127, dtype=torch.uint8)
    codes[40, 3], scales[1, 3] = code, scale
    with pytest.raises(InputError, match="1 of 8 mxfp4 scales are NaN"):
        mxfp4.from_e8m0(codes, scales)


@pytest.mark.parametrize(("scale", "code"), [(1, 1), (254, 3), (253, 5), (252, 15)])
def test_mxfp4_of_a_checkpoint_may_fill_float32(scale, code):
    codes, scales = torch.full((32, 1), code, dtype=torch.uint8), torch.full((1, 1), scale, dtype=torch.uint8)
    found = mxfp4.from_e8m0(codes, scales)
    assert (mxfp4.dequantize(found) == E2M1[code] * 2.0 ** (scale - 127)).all()


@pytest.mark.parametrize("shape", [(1, 4), (4, 4), (2, 3)])
def test_mxfp4_of_a_checkpoint_is_refused_in_other_groups(shape):
    with pytest.raises(InputError):
        mxfp4.from_e8m0(torch.zeros(64, 4, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(InputError, match="uint8 scales"):
        mxfp4.from_e8m0(torch.zeros(64, 4, dtype=torch.uint8), torch.zeros(2, 4, dtype=torch.bfloat16))


def test_mxfp4_is_exact_in_int8():
    scales = torch.arange(254, dtype=torch.uint8)
    found = every_mxfp4_group(scales[scales != 1])
    exact = mxfp4.to_int8(found)
    assert exact.scales.dtype == int8.SCALE_DTYPE
    assert exact.group_size == 32
    assert torch.equal(int8.dequantize(exact), mxfp4.dequantize(found))
    with pytest.raises(InputError, match="1 mxfp4 scales of"):
        mxfp4.to_int8(every_mxfp4_group(scales))


@pytest.mark.parametrize("group_size", [64, 128, -1])
def test_mxfp4_takes_groups_of_32_only(group_size):
    with pytest.raises(InputError, match="mxfp4 with group size"):
        mxfp4.quantize(gaussian(4, 128), group_size)


@every_quantized
def test_zero_weights_have_the_zero_code_and_zero_groups_the_scale_zero(codec):
    weight = gaussian(8, 256)
    weight[:, 32:64] = 0
    weight[:, 128:160] = -0.0
    weight[:, ::5] = 0
    found = codec.quantize(weight, 32)
    assert (found.codes.t()[weight == 0] == codec.ZERO).all()
    assert (found.scales == 0).any(1).tolist() == [False, True, False, False, True, False, False, False]
    assert (found.scales[[1, 4]] == 0).all()
    assert (codec.dequantize(found)[weight == 0] == 0).all()
    assert relative_rms(torch.zeros(4, 32), codec.dequantize(codec.quantize(torch.zeros(4, 32), 32))) == 0


@every_quantized
@pytest.mark.parametrize("exponent", [-149, -140, -126, -123, -120, -60, 60, 120, 125])
def test_any_magnitude_gives_finite_normal_scales(codec, exponent):
    weight = (gaussian(16, 64).clamp(-3.9, 3.9).double() * 2.0**exponent).float()
    assert weight.isfinite().all()
    found = codec.quantize(weight, 32)
    scales = scale_values(found)
    assert ((scales == 0) | (scales.abs() >= 2.0**-126)).all()
    assert scales.isfinite().all()
    assert codec.dequantize(found).isfinite().all()
    assert (found.codes.view(2, 32, 16).eq(codec.ZERO).all(1) | (scales != 0)).all()
    if exponent > -110:
        ordinary = codec.quantize(weight * 2.0**-exponent, 32)
        assert torch.equal(found.codes, ordinary.codes)
        assert torch.equal(scales, scale_values(ordinary) * 2.0**exponent)
    if exponent <= -140:
        assert (scales == 0).all()


@every_quantized
def test_the_largest_floats_keep_their_precision(codec):
    weight = torch.full((1, 32), 2.0**127 * (1 - 2.0**-24))
    approx = codec.dequantize(codec.quantize(weight, 32))
    assert approx.isfinite().all()
    assert relative_rms(weight, approx) < 0.01


@pytest.mark.parametrize("codec", [int4, int8], ids=lambda codec: codec.NAME)
def test_one_group_per_column(codec):
    weight = gaussian(8, 96)
    before = weight.clone()
    found = codec.quantize(weight, -1)
    assert found.scales.shape == (1, 8)
    assert found.group_size == 96
    assert torch.equal(found.codes, codec.quantize(weight, 96).codes)
    assert torch.equal(weight, before)


@every_quantized
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_dtype_is_quantized_as_its_float32(codec, dtype):
    weight = gaussian(8, 64).to(dtype)
    found, expected = codec.quantize(weight, 32), codec.quantize(weight.float(), 32)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scales, expected.scales)


@every_group_size
def test_rows_do_not_touch_each_other_and_threads_do_not_matter(codec, group_size):
    # Wide enough for several chunks of rows.
    weight = gaussian(200, 8192)
    found = codec.quantize(weight, group_size)
    alone = codec.quantize(weight[77:78], group_size)
    assert torch.equal(found.codes[:, 77:78], alone.codes)
    assert torch.equal(found.scales[:, 77:78], alone.scales)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            again = codec.quantize(weight, group_size)
            assert torch.equal(found.codes, again.codes)
            assert torch.equal(found.scales, again.scales)
    finally:
        torch.set_num_threads(threads)


@every_quantized
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_and_counted(codec, bad):
    weight = gaussian(4, 64)
    weight[1, 2] = weight[3, 63] = bad
    with pytest.raises(InputError, match="2 of 256 weights are NaN"):
        codec.quantize(weight, 32)
    with pytest.raises(InputError, match="1 of 64"):
        codec.quantize(torch.ones(1, 64).index_fill(1, torch.tensor([5]), -(2.0**127)), 32)
    with pytest.raises(InputError, match="1 of 64"):
        codec.quantize(torch.ones(1, 64).double().index_fill(1, torch.tensor([5]), 1e300), 32)


@every_quantized
def test_what_is_not_a_matrix_in_whole_groups_is_refused(codec):
    for weight, group_size in [
        (gaussian(4, 64), 48),
        (gaussian(4, 64), 0),
        (gaussian(4, 64), -2),
        (gaussian(4, 64), 128),
        (torch.ones(4, 64, dtype=torch.int32), 32),
        (torch.ones(64), 32),
        (torch.ones(2, 4, 64), 32),
        (torch.ones(0, 64), 32),
        (torch.ones(4, 0), -1),
    ]:
        with pytest.raises(InputError):
            codec.quantize(weight, group_size)


def test_quantized_refuses_what_does_not_belong_together():
    codes, scales = torch.zeros(64, 8, dtype=torch.uint8), torch.zeros(2, 8, dtype=torch.bfloat16)
    assert Quantized(codes, scales).group_size == Quantized(codes, scales.byte()).group_size == 32
    for pair in [
        (codes.int(), scales),
        (codes, scales.half()),
        (codes[:, :4], scales),
        (codes, torch.zeros(3, 8, dtype=torch.bfloat16)),
        (codes, scales[:0]),
        (codes[0], scales),
    ]:
        with pytest.raises(InputError, match="codes and scales are"):
            Quantized(*pair)


@every_cast
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_casts_round_once(codec, dtype):
    tensor = gaussian(3, 5).view(3, 5, 1).to(dtype)
    stored = codec.encode(tensor)
    assert stored.dtype == codec.DTYPE
    assert stored.element_size() * 8 == codec.BITS
    assert torch.equal(codec.decode(stored), tensor.to(codec.DTYPE).float())
    assert codec.encode(tensor.transpose(0, 1)).is_contiguous()


@every_cast
def test_casts_refuse_what_they_cannot_hold(codec):
    with pytest.raises(InputError, match="2 of 3 values are not finite"):
        codec.encode(torch.tensor([1.0, torch.nan, torch.inf]))
    with pytest.raises(InputError, match=r"torch\.int64"):
        codec.encode(torch.tensor([1]))
    with pytest.raises(InputError, match="1 of 1 values"):
        codec.encode(torch.tensor([1e300], dtype=torch.float64))
    with pytest.raises(InputError, match="1 of 1 values"):
        bf16.encode(torch.tensor([torch.finfo(torch.float32).max]))


def test_codecs_are_found_by_name():
    assert {"bf16", "f32", "int4", "int8", "mxfp4"} <= set(quant.names())
    assert [codec.NAME for codec in CODECS] == quant.names()
    for unknown in ("groups", "codec", "int3", ""):
        with pytest.raises(KrasisError, match="unknown codec"):
            quant.get(unknown)


def test_relative_rms():
    weight = torch.tensor([[3.0, 4.0]])
    assert relative_rms(weight, torch.tensor([[3.0, 4.5]])) == pytest.approx(0.1)
    assert relative_rms(weight, weight) == 0
    assert relative_rms(torch.zeros(2, 2), torch.zeros(2, 2)) == 0
    with pytest.raises(InputError, match="one shape"):
        relative_rms(weight, weight[:, :1])
    large = gaussian(3, 700_001)
    expected = ((large.bfloat16().double() - large).norm() / large.double().norm()).item()
    assert relative_rms(large, large.bfloat16()) == pytest.approx(expected, rel=1e-12)
