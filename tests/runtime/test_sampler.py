"""Sampling against a definition in plain Python."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from krasis.errors import UsageError
from krasis.runtime.sampler import Sampler, Sampling, filtered

LOGITS = st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=12)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 1.0),
)
# Closer to a threshold than this, rounding decides.
NEAR = 1e-9


def written_out(logits, sampling):
    """{token: probability}, or None where a token lies on a threshold."""
    weights = [math.exp((x - max(logits)) / sampling.temperature) for x in logits]
    ranked = sorted(((w / sum(weights), -i) for i, w in enumerate(weights)), reverse=True)
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
        ranked = [(p / sum(p for p, _ in ranked), i) for p, i in ranked]
    kept, mass = {}, 0.0
    for p, i in ranked:
        least = sampling.min_p * ranked[0][0]
        if abs(mass - sampling.top_p) < NEAR or (p < ranked[0][0] and abs(p - least) < NEAR):
            return None
        if mass < sampling.top_p and p >= least:
            kept[-i] = p
        mass += p
    return kept


@given(LOGITS, SAMPLINGS)
def test_filters_are_their_definition(logits, sampling):
    expected = written_out(logits, sampling)
    assume(expected is not None)
    found = filtered(torch.tensor(logits), sampling)
    assert {i: p for i, p in enumerate(found.tolist()) if p} == pytest.approx(expected, rel=1e-9)


@given(LOGITS, SAMPLINGS)
def test_what_is_drawn_was_kept(logits, sampling):
    token = int(Sampler(sampling)(torch.tensor(logits), 0))
    assert filtered(torch.tensor(logits), sampling)[token] > 0


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=40))
def test_greedy_takes_the_first_of_equals(logits):
    assert int(Sampler(Sampling())(torch.tensor(logits), 0)) == logits.index(max(logits))


def draws(count, **settings):
    sampler, logits = Sampler(Sampling(**settings)), torch.tensor([2.0, 1.0, 0.0, -1.0])
    return [int(sampler(logits, position)) for position in range(count)]


def test_a_seed_repeats_its_draws():
    assert draws(100, temperature=1.0, seed=7) == draws(100, temperature=1.0, seed=7)
    assert draws(100, temperature=1.0, seed=7) != draws(100, temperature=1.0, seed=8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_probabilities(temperature):
    expected = (torch.tensor([2.0, 1.0, 0.0, -1.0]) / temperature).softmax(0)
    found = torch.bincount(torch.tensor(draws(4000, temperature=temperature)), minlength=4) / 4000
    # Four standard deviations of a share near one half are 0.032.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.032)


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 1e-320])
def test_no_temperature_is_too_low(temperature):
    assert set(draws(50, temperature=temperature)) == {0}


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": math.nan}, "--temperature"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"min_p": -0.1}, "--min-p"),
        ({"min_p": 1.5}, "--min-p"),
        ({"seed": -1}, "--seed"),
        ({"seed": 1 << 64}, "--seed"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting, flag):
    with pytest.raises(UsageError, match=f"^{flag} is"):
        Sampling(**setting)
