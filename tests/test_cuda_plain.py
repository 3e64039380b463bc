"""Products with matrices that are not packed, and routers, held against float32 products of the same weights."""

import pytest
import torch
from cuda_devices import on_devices

from krasis.errors import InputError, KrasisError
from krasis.models.ops import Routing, TorchOps
from krasis.native.cuda.gemm import Scratch
from krasis.native.cuda.plain import choose, each_head, plain, takes

# Sums of float32 in another order, and bfloat16 results, which are rounded to 2^-9 of themselves.
SUMS = {"rtol": 1e-4, "atol": 1e-4}
ROUNDED = {"rtol": 2**-8, "atol": 1e-4}
DTYPES = [torch.float32, torch.bfloat16]


def random(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def weights_of(*shape, dtype=torch.bfloat16):
    """Products of these with standard normal x are about 1."""
    return (random(*shape, dtype=torch.float32) / shape[-1] ** 0.5).to(dtype)


@on_devices
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "n", "k"), [(1, 64, 2048), (8, 3, 2088), (3, 130, 8), (2, 33, 136), (5, 7, 248)])
@pytest.mark.parametrize("fixed", [True, False])
def test_plain(fixed, tokens, n, k, dtype, device):
    weight, x = weights_of(n, k, dtype=dtype), random(tokens, k + 8)[:, :k]
    expected = x.float() @ weight.float().T
    for kind, tolerance in ((torch.float32, SUMS), (torch.bfloat16, ROUNDED)):
        out = torch.full((tokens, n + 1), 7.0, dtype=kind, device=device)
        plain(weight.to(device), x.to(device), out[:, :n], fixed=fixed)
        torch.testing.assert_close(out[:, :n].cpu().float(), expected, **tolerance)
        assert (out[:, n] == 7).all()


@on_devices
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "n", "k", "rest"), [(1, 4, 64, 32, 16), (8, 2, 24, 128, 0), (3, 3, 12, 520, 40)]
)
def test_each_head_by_its_own_matrix(tokens, heads, n, k, rest, dtype, device):
    apart = torch.zeros(heads, n * k + 8, dtype=dtype)
    weights = apart[:, : n * k].view(heads, n, k)
    weights.copy_(weights_of(heads, n, k))
    x = random(tokens, heads, k + rest + 8)[..., : k + rest]
    found = each_head(apart.to(device)[:, : n * k].view(heads, n, k), x.to(device))
    expected = torch.einsum("thk,hnk->thn", x[..., :k].float(), weights.float())
    torch.testing.assert_close(found[..., :n].cpu().float(), expected, **ROUNDED)
    assert torch.equal(found[..., n:].cpu(), x[..., k:])


@on_devices
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "logits"])
@pytest.mark.parametrize(("tokens", "experts", "features", "k", "bias"), [(1, 3, 8, 3, False), (3, 100, 264, 4, True)])
def test_choose(tokens, experts, features, k, bias, scores, dtype, device):
    router, x, scratch = weights_of(experts, features, dtype=dtype), random(tokens, features), Scratch(device)
    added = random(experts, seed=1, dtype=torch.float32) / 4 if bias else None
    for normalize, scale in ((False, 1.0), (True, 2.5)):
        logits = x.float() @ router.float().T
        expected = TorchOps().route(logits, added, Routing(k, scores, normalize, scale))
        given = None if added is None else added.to(device)
        ids, weights = choose(router.to(device), x.to(device), given, k, scores, normalize, scale, scratch)
        assert torch.equal(ids.cpu().long(), expected[0])
        torch.testing.assert_close(weights.cpu(), expected[1], rtol=1e-4, atol=1e-6)
        assert not scratch.counters.any()


@on_devices
@pytest.mark.parametrize("experts", [192, 512])
def test_choose_of_many_experts(experts, device):
    router, x = weights_of(experts, 16), random(8, 16)
    expected = TorchOps().route(x.float() @ router.float().T, None, Routing(10, "softmax", True))
    found = choose(router.to(device), x.to(device), None, 10, "softmax", True, 1.0, Scratch(device), fixed=True)
    assert torch.equal(found[0].cpu().long(), expected[0])
    torch.testing.assert_close(found[1].cpu(), expected[1], rtol=1e-4, atol=1e-6)


@on_devices
def test_says_what_it_takes_and_refuses_the_rest(device):
    weight, x = weights_of(4, 24).to(device), random(2, 32).to(device)
    assert takes(weight, x[:, :24])
    assert takes(weight.float(), x[:, 8:])
    for other in (random(9, 24), random(2, 24).float(), random(2, 28)):
        assert not takes(weight, other.to(device)[:, :24])
    assert not takes(weight, x[:, 4:28])
    assert not takes(weights_of(4, 20).to(device), x[:, :20])
    assert not takes(weight.half(), x[:, :24])
    with pytest.raises(InputError, match="an output"):
        plain(weight, x, torch.empty(2, 4, device=device))
    with pytest.raises(InputError, match="24 or more"):
        each_head(weight[None], x[:, None, :16])
    with pytest.raises(KrasisError, match="aligned"):
        plain(weight, x[:, 4:28], torch.empty(2, 4, device=device))
