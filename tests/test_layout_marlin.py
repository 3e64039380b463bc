"""The Marlin layout against the reference packer's golden files and the published index formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from krasis.errors import InputError
from krasis.layout import marlin

GOLDEN = sorted((Path(__file__).parent / "golden" / "marlin").glob("*.safetensors"))
WITH_BYTE_SCALES = [path for path in GOLDEN if path.stem.startswith("mxfp4")]
WITH_FLOAT_SCALES = [path for path in GOLDEN if path not in WITH_BYTE_SCALES]
SMALL = [(64, 128), (128, 64), (128, 192)]


class Golden:
    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.bits, self.k, self.group_size = (int(file.metadata()[key]) for key in ("bits", "K", "group_size"))


def test_the_golden_files_are_there():
    assert len(WITH_FLOAT_SCALES) == 8
    assert len(WITH_BYTE_SCALES) == 3


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_codes(path):
    golden = Golden(path)
    codes, packed = golden.tensors["q"], golden.tensors["marlin_qweight"]
    assert torch.equal(marlin.pack(codes, golden.bits), packed)
    assert torch.equal(marlin.unpack(packed, golden.bits), codes)
    np.testing.assert_array_equal(marlin.pack(codes.numpy(), golden.bits), packed.numpy(), strict=True)
    np.testing.assert_array_equal(marlin.unpack(packed.numpy(), golden.bits), codes.numpy(), strict=True)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("path", WITH_FLOAT_SCALES, ids=lambda path: path.stem)
def test_golden_scales(path, dtype):
    golden = Golden(path)
    plain, permuted = golden.tensors[f"scales_{dtype}"], golden.tensors[f"marlin_scales_{dtype}"]
    assert torch.equal(marlin.pack_scales(plain, golden.k, golden.group_size), permuted)
    assert torch.equal(marlin.unpack_scales(permuted, golden.k, golden.group_size), plain)


@pytest.mark.parametrize("path", WITH_BYTE_SCALES, ids=lambda path: path.stem)
def test_golden_byte_scales(path):
    golden = Golden(path)
    plain, permuted = golden.tensors["scales_e8m0"].t(), golden.tensors["marlin_scales_e8m0"]
    assert torch.equal(marlin.pack_scales(plain, golden.k, golden.group_size), permuted)
    assert torch.equal(marlin.unpack_scales(permuted, golden.k, golden.group_size), plain)


def test_golden_group_of_all_k_is_one_group():
    golden = Golden(next(path for path in GOLDEN if path.stem == "int4_k256_n128_gchan"))
    plain, permuted = golden.tensors["scales_bf16"], golden.tensors["marlin_scales_bf16"]
    assert golden.group_size == -1
    assert torch.equal(marlin.pack_scales(plain, golden.k, golden.k), permuted)


def code_at(packed, bits, k, n):
    """One code, by the formulas of formats/layouts.md, word by word."""
    r, c, tile = k % 16, n % 64, n // 64
    w, h, lane = c // 16, c % 16 // 8, 4 * (c % 8) + r % 8 // 2
    if bits == 4:
        word, slot = 128 * tile + 4 * lane + w, 2 * h + r // 8 + 4 * (r % 2)
    else:
        word, slot = 256 * tile + 8 * lane + 2 * w + h, r // 8 + 2 * (r % 2)
    return (int(packed[k // 16, word]) % 2**32 >> bits * slot) % 2**bits


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("k", "n"), SMALL)
def test_codes_follow_the_formulas(k, n, bits):
    codes = np.random.default_rng(k + n + bits).integers(0, 2**bits, (k, n), dtype=np.uint8)
    packed = marlin.pack(codes, bits)
    found = [[code_at(packed, bits, row, column) for column in range(n)] for row in range(k)]
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize(("k", "n"), SMALL)
def test_scales_follow_the_formulas(k, n, group_size):
    groups = 1 if group_size in (-1, k) else k // group_size
    plain = np.random.default_rng(n).standard_normal((groups, n)).astype(np.float32)
    stored = marlin.pack_scales(plain, k, group_size)
    for column in range(n):
        if groups == 1:
            block, i, j = column // 32 * 32, column % 32 // 8, column % 8
            source = block + 2 * i + j % 2 + 8 * (j // 2)
        else:
            block, i, j = column // 64 * 64, column % 64 // 8, column % 8
            source = block + i + 8 * j
        np.testing.assert_array_equal(stored[:, column], plain[:, source])


@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize(("k", "n"), SMALL)
def test_byte_scales_follow_the_formula(k, n, group_size):
    groups = 1 if group_size == -1 else k // group_size
    plain = np.random.default_rng(n).integers(0, 255, (groups, n), dtype=np.uint8)
    stored = marlin.pack_scales(plain, k, group_size)
    for column in range(n):
        block, i, j = column // 64 * 64, column % 64 // 8, column % 8
        source = block + i + 8 * (0, 2, 1, 3, 4, 6, 5, 7)[j]
        np.testing.assert_array_equal(stored[:, column], plain[:, source])


sizes = st.integers(1, 3000)
group_sizes = st.sampled_from([32, 64, 128, -1])


def is_valid(k, n, group_size):
    tiled = (k % 64 == 0 and n % 128 == 0) or (k % 128 == 0 and n % 64 == 0)
    return tiled and (group_size == -1 or k % group_size == 0)


@given(sizes, sizes, group_sizes)
def test_padded_shape_is_valid_at_or_above_and_stays(k, n, group_size):
    padded = marlin.padded_shape(k, n, group_size)
    assert is_valid(*padded, group_size)
    assert padded[0] >= k
    assert padded[1] >= n
    assert marlin.padded_shape(*padded, group_size) == padded


@given(st.integers(1, 400), st.integers(1, 400), group_sizes)
def test_padded_shape_is_the_smallest(k, n, group_size):
    valid = [
        (above_k * above_n, above_k, above_n)
        for above_k in range(k, 641)
        for above_n in range(-(-n // 64) * 64, 641, 64)
        if is_valid(above_k, above_n, group_size)
    ]
    assert marlin.padded_shape(k, n, group_size) == min(valid)[1:]


@pytest.mark.parametrize(
    ("shape", "group_size", "padded"),
    [
        ((2880, 2880), 32, (2880, 2944)),
        ((2880, 2880), 64, (2880, 2944)),
        ((2880, 2880), 128, (2944, 2880)),
        ((2880, 2880), -1, (2880, 2944)),
        ((1408, 2048), 128, (1408, 2048)),
        ((2048, 1408), 128, (2048, 1408)),
        ((2048, 2816), 64, (2048, 2816)),
        ((96, 96), 32, (128, 128)),
        ((100, 60), 128, (128, 64)),
        ((1, 1), -1, (64, 128)),
    ],
)
def test_padded_shape_of_known_matrices(shape, group_size, padded):
    assert marlin.padded_shape(*shape, group_size) == padded


@pytest.mark.parametrize(("k", "n"), [(64, 64), (96, 128), (128, 96), (2880, 2880), (16, 64), (128, 0), (0, 128)])
def test_shapes_without_a_tiling_are_refused(k, n):
    with pytest.raises(InputError, match=f"no tiling for K = {k}, N = {n}"):
        marlin.pack(torch.zeros(k, n, dtype=torch.uint8), 4)
    with pytest.raises(InputError, match=f"no tiling for K = {k}, N = {n}"):
        marlin.packed_shape(k, n, 8)
    with pytest.raises(InputError, match=f"no tiling for K = {k}, N = {n}"):
        marlin.scales_shape(k, n, -1)


@pytest.mark.parametrize(("shape", "bits"), [((8, 128), 8), ((4, 128), 4), ((8, 100), 4), ((0, 256), 4), ((8, 0), 8)])
def test_packed_shapes_without_a_tiling_are_refused(shape, bits):
    with pytest.raises(InputError, match="no tiling"):
        marlin.unpack(torch.zeros(shape, dtype=torch.int32), bits)
