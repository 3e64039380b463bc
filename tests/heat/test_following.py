"""The policy that exchanges residents: by hand, and on real and made-up routing beside LFU and residents that stay."""

from itertools import accumulate

import numpy as np
import pytest

from krasis.heat import following
from krasis.heat.caches import HALF_LIFE, Lfu
from krasis.heat.following import EVERY, GAIN, SHARE, Following, replay
from krasis.synth.routing import Router

BEHIND_LFU = 0.02
"""Hits, as a share of uses, that are lost to looking seldom: on routing that changes fast."""

BELOW_STATIC = 0.006
"""The same that chance costs on routing that never changes, where the profile is the best there is."""


def hottest(rates, share):
    resident = np.zeros(len(rates), bool)
    resident[np.argsort(-rates, kind="stable")[: round(share * len(rates))]] = True
    return resident


def ones(count):
    return np.ones(count, np.int64)


def policy(resident, rates=None, sizes=None):
    resident = np.array(resident, bool)
    rates = np.zeros(len(resident)) if rates is None else np.array(rates)
    return Following(ones(len(resident)) if sizes is None else np.array(sizes), resident, rates)


@pytest.fixture
def unbounded(monkeypatch):
    monkeypatch.setattr(following, "SHARE", 1.0)


def pairs(found):
    return [tuple(numbers.tolist()) for numbers in found]


def test_who_is_used_takes_the_place_of_who_is_not(unbounded):
    found = policy([1, 1, 0, 0])
    assert pairs(found.exchange()) == [(), ()]
    found.saw(np.array([100, 0, 0, 100]), 100)
    assert pairs(found.exchange()) == [(3,), (1,)]
    assert found.resident.tolist() == [True, False, False, True]
    assert pairs(found.exchange()) == [(), ()]


def test_the_most_used_come_first_for_the_least_used(unbounded):
    found = policy([1, 1, 1, 0, 0, 0])
    found.saw(np.array([60, 0, 5, 70, 80, 0]), 80)
    assert pairs(found.exchange()) == [(4, 3), (1, 2)]


def test_a_newcomer_must_be_far_enough_ahead(unbounded):
    for uses, comes in ((GAIN - 1, False), (GAIN + 1, True)):
        found = policy([1, 0])
        found.saw(np.array([0, uses]), 1)
        assert bool(len(found.exchange()[0])) == comes


def test_what_is_moved_is_a_share_of_what_misses_moved():
    experts = 400
    resident = np.arange(experts) < experts // 2
    found = policy(resident)
    uses = np.where(resident, 0, 10)
    found.saw(uses, 10)
    come, _ = found.exchange()
    assert len(come) == SHARE * experts  # of 2,000 misses 100 were allowed, of all experts no more than 20
    once = policy(resident)
    once.saw(uses, 10, together=True)
    assert len(once.exchange()[0]) == SHARE * experts // 2


def test_slots_go_to_experts_of_their_size():
    many = 100
    sizes, resident = np.repeat([1, 2], many), np.tile(np.arange(many) < many // 2, 2)
    found = policy(resident, sizes=sizes)
    found.saw(np.where(resident, 0, 90), 90)
    come, leave = found.exchange()
    assert len(come) > 0
    assert (sizes[come] == sizes[leave]).all()


def test_a_rate_that_goes_on_leaves_its_seed():
    """Used at the rate it is seeded by, in looks of any length, a priority stays what it is, and so does LFU's."""
    rates = np.array([0.5, 0.25])
    for tokens in (4, 16, 1000):
        found = policy([1, 0], rates)
        before = found._priority.copy()
        found.saw(rates * tokens, tokens)
        np.testing.assert_allclose(found._priority, before)


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_routing_that_stays_costs_next_to_nothing_and_routing_that_drifts_is_followed(share):
    for drift, tokens in ((0.0, 1500), (1 / 1024, 1500)):
        router = Router(256, 6, 8, 0.9, drift, seed=1)
        rates = router.rates
        keys, resident = router.choose(tokens), hottest(rates, share)
        hits, exchanged = replay(policy(resident, rates), keys)
        static, lfu = resident[keys].mean(), Lfu(len(rates), [int(resident.sum())], rates).replay(keys).mean()
        assert hits.mean() > lfu - BEHIND_LFU
        assert hits.mean() > (static - BELOW_STATIC if drift == 0 else static + 0.1)
        assert exchanged <= SHARE * (~hits).sum()


@pytest.fixture
def traced(pack_of, open_engine, text_ids):
    """(family, name of a text) -> keys of its first tokens."""

    def run(family, text, tokens=2048, window=512):
        engine = open_engine(pack_of(family), trace=True)
        for first in range(0, tokens, window):
            engine.all_hidden(text_ids[text][first : first + window], engine.new_state())
        choices, _ = engine.tracer.take()
        before = accumulate(engine.tracer.experts.values(), initial=0)
        return np.concatenate([choices[layer] + n for layer, n in zip(choices, before, strict=False)], axis=1)

    return run


def test_text_of_a_kind_that_the_profile_does_not_know_is_followed(family, traced):
    code, other = traced(family, "dev-code.txt"), traced(family, "dev-scripture.txt")
    profiled, held = code[:1024], code[1024:]
    rates = np.bincount(profiled.ravel(), minlength=max(code.max(), other.max()) + 1) / len(profiled)
    resident = hottest(rates, 0.25)
    for keys, gain in ((held, -BELOW_STATIC), (other, 0.15)):
        hits, exchanged = replay(policy(resident, rates), keys)
        assert hits.mean() > resident[keys].mean() + gain
        assert hits.mean() > Lfu(len(rates), [int(resident.sum())], rates).replay(keys).mean() - BEHIND_LFU
        assert exchanged <= SHARE * (~hits).sum()


def test_a_changed_rate_is_known_within_a_half_life():
    """Between a text's end and the next one's beginning all popularity changes hands."""
    router = Router(256, 6, 8, 0.9, 0.0, seed=2)
    other = Router(256, 6, 8, 0.9, 0.0, seed=3)
    resident = hottest(router.rates, 0.3)
    hits, _ = replay(policy(resident, router.rates), other.choose(4 * int(HALF_LIFE)))
    static, best = resident[other.choose(200)].mean(), hottest(other.rates, 0.3)[other.choose(200)].mean()
    later = hits[2 * int(HALF_LIFE) :].mean()
    assert later > static + 0.7 * (best - static)


def test_replay_looks_every_so_often():
    keys = np.tile(np.array([[0, 2]]), (3 * EVERY, 1))
    found = policy([1, 1, 0] + [0] * 40)
    hits, exchanged = replay(found, keys)
    assert exchanged == 1
    assert hits[:, 0].all()
    first = int(hits[:, 1].argmax())
    assert first > EVERY
    assert hits[first:, 1].all()
