"""The routed sum: one token or many, in whatever order experts were chosen."""

import pytest
import torch

from krasis.models.blocks.mlp import swiglu
from krasis.pack.reader import Pack
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.experts import RoutedExperts
from krasis.runtime.reference import ReferenceBackend
from krasis.runtime.weights import PackWeights

EXPERTS, TOP_K, HIDDEN = 16, 4, 256


def routed(tokens):
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(tokens)])
    weights = torch.rand(tokens, TOP_K, generator=generator)
    return torch.randn(tokens, HIDDEN, generator=generator), ids, weights


def elementwise(loaded=None):
    """Experts that are cheap and exact for any number of tokens: w13 is (e + 1) x over x, w2 the identity."""

    def load(expert):
        if loaded is not None:
            loaded.append(expert)
        return lambda x: torch.cat(((expert + 1) * x, x), -1), lambda x: x

    return RoutedExperts(load, swiglu)


def test_the_sum_is_weighted_by_the_router():
    x, ids, weights = routed(9)
    expected = torch.stack(
        [
            sum(w * swiglu((e + 1) * row, row) for e, w in zip(chosen, shares, strict=True))
            for row, chosen, shares in zip(x, ids.tolist(), weights, strict=True)
        ]
    )
    torch.testing.assert_close(elementwise()(x, ids, weights), expected)


def test_the_order_of_slots_has_no_say():
    x, ids, weights = routed(9)
    assert torch.equal(elementwise()(x, ids.flip(1), weights.flip(1)), elementwise()(x, ids, weights))


def test_experts_nobody_chose_are_not_loaded_and_others_once():
    x, ids, weights = routed(2)
    loaded = []
    experts = elementwise(loaded)
    experts(x, ids, weights)
    experts(x, ids, weights)
    assert loaded == torch.unique(ids).tolist()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("layout", ["cpu", "marlin"])
def test_native_experts_give_a_token_the_same_in_any_batch(layout, bits, demo_pack):
    weights = PackWeights(Pack(demo_pack(expert_bits=bits)), CpuBackend(2), layout=layout)
    experts = weights.experts("layers.1.experts", swiglu)
    x, ids, shares = routed(33)
    alone = [experts(x[i : i + 1], ids[i : i + 1], shares[i : i + 1]) for i in range(len(x))]
    assert torch.equal(experts(x, ids, shares), torch.cat(alone))


@pytest.mark.parametrize("bits", [4, 8])
def test_native_experts_stay_near_the_reference(bits, demo_pack):
    pack = Pack(demo_pack(expert_bits=bits))
    x, ids, shares = routed(33)
    found, expected = (
        PackWeights(pack, backend).experts("layers.1.experts", swiglu)(x, ids, shares)
        for backend in (CpuBackend(2), ReferenceBackend())
    )
    # Activations are rounded to 8 bits twice, each time by some 0.5% of their root mean square.
    assert (found - expected).norm() < 0.02 * expected.norm()
