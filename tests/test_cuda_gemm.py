"""Products with packed matrices on the device, held against float32 products of the same weights."""

import pytest
import torch
from cuda_devices import DEVICES, on_devices

from krasis import quant
from krasis.errors import InputError, KrasisError
from krasis.layout import marlin
from krasis.native.cuda.gemm import Form, Product, Products, Scratch, linear, linear_few
from krasis.quant.codec import Quantized

CODECS = ["int4", "int8", "mxfp4"]
TILES = ["32x256", "64x256", "128x256"]
GROUPS = {"int4": (32, 64, 128), "int8": (32, 64, 128), "mxfp4": (32,)}
# Sums of float32 in another order, and bfloat16 results, which are rounded to 2^-9 of themselves.
SUMS = {"rtol": 1e-4, "atol": 1e-4}
ROUNDED = {"rtol": 2**-8, "atol": 1e-4}


def made(codec, k, n, group, device, seed=0):
    """A random matrix whose products with standard normal x are about 1: its form, tensors, and float32 [n, k]."""
    generator = torch.Generator().manual_seed(seed + k + n)
    bits = quant.get(codec).BITS
    codes = torch.randint(0, 1 << bits, (k, n), dtype=torch.uint8, generator=generator)
    if codec == "mxfp4":
        scales = torch.randint(119, 123, (k // group, n), dtype=torch.uint8, generator=generator)
    else:
        size = k**-0.5 / (1 << bits - 2)
        scales = (torch.randn(k // group, n, generator=generator) * size).bfloat16()
    weight = quant.get(codec).dequantize(Quantized(codes, scales))
    packed, packed_scales = marlin.pack(codes, bits), marlin.pack_scales(scales, k, group)
    return Form(codec, k, n, group), packed.to(device), packed_scales.to(device), weight


def rounded(weight):
    """As the kernels for many rows round weights."""
    return weight.bfloat16().float()


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected_of(weight, x, n_out, parts=1, bias=None):
    """x bfloat16 [m, k_in] times the logical rows of `weight`, in float32. For many rows, round weights first."""
    rows = weight.view(parts, -1, weight.shape[1])[:, : n_out // parts].flatten(0, 1)
    y = x.float().cpu() @ rows[:, : x.shape[1]].t()
    return y if bias is None else y + bias.cpu()


def close(found, expected, **tolerance):
    torch.testing.assert_close(found.float().cpu(), expected, **tolerance)


@on_devices
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("m", [1, 130])
def test_many_rows(codec, tile, m, device):
    form, codes, scales, weight = made(codec, 192, 256, 32, device)
    x = normal(m, 192).bfloat16()
    products = Products([Product(form, codes, scales, 256)])
    y = linear(products, x.to(device), torch.empty(m, 256, device=device), tile)
    close(y, expected_of(rounded(weight), x, 256), **SUMS)


@on_devices
def test_more_rows_than_blocks_side_by_side(device):
    form, codes, scales, weight = made("int4", 64, 384, 32, device)
    x = normal(1100, 64).bfloat16()
    y = linear(
        Products([Product(form, codes, scales, 384)]), x.to(device), torch.empty(1100, 384, device=device), "64x256"
    )
    close(y, expected_of(rounded(weight), x, 384), **SUMS)


@on_devices
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("k", "n"), [(128, 64), (64, 128), (256, 320), (384, 128)])
def test_every_group_size(codec, k, n, device):
    x = normal(7, k).bfloat16()
    for group in GROUPS[codec]:
        if k % group:
            continue
        form, codes, scales, weight = made(codec, k, n, group, device)
        products = Products([Product(form, codes, scales, n)])
        many = linear(products, x.to(device), torch.empty(7, n, device=device))
        close(many, expected_of(rounded(weight), x, n), **SUMS)
        few = linear_few(products, x.to(device), torch.empty(7, n, device=device), Scratch(device))
        close(few, expected_of(weight, x, n), **SUMS)


@on_devices
@pytest.mark.parametrize("m", [1, 7, 8])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("fixed", [True, False])
def test_few_rows(fixed, codec, m, device):
    # Deep enough that blocks split k.
    form, codes, scales, weight = made(codec, 2048, 128, 32, device)
    x, scratch = normal(m, 2048).bfloat16(), Scratch(device)
    products = Products([Product(form, codes, scales, 128)], fixed=fixed)
    scratch.partials.fill_(float("nan"))
    for blocks in (1, 3, 132):
        y = linear_few(products, x.to(device), torch.empty(m, 128, device=device), Scratch(device, blocks))
        close(y, expected_of(weight, x, 128), **SUMS)
    for dtype, tolerance in ((torch.float32, SUMS), (torch.bfloat16, ROUNDED)):
        y = linear_few(products, x.to(device), torch.empty(m, 128, dtype=dtype, device=device), scratch)
        close(y, expected_of(weight, x, 128), **tolerance)
    held = normal(m, 128, seed=2)
    expected = held + expected_of(weight, x, 128)
    close(linear_few(products, x.to(device), held.to(device), scratch, add=True), expected, **SUMS)
    assert not scratch.counters.any()


@on_devices
@pytest.mark.parametrize("few", [True, False])
def test_matrices_side_by_side_with_padding_parts_and_bias(few, device):
    """As attention of gpt-oss's tiny checkpoint and a gated MLP have them; x and y are columns of wider tensors."""
    bias = normal(96, seed=3).to(device)
    made_of = [
        made("int8", 256, 128, 128, device),
        made("int4", 256, 256, 64, device),
        made("int8", 256, 64, 32, device),
    ]
    columns = [(96, 1, bias), (202, 2, None), (64, 1, None)]
    chosen = [
        Product(form, codes, scales, n_out, parts, bias)
        for (form, codes, scales, _), (n_out, parts, bias) in zip(made_of, columns, strict=True)
    ]
    x = normal(5, 224).bfloat16()
    wide = torch.full((5, 256), float("nan"), dtype=torch.bfloat16, device=device)
    wide[:, :224] = x.to(device)
    weights = [m[3] if few else rounded(m[3]) for m in made_of]
    expected = [expected_of(weight, x, *c) for weight, c in zip(weights, columns, strict=True)]
    out = torch.full((5, 400), 7.0, dtype=torch.bfloat16, device=device)
    if few:
        linear_few(Products(chosen), wide[:, :224], out[:, :362], Scratch(device))
    else:
        linear(Products(chosen), wide[:, :224], out[:, :362], "64x256")
    close(out[:, :362], torch.cat(expected, 1), **ROUNDED)
    assert (out[:, 362:] == 7).all()


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("k", "n", "n_out"), [(2880, 2944, 2880), (2048, 12288, 12288), (4096, 2048, 2048)])
def test_real_shapes(codec, k, n, n_out, device):
    form, codes, scales, weight = made(codec, k, n, 32, device)
    products = Products([Product(form, codes, scales, n_out)])
    x = normal(1000, k).bfloat16()
    expected = expected_of(rounded(weight), x, n_out)
    for tile in TILES:
        close(linear(products, x.to(device), torch.empty(1000, n_out, device=device), tile), expected, **SUMS)
    expected = expected_of(weight, x[:8], n_out)
    for m in range(1, 9):
        y = linear_few(products, x[:m].to(device), torch.empty(m, n_out, device=device), Scratch(device))
        close(y, expected[:m], **SUMS)


@on_devices
def test_refuses_what_it_cannot_do(device):
    form, codes, scales, _ = made("int4", 256, 64, 32, device)
    with pytest.raises(InputError, match="bytes"):
        Product(form, codes[:-1], scales, 64)
    with pytest.raises(InputError, match="bf16"):
        Form("bf16", 128, 64, 32)
    products = Products([Product(form, codes, scales, 64)])
    x = torch.zeros(9, 256, dtype=torch.bfloat16, device=device)
    with pytest.raises(InputError, match="an output"):
        linear(products, x, torch.empty(9, 63, device=device))
    with pytest.raises(InputError, match="x "):
        linear(products, x.float(), torch.empty(9, 64, device=device))
    with pytest.raises(KrasisError, match="range"):
        linear_few(products, x, torch.empty(9, 64, device=device), Scratch(device))
    wrong = Products([Product(Form("int4", 256, 64, 256), codes, scales[:1], 64)])
    with pytest.raises(KrasisError, match="group size"):
        linear(wrong, x, torch.empty(9, 64, device=device))
