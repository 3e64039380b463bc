"""Attention against the formula written out in float64, and cut into chunks."""

import math

import pytest
import torch

from krasis.runtime.attention import fused_attention, reference_attention
from krasis.runtime.kv_cache import KvCache

both = pytest.mark.parametrize("attention", [reference_attention, fused_attention], ids=["reference", "fused"])
SCALE = 0.3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def written_out(q, k, v):
    q, k, v = (t.double().tolist() for t in (q, k, v))
    share, offset = len(q[0]) // len(k[0]), len(k) - len(q)
    out = []
    for i, heads in enumerate(q):
        out.append([])
        for h, query in enumerate(heads):
            seen = range(offset + i + 1)
            scores = [math.exp(SCALE * dot(query, k[j][h // share])) for j in seen]
            columns = zip(*(v[j][h // share] for j in seen), strict=True)
            out[-1].append([dot(scores, column) / sum(scores) for column in columns])
    return torch.tensor(out)


@both
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize(("tokens", "length"), [(1, 1), (1, 9), (5, 5), (3, 8)])
def test_attention_is_the_formula(attention, heads, kv_heads, tokens, length):
    q, k, v = normal(tokens, heads, 6), normal(length, kv_heads, 6, seed=1), normal(length, kv_heads, 6, seed=2)
    torch.testing.assert_close(attention(q, k, v, SCALE), written_out(q, k, v).float(), rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("sizes", [(100,), (1,) * 100, (1, 63, 36), (64, 1, 35), (63, 2, 35)], ids=str)
def test_chunks_give_what_the_whole_gives(attention, sizes):
    q, k, v = normal(100, 8, 16), normal(100, 2, 16, seed=1), normal(100, 2, 16, seed=2)
    cache, pieces = KvCache([(2, 16)], 100, "f32", attention), []
    for parts in zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        pieces.append(cache.attend(0, *parts, SCALE))
        cache.position += len(parts[0])
    torch.testing.assert_close(torch.cat(pieces), reference_attention(q, k, v, SCALE), rtol=1e-5, atol=1e-6)


@both
def test_the_future_has_no_say(attention):
    q, k, v = normal(8, 4, 16), normal(8, 2, 16, seed=1), normal(8, 2, 16, seed=2)
    before = attention(q, k, v, SCALE)
    k[5:], v[5:] = 1e4, -1e4
    torch.testing.assert_close(attention(q, k, v, SCALE)[:5], before[:5], rtol=1e-6, atol=1e-7)
