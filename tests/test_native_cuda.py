"""The GPU's reading of the marlin layout, held against the reference codec."""

import pytest
import torch

from krasis import quant
from krasis.errors import InputError, KrasisError
from krasis.layout import marlin
from krasis.native import cuda
from krasis.native.library import ABI_VERSION, cuda_library


def _built() -> bool:
    try:
        cuda_library()
    except KrasisError:
        return False
    return True


needs_library = pytest.mark.skipif(
    not _built(), reason="libkrasis_cuda.so isn't built: no nvcc when krasis was installed"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SHAPES = [(64, 128, 32), (128, 64, 128), (192, 256, 64), (2944, 2880, 128), (2048, 1536, 128), (512, 2048, 32)]


@needs_library
def test_opens_without_a_gpu():
    assert cuda_library().krasis_cuda_abi_version() == ABI_VERSION


@needs_library
@needs_gpu
@pytest.mark.parametrize("codec", ["int4", "int8"])
@pytest.mark.parametrize(("k", "n", "group_size"), SHAPES)
def test_dequantizes_as_the_reference(codec, k, n, group_size):
    bits = quant.get(codec).BITS
    generator = torch.Generator().manual_seed(k + n)
    codes = torch.randint(0, 1 << bits, (k, n), dtype=torch.uint8, generator=generator)
    scales = torch.randn(k // group_size, n, generator=generator).bfloat16()
    expected = quant.get(codec).dequantize(quant.codec.Quantized(codes, scales)).bfloat16()
    packed, packed_scales = marlin.pack(codes, bits).cuda(), marlin.pack_scales(scales, k, group_size).cuda()
    found = cuda.dequantize(codec, packed, packed_scales, k, n, group_size)
    assert torch.equal(found.cpu(), expected)


@needs_library
def test_refuses_mxfp4():
    codes, scales = torch.zeros(1024, dtype=torch.int32), torch.zeros(256, dtype=torch.uint8)
    with pytest.raises(InputError, match="mxfp4 with groups of 32"):
        cuda.dequantize("mxfp4", codes, scales, 128, 64, 32)
    arguments = (codes.data_ptr(), scales.data_ptr(), 3, 128, 64, 32, codes.data_ptr(), None)
    assert cuda_library().krasis_cuda_dequantize(*arguments) == 2


@needs_library
def test_refuses_matrices_in_main_memory():
    codes = marlin.pack(torch.zeros(128, 64, dtype=torch.uint8), 4)
    with pytest.raises(InputError, match="on one GPU"):
        cuda.dequantize("int4", codes, torch.zeros(4, 64, dtype=torch.bfloat16), 128, 64, 32)


@needs_library
def test_refuses_a_size_that_does_not_match():
    with pytest.raises(InputError, match="do not match"):
        cuda.dequantize("int8", torch.zeros(7, dtype=torch.int32), torch.zeros(256, dtype=torch.bfloat16), 128, 64, 32)
