"""The device's reading of the marlin layout, held against the reference codec."""

import pytest
import torch
from cuda_devices import on_devices

from krasis import quant
from krasis.errors import InputError, KrasisError
from krasis.layout import marlin
from krasis.native.cuda.dequantize import dequantize
from krasis.native.cuda.library import library
from krasis.native.library import ABI_VERSION

SHAPES = [(64, 128, 32), (128, 64, 128), (192, 256, 64), (512, 2048, 32)]
REAL_SHAPES = [(2944, 2880, 128), (2048, 1536, 128)]


def test_opens_without_a_gpu():
    try:
        found = library("cuda")
    except KrasisError:
        pytest.skip("no nvcc when krasis was installed")
    assert found.krasis_cuda_abi_version() == ABI_VERSION


@on_devices
@pytest.mark.parametrize("codec", ["int4", "int8"])
@pytest.mark.parametrize(("k", "n", "group_size"), SHAPES + REAL_SHAPES)
def test_dequantizes_as_the_reference(codec, k, n, group_size, device):
    bits = quant.get(codec).BITS
    generator = torch.Generator().manual_seed(k + n)
    codes = torch.randint(0, 1 << bits, (k, n), dtype=torch.uint8, generator=generator)
    scales = torch.randn(k // group_size, n, generator=generator).bfloat16()
    expected = quant.get(codec).dequantize(quant.codec.Quantized(codes, scales)).bfloat16()
    packed, packed_scales = marlin.pack(codes, bits).to(device), marlin.pack_scales(scales, k, group_size).to(device)
    assert torch.equal(dequantize(codec, packed, packed_scales, k, n, group_size).cpu(), expected)


def test_refuses_mxfp4():
    codes, scales = torch.zeros(1024, dtype=torch.int32), torch.zeros(256, dtype=torch.uint8)
    with pytest.raises(InputError, match="mxfp4 with groups of 32"):
        dequantize("mxfp4", codes, scales, 128, 64, 32)
    arguments = (codes.data_ptr(), scales.data_ptr(), 3, 128, 64, 32, codes.data_ptr(), None)
    assert library("cpu").krasis_cuda_dequantize(*arguments) == 2


def test_refuses_a_size_that_does_not_match():
    with pytest.raises(InputError, match="do not match"):
        dequantize("int8", torch.zeros(7, dtype=torch.int32), torch.zeros(256, dtype=torch.bfloat16), 128, 64, 32)
