"""What the cache keeps, how exactly, and for how many tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krasis.errors import FitError
from krasis.runtime.kv_cache import KvCache, kv_bytes


def kept(kind, keys, values):
    """What attention is given after the cache stored these."""
    found = {}

    def attention(q, k, v, scale):
        found["k"], found["v"] = k.float(), v.float()
        return q

    cache = KvCache([tuple(keys.shape[1:])], len(keys), kind, attention)
    cache.attend(0, keys, keys, values, 1.0)
    return found["k"], found["v"]


def wide(seed):
    """Vectors whose magnitudes differ by six orders."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.logspace(-3, 3, 50)[:, None, None]
    return torch.randn(50, 3, 16, generator=generator) * size


def test_float32_keeps_every_bit():
    k, v = wide(0), wide(1)
    found = kept("f32", k, v)
    assert torch.equal(found[0], k)
    assert torch.equal(found[1], v)


def test_bfloat16_is_rounded_to_nearest():
    k, v = wide(0), wide(1)
    for found, given_ in zip(kept("bf16", k, v), (k, v), strict=True):
        # 8 bits of significand: half a step is 2^-9 of the number's power of two.
        assert ((found - given_).abs() <= given_.abs() * 2**-8).all()
        assert not torch.equal(found, given_)


def test_fp8_scales_every_token_and_head_by_itself():
    k, v = wide(0), wide(1)
    for found, given_ in zip(kept("fp8", k, v), (k, v), strict=True):
        # e4m3: half a step is 2^-4 of a normal number, 2^-10 of the scale below them; the scale is peak / 448.
        peak = given_.abs().amax(-1, keepdim=True)
        assert ((found - given_).abs() <= given_.abs() * 2**-4 + peak / 448 * 2**-10).all()


def test_zeros_stay_zeros():
    for kind in ("f32", "bf16", "fp8"):
        found = kept(kind, torch.zeros(3, 2, 4), torch.zeros(3, 2, 4))
        assert not found[0].any()
        assert not found[1].any()


def test_a_sequence_past_the_capacity_is_refused():
    cache = KvCache([(1, 2)], 4, "f32", lambda q, k, v, scale: q)
    x = torch.ones(4, 1, 2)
    cache.attend(0, x, x, x, 1.0)
    cache.position = 4
    with pytest.raises(FitError, match=r"needs 5 positions.*at most 4"):
        cache.attend(0, x[:1], x[:1], x[:1], 1.0)


def test_rewinding_forgets_what_came_after():
    cache = KvCache([(1, 1)], 4, "f32", lambda q, k, v, scale: k)
    one, two = torch.ones(3, 1, 1), torch.full((1, 1, 1), 2.0)
    cache.attend(0, one, one, one, 1.0)
    cache.position = 1
    assert cache.attend(0, two, two, two, 1.0).flatten().tolist() == [1, 2]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=4),
    capacity=st.integers(1, 50),
    kind=st.sampled_from(["f32", "bf16", "fp8"]),
)
def test_planned_bytes_are_those_allocated(shapes, capacity, kind):
    cache = KvCache(shapes, capacity, kind, lambda q, k, v, scale: q)
    stores = (*cache._keys, *cache._values)
    tensors = [t for store in stores for t in vars(store).values() if isinstance(t, torch.Tensor)]
    assert sum(t.untyped_storage().nbytes() for t in tensors) == kv_bytes(shapes, capacity, kind)
