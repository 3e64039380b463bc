"""Attention on the GPU, held against the reference over the rows that the cache stands for.

Scores are float32 sums of exact products of bfloat16. Weights are rounded to bfloat16 before they meet the values, by
up to 2^-9 of each, and so are results: of means of values of up to 4, 2^-7 is never reached.
"""

import pytest
import torch
from cuda_devices import on_devices
from test_cuda_ops import at, new_cache, random

from krasis.errors import InputError
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
    assert split_count(1, 64, 4, 10_000) == 66
    assert split_count(1, 16, 1, 10_000) == 256
    assert split_count(1, 8, 8, 32) == 1
    assert split_count(200, 16, 1, 10_000) == 1


def test_refuses_keys_of_other_heads():
    cache = new_cache("bf16", 8, 2, 32, "cpu")
    with pytest.raises(InputError, match="q "):
        attention_few(torch.zeros(1, 4, 64, dtype=torch.bfloat16), cache, cache, 1.0, at(0, "cpu"))
