"""The gated delta rule by chunks against token by token, and both against float64."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from krasis.models.blocks.delta_rule import CHUNK, FEW, chunked_delta_rule, delta_rule, recurrent_delta_rule

# Of float32 where values are about 1: 1.3e-6 was the worst of 4,000 cases.
TOLERANCE = 1e-5
FORMS = (recurrent_delta_rule, chunked_delta_rule)


def drawn(tokens, *, key_heads=3, shared=2, dk=20, dv=13, fade=0.1, seed=0):
    """Float64 inputs and a state; `fade` is about the decay of a token."""
    generator = torch.Generator().manual_seed(seed)
    heads = key_heads * shared

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (functional.normalize(normal(tokens, key_heads, dk), dim=-1) for _ in "qk")
    decay, beta = -fade * normal(tokens, heads).exp(), normal(tokens, heads).mul(2).sigmoid()
    return [q, k, normal(tokens, heads, dv), decay, beta, normal(heads, dk, dv)]


def run(form, inputs, dtype=torch.float32):
    """(output, state after it), of copies."""
    *inputs, state = (x.to(dtype).clone() for x in inputs)
    return form(*inputs, state), state


def assert_near(found, exact):
    for a, b in zip(found, exact, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= TOLERANCE * max(1, b.abs().max())


@settings(max_examples=100)
@given(
    tokens=st.integers(1, 200),
    key_heads=st.integers(1, 3),
    shared=st.integers(1, 3),
    dk=st.integers(1, 40),
    dv=st.integers(1, 40),
    fade=st.sampled_from([0.0, 1e-4, 0.1, 1.0, 30.0]),
    seed=st.integers(0, 1 << 30),
)
def test_both_forms_match_float64(tokens, key_heads, shared, dk, dv, fade, seed):
    inputs = drawn(tokens, key_heads=key_heads, shared=shared, dk=dk, dv=dv, fade=fade, seed=seed)
    exact = run(recurrent_delta_rule, inputs, torch.float64)
    for form in FORMS:
        assert_near(run(form, inputs), exact)


@settings(max_examples=50)
@given(cuts=st.lists(st.integers(0, 200), max_size=5), seed=st.integers(0, 1 << 30))
def test_a_sequence_may_be_cut_anywhere(cuts, seed):
    *inputs, state = drawn(200, seed=seed)
    exact = run(recurrent_delta_rule, [*inputs, state], torch.float64)
    state, borders = state.float(), sorted({0, *cuts, 200})
    parts = []
    for first, last in pairwise(borders):
        parts.append(delta_rule(*(x[first:last].float() for x in inputs), state))
    assert_near((torch.cat(parts), state), exact)


@pytest.mark.parametrize("tokens", [1, FEW, FEW + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7])
@pytest.mark.parametrize("form", FORMS)
def test_lengths_about_a_chunk(form, tokens):
    inputs = drawn(tokens)
    assert_near(run(form, inputs), run(recurrent_delta_rule, inputs, torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_forgotten_leaves_weak_decays_as_they_are(form):
    """A running sum of float32 would round the weak ones away."""
    inputs = drawn(150, fade=0.01)
    inputs[3][::9] = -5000.0
    assert_near(run(form, inputs), run(recurrent_delta_rule, inputs, torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_keys_that_repeat_are_overwritten(form):
    """The hardest system: every token rewrites what the one before it wrote."""
    q, k, v, decay, beta, state = drawn(150)
    inputs = [q, k[:1].expand_as(k), v, torch.zeros_like(decay), torch.ones_like(beta), state]
    out, after = run(form, inputs)
    assert_near((out, after), run(recurrent_delta_rule, inputs, torch.float64))
    held = (k[0].repeat_interleave(2, dim=0)[:, None].float() @ after)[:, 0]
    torch.testing.assert_close(held, v[-1].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_one_token_by_hand(form):
    """dk = dv = 1: the state 3 fades to 1.5, is read by key 1, moves a quarter of the way to 5.5 and is read by 2."""
    one = torch.ones(1, 1, 1)
    state = torch.full((1, 1, 1), 3.0)
    out = form(2 * one, one, 5.5 * one, torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]), state)
    assert state.item() == pytest.approx(2.5)
    assert out.item() == pytest.approx(5.0)
