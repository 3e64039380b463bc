"""What a profile is worth beside other policies: by hand, and as laws that hold for any routing."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krasis.errors import InputError, UsageError
from krasis.heat.coverage import coverage
from krasis.heat.evaluation import SEEDED, Domain, Evaluation, Regained, _regained, evaluate
from krasis.heat.routing import Routing

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def routing(choices):
    """Of windows of choices for layers of 8 experts, the first choice of a token weighing 0.75, the second 0.25."""
    counts = {layer: np.zeros(8, np.int64) for layer in choices[0]}
    weights = {layer: np.zeros(8) for layer in choices[0]}
    for window in choices:
        for layer, ids in window.items():
            first, second = (np.bincount(choice, minlength=8) for choice in ids.T)
            counts[layer] += first + second
            weights[layer] += 0.75 * first + 0.25 * second
    return Routing(sum(len(window[min(window)]) for window in choices), counts, weights)


def domain(name, seed, tokens=40, skew=1.0):
    """Two layers, 1 and 4, of 8 experts, two a token, in two windows, of a popularity that `seed` decides."""
    rng = np.random.default_rng(seed)
    popular = {layer: rng.dirichlet(np.full(8, skew)) + 1e-6 for layer in (1, 4)}

    def windows():
        def ids(layer):
            return np.argsort(-(np.log(popular[layer]) + rng.gumbel(size=(tokens // 2, 8))), axis=1)[:, :2]

        return [{layer: ids(layer) for layer in (4, 1)} for _ in range(2)]

    trace = windows()
    return Domain(name, routing(windows()), routing(trace), trace)


BYTES = {1: 100, 4: 100}


@given(st.integers(0, 999), st.integers(1, 3), st.sampled_from([0.1, 1.0, 10.0]))
@settings(max_examples=25, deadline=None)
def test_laws_of_every_share(seed, count, skew):
    domains = [domain(f"text {i}", seed + 1000 * i, skew=skew) for i in range(count)]
    found = evaluate(domains, BYTES, SHARES)
    for scored in (found.together, *found.domains, *found.transfers):
        before = None
        for at in scored.shares:
            scores = at.policies
            assert scores["uniform"].pairs == at.slots / 16
            assert scores["oracle"].pairs >= scores["profile"].pairs
            for name, score in scores.items():
                # Two layers of two experts of 100 bytes a token.
                assert score.bytes_per_token == pytest.approx(400 * (1 - score.pairs)), name
                assert before is None or score.pairs >= before[name].pairs, name
            before = scores
        assert all(scored.shares[0].policies[name].pairs == 0 for name in before)
        assert all(before[name].pairs == 1 for name in ("profile", "oracle", "uniform", *SEEDED))


def test_every_window_of_a_trace_counts():
    found = domain("text", 3)
    at = evaluate([found], BYTES, (0.25,)).together.shares[0]
    assert at.policies["profile"].pairs == coverage(found.profile.counts, found.held_out.counts, 0.25)
    assert evaluate([found], BYTES).transfers == ()


def test_by_hand():
    """One layer of 4 experts, one a token, 2 resident; expert 3 weighs more than its count says."""
    profile = Routing(10, {0: np.array([6, 3, 1, 0])}, {0: np.array([5.0, 3.0, 1.0, 0.0])})
    trace = [{0: np.array([[0], [3], [3]])}, {0: np.array([[2], [3]])}]
    held_out = Routing(5, {0: np.array([1, 0, 1, 3])}, {0: np.array([0.5, 0.0, 0.5, 3.0])})
    at = evaluate([Domain("text", profile, held_out, trace)], {0: 10}, (0.5,)).together.shares[0]
    assert at.slots == 2
    scores = {name: (score.pairs, score.weight, score.bytes_per_token) for name, score in at.policies.items()}
    assert scores == {
        "profile": (0.2, 0.125, 8),
        "oracle": (0.8, 0.875, 2),
        "uniform": (0.5, 0.5, 5),
        "lru": (0.4, None, 6),
        "lfu": (0.4, None, 6),
        "seeded_lru": (0.6, None, 4),
        # Expert 0 left a score of 6 / 10 a token over 128 / ln 2 tokens; one use of 3 does not reach that of 1.
        "seeded_lfu": (0.2, None, 8),
        # Two slots have no quarter.
        "tail": (0.2, None, 8),
    }


def test_transfers_of_each_profile_to_each_text():
    domains = [domain("code", 1), domain("prose", 2)]
    found = evaluate(domains, BYTES, (0.25,))
    assert [(t.profile, t.text) for t in found.transfers] == [
        (a, b) for a in ("code", "prose") for b in ("code", "prose")
    ]
    for transfer in found.transfers:
        source, text = (next(d for d in domains if d.name == name) for name in (transfer.profile, transfer.text))
        expected = coverage(source.profile.counts, text.held_out.counts, 0.25)
        assert transfer.shares[0].policies["profile"].pairs == expected
        assert set(transfer.regained[0]) == (set(SEEDED) if source is not text else set())
    both = coverage(
        (domains[0].profile + domains[1].profile).counts, (domains[0].held_out + domains[1].held_out).counts, 0.25
    )
    assert found.together.shares[0].policies["profile"].pairs == both


def test_what_a_cache_wins_back():
    # 64 tokens at the profile's rate, then all hit: the window climbs by 0.75 / 64 a token.
    rates = np.array([0.25] * 64 + [1.0] * 64)
    assert _regained(rates, 0.25, 1.0) == Regained(half=64 + 32, most=64 + 58)
    assert _regained(rates, 0.25, 1.25) == Regained(half=64 + 43, most=None)
    assert _regained(rates[:63], 0.25, 1.0) == Regained(None, None)


def test_experts_of_two_sizes_share_slots_of_the_larger():
    found = evaluate([domain("text", 5)], {1: 50, 4: 100}, (0.5,))
    assert (found.slot_bytes, found.total_bytes) == (100, 1200)
    assert found.together.shares[0].slots == 6
    assert found.together.shares[0].policies["uniform"].bytes_per_token == pytest.approx(300 * 10 / 16)


def test_an_evaluation_is_json():
    found = evaluate([domain("code", 1), domain("prose", 2)], BYTES)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


def test_too_little_text_is_refused():
    empty = Routing.nothing({1: 8, 4: 8})
    found = domain("code", 1)
    with pytest.raises(InputError, match="too little text") as caught:
        evaluate([Domain("code", found.profile, empty, [])], BYTES)
    assert "code" in str(caught.value)
    with pytest.raises(InputError, match="no decode trace"):
        evaluate([Domain("code", found.profile, found.held_out, [])], BYTES)


def test_two_texts_of_one_name_are_refused():
    with pytest.raises(UsageError, match="same name"):
        evaluate([domain("code", 1), domain("code", 2)], BYTES)
