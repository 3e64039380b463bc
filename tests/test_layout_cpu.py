"""The CPU layout against its index formulas, one code at a time, and what every layout owes its callers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krasis import layout
from krasis.errors import InputError, KrasisError
from krasis.layout import cpu, marlin

LAYOUTS = [layout.get(name) for name in layout.names()]
every_layout = pytest.mark.parametrize("order", LAYOUTS, ids=layout.names())
every_bits = pytest.mark.parametrize("bits", [4, 8])
sizes = st.integers(1, 3)
SCALES = [torch.bfloat16, torch.float16, torch.float32, torch.uint8]


def random_codes(k, n, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, (k, n), dtype=np.uint8)


@pytest.mark.parametrize(("k", "n"), [(8, 16), (24, 48), (64, 32)])
def test_int4_follows_the_formula(k, n):
    codes = random_codes(k, n, 4)
    lines = cpu.pack(codes, 4).reshape(n // 16, k // 8, 16, 4)
    for row in range(k):
        for column in range(n):
            octet = int(lines[column // 16, row // 8, column % 16, row % 4])
            assert (octet >> 4 * (row % 8 // 4)) & 15 == codes[row, column]


@pytest.mark.parametrize(("k", "n"), [(8, 16), (24, 48), (64, 32)])
def test_int8_follows_the_formula(k, n):
    codes = random_codes(k, n, 8)
    lines = cpu.pack(codes, 8).reshape(n // 16, k // 4, 16, 4)
    for row in range(k):
        for column in range(n):
            assert lines[column // 16, row // 4, column % 16, row % 4] == codes[row, column]


def test_scales_follow_the_formula():
    scales = np.arange(6 * 48, dtype=np.float32).reshape(6, 48)
    stored = cpu.pack_scales(scales, 192, 32)
    assert stored.shape == (3, 6, 16)
    for group in range(6):
        for column in range(48):
            assert stored[column // 16, group, column % 16] == scales[group, column]


@pytest.mark.parametrize(("k", "n"), [(4, 16), (12, 16), (8, 8), (8, 24), (0, 16), (8, 0)])
def test_shapes_that_are_no_whole_lines_are_refused(k, n):
    with pytest.raises(InputError, match="multiples of 8 and 16"):
        cpu.pack(torch.zeros(k, n, dtype=torch.uint8), 8)
    with pytest.raises(InputError, match="multiples of 8 and 16"):
        cpu.scales_shape(k, n, -1)


def test_packed_rows_that_are_no_whole_lines_are_refused():
    for columns in (0, 32, 65, 96):
        with pytest.raises(InputError):
            cpu.unpack(torch.zeros(2, columns, dtype=torch.uint8), 4)


def test_both_layouts_share_padded_shapes():
    assert cpu.padded_shape is marlin.padded_shape


def test_layouts_are_found_by_name():
    assert {"cpu", "marlin"} <= set(layout.names())
    assert layout.get("cpu") is cpu
    for unknown in ("check", "no such layout", ""):
        with pytest.raises(KrasisError, match="unknown layout"):
            layout.get(unknown)


@every_layout
@every_bits
@given(sizes, sizes, st.booleans(), st.integers(0, 2**32))
def test_unpack_inverts_pack(order, bits, tall, wide, deep, seed):
    k, n = (128 * tall, 64 * wide) if deep else (64 * tall, 128 * wide)
    codes = random_codes(k, n, bits, seed)
    packed = order.pack(codes, bits)
    assert packed.shape == order.packed_shape(k, n, bits)
    assert torch.from_numpy(packed).dtype == order.PACKED_DTYPE
    assert packed.nbytes * 8 == k * n * bits
    np.testing.assert_array_equal(order.unpack(packed, bits), codes, strict=True)


@every_layout
@given(sizes, sizes, st.sampled_from([32, 64, 128, -1]), st.sampled_from(SCALES), st.integers(0, 99))
def test_unpack_scales_inverts_pack_scales(order, tall, wide, group_size, dtype, seed):
    k, n = 128 * tall, 64 * wide
    groups = 1 if group_size == -1 else k // group_size
    scales = torch.randint(256, (groups, n), generator=torch.Generator().manual_seed(seed)).to(dtype)
    packed = order.pack_scales(scales, k, group_size)
    assert packed.shape == order.scales_shape(k, n, group_size)
    assert packed.dtype == dtype
    assert torch.equal(order.unpack_scales(packed, k, group_size), scales)
    if groups == 1:
        assert torch.equal(order.pack_scales(scales, k, k), packed)


@every_layout
@every_bits
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize(("k", "n", "group_size"), [(128, 192, 32), (128, 192, 128), (64, 384, 32), (64, 256, 64)])
def test_some_columns_are_packed_as_if_they_were_the_matrix(order, bits, dtype, k, n, group_size):
    codes = torch.from_numpy(random_codes(k, n, bits))
    scales = torch.arange(k // group_size * n).remainder(251).to(dtype).view(-1, n)
    packed, packed_scales = order.pack(codes, bits), order.pack_scales(scales, k, group_size)
    step = 64 if k % 128 == 0 else 128
    for first in range(0, n, step):
        for last in range(first + step, n + 1, step):
            some, some_scales = order.columns(packed, packed_scales, slice(first, last))
            assert torch.equal(order.unpack(some, bits), codes[:, first:last])
            assert torch.equal(order.unpack_scales(some_scales, k, group_size), scales[:, first:last])


@every_layout
@every_bits
def test_views_and_read_only_arrays_are_packed_like_copies(order, bits):
    codes = random_codes(256, 256, bits)
    packed = order.pack(codes[64:192].copy(), bits)
    codes.flags.writeable = False
    np.testing.assert_array_equal(order.pack(codes[64:192], bits), packed)
    np.testing.assert_array_equal(order.pack(codes.T.copy().T[64:192], bits), packed)
    tensor = torch.from_numpy(codes.copy())[64:192]
    np.testing.assert_array_equal(order.pack(tensor.t().contiguous().t(), bits).numpy(), packed)
    strided = torch.from_numpy(packed).t().contiguous().t()
    np.testing.assert_array_equal(order.unpack(strided, bits).numpy(), codes[64:192])


def zeros(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


@every_layout
def test_what_is_not_codes_is_refused(order):
    cases = [
        (zeros(128, 128), 5, "5 bits"),
        (zeros(128, 128), 0, "0 bits"),
        (zeros(128, 128, dtype=torch.int8), 8, "torch.int8"),
        (zeros(128, 128, dtype=torch.int32), 4, "torch.int32"),
        (zeros(1, 128, 128), 4, "2 dimensions"),
        (zeros(128), 4, "2 dimensions"),
        (zeros(128, 128) + 16, 4, "a code is 16"),
        (np.zeros((128, 128), np.float32), 4, "torch.float32"),
        (np.zeros((128, 128), object), 4, "NumPy dtype object"),
        ([[0] * 128] * 128, 4, "a list"),
    ]
    for codes, bits, message in cases:
        with pytest.raises(InputError, match=message):
            order.pack(codes, bits)


@every_layout
def test_what_is_not_packed_codes_is_refused(order):
    packed = order.pack(zeros(128, 128), 4)
    for wrong, bits, message in [
        (packed, 3, "3 bits"),
        (packed.to(torch.int64), 4, "torch.int64"),
        (packed[0], 4, "2 dimensions"),
        (packed[:, :-1], 4, "K ="),
    ]:
        with pytest.raises(InputError, match=message):
            order.unpack(wrong, bits)


@every_layout
def test_what_is_not_scales_is_refused(order):
    cases = [
        (zeros(4, 128, dtype=torch.float64), 128, 32, "torch.float64"),
        (zeros(4, 128, dtype=torch.int8), 128, 32, "torch.int8"),
        (zeros(128, dtype=torch.float16), 128, -1, "2 dimensions"),
        (zeros(3, 128, dtype=torch.float16), 128, 32, r"\(3, 128\)"),
        (zeros(4, 128, dtype=torch.float16), 128, -1, r"\(4, 128\)"),
        (zeros(4, 128, dtype=torch.float16), 128, 16, "group size 16"),
        (zeros(4, 128, dtype=torch.float16), 128, 0, "group size 0"),
        (zeros(2, 128, dtype=torch.float16), 192, 128, "whole groups"),
        (zeros(1, 100, dtype=torch.float16), 128, -1, "N = 100"),
    ]
    for scales, k, group_size, message in cases:
        with pytest.raises(InputError, match=message):
            order.pack_scales(scales, k, group_size)


@every_layout
def test_what_is_not_packed_scales_is_refused(order):
    packed = order.pack_scales(zeros(4, 128, dtype=torch.bfloat16), 128, 32)
    for wrong, k, group_size, message in [
        (packed.double(), 128, 32, "torch.float64"),
        (packed.flatten(), 128, 32, "dimensions"),
        (packed, 128, 64, "have shape"),
        (packed, 256, 32, "have shape"),
        (packed, 128, 33, "group size 33"),
    ]:
        with pytest.raises(InputError, match=message):
            order.unpack_scales(wrong, k, group_size)


@every_layout
def test_padding_is_refused_for_what_has_no_padded_shape(order):
    for k, n, group_size in [(0, 1, 32), (1, 0, -1), (-64, 64, 32), (64, 64, 16), (64, 64, 0), (64, 64, 256)]:
        with pytest.raises(InputError):
            order.padded_shape(k, n, group_size)


@every_layout
@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([32, 64, 128, -1]))
def test_padded_shapes_can_be_packed(order, k, n, group_size):
    padded_k, padded_n = order.padded_shape(k, n, group_size)
    assert order.packed_shape(padded_k, padded_n, 4)
    assert order.scales_shape(padded_k, padded_n, group_size)
