"""Products as families ask the GPU for them, of few rows and of many, held against float32 products."""

import pytest
import torch
from cuda_devices import on_devices
from test_cuda_gemm import ROUNDED, SUMS, close, expected_of, made, normal
from test_cuda_plain import random, weights_of

from krasis.models.blocks.linear import biased
from krasis.models.family import add_product
from krasis.models.ops import Routing, TorchOps
from krasis.native.cuda.gemm import Product, Scratch
from krasis.runtime.cuda.heads import DeviceHeads
from krasis.runtime.cuda.linear import PackedLinear, PlainLinear
from krasis.runtime.cuda.ops import CudaOps

FEW, MANY = 3, 11
SIZES = (96, 128)


@pytest.fixture
def packed(device):
    """(wide) -> a product with two matrices, int8 and int4, whose weights bfloat16 has, and their weights."""

    def make(wide):
        parts = [made(codec, 256, 128, 64, device) for codec in ("int8", "int4")]
        products = [Product(form, codes, scales, n) for (form, codes, scales, _), n in zip(parts, SIZES, strict=True)]
        weight = torch.cat([part[3][:n] for part, n in zip(parts, SIZES, strict=True)])
        return PackedLinear(products, Scratch(device), wide=wide, fixed=True), weight

    return make


def expected(weight, x):
    return expected_of(weight if len(x) == FEW else weight.bfloat16().float(), x, len(weight))


@on_devices
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_packed_matrices_have_biases_of_their_own(tokens, packed, device):
    product, weight = packed(False)
    x, biases = normal(tokens, 256).bfloat16(), [normal(n, seed=n).bfloat16().to(device) for n in SIZES]
    close(product(x.to(device)), expected(weight, x), **ROUNDED)
    added = torch.cat(biases).float().cpu()
    close(biased(product, *biases)(x.to(device)), expected(weight, x) + added, **ROUNDED)
    close(product(x.to(device)), expected(weight, x), **ROUNDED)


@on_devices
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_packed_matrices_add_to_a_sum(tokens, packed, device):
    product, weight = packed(True)
    x, held = normal(tokens, 256).bfloat16(), normal(tokens, sum(SIZES), seed=2)
    out = held.clone().to(device)
    add_product(product, out, x.to(device))
    close(out, held + expected(weight, x), **SUMS)


@on_devices
@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("k", [64, 68])
def test_plain_matrices_whether_kernels_take_them_or_not(k, tokens, device):
    weight, x, bias = weights_of(24, k), random(tokens, k), random(24, dtype=torch.float32)
    ops = CudaOps(torch.zeros(1, dtype=torch.int32, device=device))
    product = PlainLinear(weight.to(device), ops, Scratch(device), wide=True, fixed=True)
    logits = x.float() @ weight.float().T
    close(product(x.to(device)), logits, **SUMS)
    routing = Routing(3, "sigmoid", True, 2.5)
    ids, weights = TorchOps().route(logits, bias, routing)
    found = product.choose(x.to(device), bias.to(device), routing)
    assert torch.equal(found[0].cpu().long(), ids)
    close(found[1], weights, rtol=1e-4, atol=1e-6)


@on_devices
@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("k", [32, 36])
def test_heads_leave_what_follows_as_it_is(k, tokens, device):
    weights, x = weights_of(4, 24, k).to(device), random(tokens, 4, k + 8)
    heads = DeviceHeads(list(weights), fixed=True)
    product = torch.einsum("thk,hnk->thn", x[..., :k].float(), weights.cpu().float())
    close(heads(x.to(device)[..., :k]), product, **ROUNDED)
    found = heads.leading(x.to(device))
    close(found[..., :24], product, **ROUNDED)
    assert torch.equal(found[..., 24:].cpu(), x[..., k:])
