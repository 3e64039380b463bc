"""Attention on the GPU, held against the reference over the rows that the cache stands for.

Scores are float32 sums of exact products of bfloat16. Weights are rounded to bfloat16 before they meet the values, by
up to 2^-9 of each, and so are results: of means of values of up to 4, 2^-7 is never reached.
"""

import pytest
import torch
from cuda_devices import on_devices
from test_cuda_ops import at, new_cache, random, table

from krasis.errors import InputError, KrasisError
from krasis.native.cuda import ops
from krasis.native.cuda.attention import attention_few, attention_many, split_count, widen
from krasis.runtime.attention import reference_attention

CLOSE = {"rtol": 2**-7, "atol": 2**-7}


def rows_of(cache):
    values = cache.values.cpu().float()
    return values if cache.scales is None else values * cache.scales.cpu()[..., None]


def filled(kind, length, capacity, heads, dim, device, seed=0):
    """A cache of `capacity` that `length` positions went through, and what is read from it, position by position."""
    cache, x = new_cache(kind, capacity, heads, dim, device), random(length, heads, dim, seed=seed)
    for first in range(0, length, capacity):
        ops.store(x[first : first + capacity].to(device), cache, at(first, device))
    kept = rows_of(cache)
    seen = torch.stack([kept[p % capacity] for p in range(length)])
    return cache, seen


def check(found, q, k, v, scale, window=0, sinks=None):
    expected = reference_attention(q.float(), k, v, scale, window, sinks)
    torch.testing.assert_close(found.cpu().float(), expected, **CLOSE)


SHAPES = [
    # tokens, heads, kv heads, dim, length
    (1, 4, 2, 32, 1),
    (1, 8, 2, 16, 70),
    (3, 12, 2, 64, 131),
    (1, 16, 1, 128, 200),
    (2, 4, 4, 256, 90),
]


@on_devices
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "length"), SHAPES)
def test_few(tokens, heads, kv_heads, dim, length, kind, device):
    q = random(tokens, heads, dim) * 2
    k, keys = filled(kind, length, length + 150, kv_heads, dim, device)
    v, values = filled(kind, length, length + 150, kv_heads, dim, device, seed=1)
    found = attention_few(q.to(device), k, v, dim**-0.5, at(length - tokens, device))
    check(found, q, keys, values, dim**-0.5)


@on_devices
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
@pytest.mark.parametrize(
    ("tokens", "window", "capacity", "length"), [(1, 64, 64, 150), (4, 24, 40, 333), (2, 64, 70, 9)]
)
def test_few_with_window_and_sinks(tokens, window, capacity, length, kind, device):
    q, sinks = random(tokens, 8, 64), random(8).float()
    k, keys = filled(kind, length, capacity, 2, 64, device)
    v, values = filled(kind, length, capacity, 2, 64, device, seed=1)
    found = attention_few(q.to(device), k, v, 0.125, at(length - tokens, device), window, sinks.to(device))
    check(found, q, keys, values, 0.125, window, sinks)


@on_devices
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
@pytest.mark.parametrize(("tokens", "heads", "rank", "rope"), [(2, 3, 64, 16), (1, 16, 512, 64)])
def test_few_over_latents(tokens, heads, rank, rope, kind, device):
    length, scale = 75, (rank + rope) ** -0.5
    q = random(tokens, heads, rank + rope)
    cache, rows = filled(kind, length, 100, 1, rank + rope, device)
    found = attention_few(q.to(device), cache, cache, scale, at(length - tokens, device), v_dim=rank)
    check(found, q, rows, rows[..., :rank], scale)


@on_devices
def test_few_reads_columns_of_a_wider_matrix(device):
    both = random(1, 4 * 32 + 64)
    k, keys = filled("bf16", 40, 64, 2, 32, device)
    q = both.to(device)[:, : 4 * 32].view(1, 4, 32)
    check(attention_few(q, k, k, 0.2, at(39, device), v_dim=32), both[:, :128].view(1, 4, 32), keys, keys, 0.2)


