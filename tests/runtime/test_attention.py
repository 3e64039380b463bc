"""Attention against the formula written out in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krasis.runtime.attention import fast_attention, reference_attention

both = pytest.mark.parametrize("attention", [reference_attention, fast_attention], ids=["reference", "fast"])
SCALE = 0.3
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def written_out(q, k, v, window=0, sinks=None):
    """One score, one exponential, one sum at a time."""
    q, k, v = (t.double().tolist() for t in (q, k, v))
    share, offset = len(q[0]) // len(k[0]), len(k) - len(q)
    out = []
    for i, heads in enumerate(q):
        out.append([])
        for h, query in enumerate(heads):
            last = offset + i
            seen = range(max(last - window + 1, 0) if window else 0, last + 1)
            scores = [math.exp(SCALE * dot(query, k[j][h // share])) for j in seen]
            total = sum(scores) + (0 if sinks is None else math.exp(sinks[h]))
            columns = zip(*(v[j][h // share] for j in seen), strict=True)
            out[-1].append([dot(scores, column) / total for column in columns])
    return torch.tensor(out)


def inputs(tokens, length, heads, kv_heads, v_dim=6):
    return normal(tokens, heads, 6), normal(length, kv_heads, 6, seed=1), normal(length, kv_heads, v_dim, seed=2)


@both
@pytest.mark.parametrize("sunk", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("window", [0, 1, 2, 5, 8, 9, 30])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize(("tokens", "length"), [(1, 1), (1, 9), (5, 5), (3, 8), (2, 2)])
def test_attention_is_the_formula(attention, tokens, length, heads, kv_heads, window, sunk):
    q, k, v = inputs(tokens, length, heads, kv_heads)
    sinks = normal(heads, seed=3) * 3 if sunk else None
    expected = written_out(q, k, v, window, None if sinks is None else sinks.tolist()).float()
    torch.testing.assert_close(attention(q, k, v, SCALE, window, sinks), expected, **CLOSE)


@both
@pytest.mark.parametrize("v_dim", [1, 4, 9])
@pytest.mark.parametrize("tokens", [1, 4])
def test_values_may_have_another_size_than_keys(attention, tokens, v_dim):
    q, k, v = inputs(tokens, 7, 6, 2, v_dim)
    sinks = [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    expected = written_out(q, k, v, 3, sinks).float()
    torch.testing.assert_close(attention(q, k, v, SCALE, 3, torch.tensor(sinks)), expected, **CLOSE)


@given(
    tokens=st.integers(1, 40),
    before=st.integers(0, 40),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 4),
    dims=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    window=st.integers(0, 90),
    sunk=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_both_forms_agree(tokens, before, kv_heads, shared, dims, window, sunk, seed):
    q = normal(tokens, kv_heads * shared, dims[0], seed=seed)
    k, v = (normal(tokens + before, kv_heads, dim, seed=seed + i) for i, dim in enumerate(dims, 1))
    sinks = normal(kv_heads * shared, seed=seed + 3) * 5 if sunk else None
    fast, reference = (form(q, k, v, SCALE, window, sinks) for form in (fast_attention, reference_attention))
    torch.testing.assert_close(fast, reference, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sunk", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("window", [0, 1, 5, 700])
@pytest.mark.parametrize("tokens", [1, 1200])
def test_a_fused_block_that_sees_nothing_gives_no_nan(tokens, window, sunk, kind):
    # The kernel takes keys in blocks of some hundreds; the last tokens see no key of the first blocks.
    q, k, v = normal(tokens, 4, 16), normal(1300, 2, 16, seed=1).to(kind), normal(1300, 2, 16, seed=2).to(kind)
    sinks = normal(4, seed=3) if sunk else None
    fast, reference = (form(q, k, v, SCALE, window, sinks) for form in (fast_attention, reference_attention))
    torch.testing.assert_close(fast, reference, rtol=1e-4, atol=2e-6)


@both
@pytest.mark.parametrize("tokens", [1, 4])
def test_a_sink_above_all_leaves_nothing_and_one_below_all_everything(attention, tokens):
    q, k, v = inputs(tokens, 7, 4, 2)
    assert attention(q, k, v, SCALE, 0, torch.full((4,), 1e4)).abs().max() == 0
    alone = attention(q, k, v, SCALE)
    torch.testing.assert_close(attention(q, k, v, SCALE, 0, torch.full((4,), -1e4)), alone, **CLOSE)


@both
@pytest.mark.parametrize("window", [0, 3])
def test_the_future_has_no_say(attention, window):
    q, k, v = normal(8, 4, 16), normal(8, 2, 16, seed=1), normal(8, 2, 16, seed=2)
    before = attention(q, k, v, SCALE, window)
    k[5:], v[5:] = 1e4, -1e4
    torch.testing.assert_close(attention(q, k, v, SCALE, window)[:5], before[:5], rtol=1e-6, atol=1e-7)


@both
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_past_beyond_the_window_has_no_say(attention, tokens):
    q, k, v = normal(tokens, 4, 16), normal(8, 2, 16, seed=1), normal(8, 2, 16, seed=2)
    before = attention(q, k, v, SCALE, 3)
    k[: 8 - tokens - 2], v[: 8 - tokens - 2] = 1e4, -1e4
    torch.testing.assert_close(attention(q, k, v, SCALE, 3), before, rtol=1e-6, atol=1e-7)