@on_devices
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim", "v_dim", "length"),
    [
        (5, 2, 1, 32, 32, 5),
        (70, 2, 2, 48, 32, 70),
        (65, 2, 1, 128, 128, 150),
        (9, 1, 1, 192, 128, 60),
        (70, 2, 1, 144, 80, 100),
        (20, 2, 1, 256, 256, 50),
    ],
)
def test_many(tokens, heads, kv_heads, dim, v_dim, length, device):
    q, k, v = random(tokens, heads, dim) * 2, random(length, kv_heads, dim), random(length, kv_heads, v_dim, seed=1)
    found = attention_many(*(x.to(device) for x in (q, k, v)), dim**-0.5, at(length - tokens, device))
    check(found, q, k.float(), v.float(), dim**-0.5)


@on_devices
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_many_with_window_and_sinks(kind, device):
    tokens, window, length, capacity = 80, 30, 200, 109
    q, sinks = random(tokens, 4, 64), random(4).float()
    k, keys = filled(kind, length, capacity, 2, 64, device)
    v, values = filled(kind, length, capacity, 2, 64, device, seed=1)
    position, wide = at(length - tokens, device), (k.values, v.values)
    if kind == "fp8":
        wide = [widen(c, position, tokens, window, c.values.to(torch.bfloat16)) for c in (k, v)]
        # Products with scales are rounded to bfloat16.
        keys, values = keys.bfloat16(), values.bfloat16()
    found = attention_many(q.to(device), *wide, 0.125, position, window, sinks.to(device))
    check(found, q, keys, values, 0.125, window, sinks)


@on_devices
def test_many_as_few(device):
    k, _ = filled("bf16", 90, 128, 2, 64, device)
    v, _ = filled("bf16", 90, 128, 2, 64, device, seed=1)
    q, position = random(8, 4, 64).to(device), at(82, device)
    found = attention_few(q, k, v, 0.125, position)
    torch.testing.assert_close(found, attention_many(q, k.values, v.values, 0.125, position), **CLOSE)


@on_devices
def test_does_not_depend_on_the_number_of_splits(device):
    k, keys = filled("bf16", 300, 300, 1, 32, device)
    q = random(1, 2, 32)
    few = attention_few(q.to(device), k, k, 0.2, at(299, device), v_dim=32)
    check(few, q, keys, keys, 0.2)
    again = attention_few(q.to(device), k, k, 0.2, at(299, device), v_dim=32)
    assert torch.equal(few, again)


def test_splits():
    assert split_count(1, 64, 4, 128, 10_000) == 66
    assert split_count(1, 64, 8, 64, 10_000) == 66
    assert split_count(1, 16, 1, 576, 10_000) == 256
    assert split_count(1, 8, 8, 64, 32) == 1
    assert split_count(200, 16, 1, 576, 10_000) == 1


def test_refuses_keys_of_other_heads():
    cache = new_cache("bf16", 8, 2, 32, "cpu")
    q, v = torch.zeros(1, 4, 64, dtype=torch.bfloat16), torch.zeros(8, 3, 64, dtype=torch.bfloat16)
    with pytest.raises(InputError, match="q "):
        attention_few(q, cache, cache, 1.0, at(0, "cpu"))
    with pytest.raises(InputError, match="q "):
        attention_many(q, cache.values, v, 1.0, at(0, "cpu"))
    with pytest.raises(InputError, match="side by side"):
        attention_few(torch.zeros(1, 32, 4, dtype=torch.bfloat16).mT, cache, cache, 1.0, at(0, "cpu"))
    with pytest.raises(InputError, match="out is "):
        widen(new_cache("fp8", 8, 2, 32, "cpu"), at(0, "cpu"), 1, 0, v)


@on_devices
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(3, 2, 32), (2, 1, 20), (1, 1, 264)])
def test_refuses_shapes_out_of_range(heads, kv_heads, dim, device):
    q, k = random(1, heads, dim).to(device), new_cache("bf16", 8, kv_heads, dim, device)
    v = new_cache("bf16", 8, kv_heads, dim, device)
    with pytest.raises(KrasisError, match="out of range"):
        attention_few(q, k, v, 1.0, at(0, device))
    with pytest.raises(KrasisError, match="out of range"):
        attention_many(q, k.values, v.values, 1.0, at(0, device))


@on_devices
def test_refuses_what_is_not_aligned(device):
    cache = new_cache("bf16", 8, 1, 32, device)
    q = torch.zeros(33, dtype=torch.bfloat16, device=device)[1:].view(1, 1, 32)
    with pytest.raises(KrasisError, match="aligned"):
        attention_few(q, cache, cache, 1.0, at(0, device), v_dim=32)
    with pytest.raises(KrasisError, match="aligned"):
        attention_many(q, cache.values, cache.values, 1.0, at(0, device))


@on_devices
def test_a_captured_token_follows_the_position(device):
    if device == "cpu":
        pytest.skip("graphs are captured on a GPU")
    heads, kv_heads, dim, steps = 4, 2, 64, 5
    angles = table(dim // 2, device)
    qkv, logits = random(steps, (heads + 2 * kv_heads) * dim).to(device), random(99).float().to(device)

    def token(x, position, caches):
        ops.turn_heads(x, (heads, kv_heads), dim, angles, None, 0.0, position, caches)
        out = attention_few(x[:, : heads * dim].view(1, heads, dim), *caches, 0.125, position)
        ops.greatest(logits, torch.empty(1, dtype=torch.int32, device=device), position)
        return out

    expected_caches = tuple(new_cache("bf16", 8, kv_heads, dim, device) for _ in range(2))
    expected = [token(qkv[i : i + 1].clone(), at(i, device), expected_caches) for i in range(steps)]

    caches = tuple(new_cache("bf16", 8, kv_heads, dim, device) for _ in range(2))
    x, position, graph = qkv[:1].clone(), at(0, device), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = token(x, position, caches)
    position.zero_()
    for i in range(steps):
        x.copy_(qkv[i : i + 1])
        graph.replay()
        assert torch.equal(out, expected[i])
    assert position.item() == steps


REAL = [(1, 16, 2, 256, 0), (1, 64, 4, 128, 0), (4, 64, 8, 64, 128), (1, 64, 8, 64, 0)]


@on_devices
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "window"), REAL)
def test_few_at_real_shapes(tokens, heads, kv_heads, dim, window, kind, device):
    if device == "cpu":
        pytest.skip("takes long where the device is emulated")
    length, q = 10_000, random(tokens, heads, dim)
    caches = [filled(kind, length, length, kv_heads, dim, device, seed=seed) for seed in (0, 1)]
    (k, keys), (v, values) = caches
    found = attention_few(q.to(device), k, v, dim**-0.5, at(length - tokens, device), window)
    check(found, q, keys, values, dim**-0.5, window)


@on_devices
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "v_dim", "window"),
    [(4, 1, 128, 128, 0), (2, 1, 256, 256, 0), (2, 2, 192, 128, 0), (8, 1, 64, 64, 128)],
)
def test_many_at_real_lengths(heads, kv_heads, dim, v_dim, window, device):
    if device == "cpu":
        pytest.skip("takes long where the device is emulated")
    tokens, length = 1500, 4096
    q, k, v = random(tokens, heads, dim), random(length, kv_heads, dim), random(length, kv_heads, v_dim, seed=1)
    found = attention_many(*(x.to(device) for x in (q, k, v)), dim**-0.5, at(length - tokens, device), window)
    check(found, q, k.float(), v.float(), dim**-0.5, window)
