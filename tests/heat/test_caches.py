"""Simulated caches on traces worked out by hand, and against a reference that keeps them as dictionaries."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krasis.heat.caches import Lfu, Lru
from krasis.heat.coverage import ranking


class ReferenceLru:
    def __init__(self, slots, ranked=(), pinned=0):
        self.slots = slots - pinned
        self.pinned = set(ranked[:pinned])
        self.held = OrderedDict.fromkeys(reversed(ranked[pinned:slots]))

    def token(self, used):
        hits = [expert in self.pinned or expert in self.held for expert in used]
        for expert in used:
            if expert not in self.pinned:
                self.held[expert] = None
                self.held.move_to_end(expert)
                if len(self.held) > self.slots:
                    self.held.popitem(last=False)
        return hits


class ReferenceLfu:
    def __init__(self, slots, half_life, rates=()):
        self.slots, self.keep = slots, 0.5 ** (1 / half_life)
        self.uses = {expert: rate / (1 - self.keep) for expert, rate in enumerate(rates)}

    def token(self, used):
        held = sorted(self.uses, key=lambda expert: (-self.uses[expert], expert))[: self.slots]
        self.uses = {expert: uses * self.keep for expert, uses in self.uses.items()}
        for expert in used:
            self.uses[expert] = self.uses.get(expert, 0) + 1
        return [expert in held for expert in used]


@st.composite
def traces(draw):
    """Experts, slots of each size, counts of a profile, keys [tokens, experts of a token]; few values, many ties."""
    experts = draw(st.integers(1, 12))
    slots = draw(st.lists(st.integers(0, experts), min_size=1, max_size=4))
    counts = draw(st.lists(st.integers(0, 4), min_size=experts, max_size=experts))
    width = draw(st.integers(1, experts))
    token = st.permutations(range(experts)).map(lambda order: order[:width])
    return experts, slots, counts, np.array(draw(st.lists(token, min_size=1, max_size=30)))


@given(traces())
@settings(max_examples=200, deadline=None)
def test_caches_equal_the_reference(case):
    experts, slots, counts, keys = case
    ranked = ranking({0: np.array(counts)})
    rates = np.array(counts) / 4
    pinned = [size - size // 4 for size in slots]
    pairs = [
        (Lru(experts, slots), [ReferenceLru(size) for size in slots]),
        (Lru(experts, slots, ranked), [ReferenceLru(size, ranked.tolist()) for size in slots]),
        (
            Lru(experts, slots, ranked, pinned),
            [ReferenceLru(size, ranked.tolist(), fixed) for size, fixed in zip(slots, pinned, strict=True)],
        ),
        (Lfu(experts, slots, half_life=3), [ReferenceLfu(size, 3) for size in slots]),
        (Lfu(experts, slots, rates, 3), [ReferenceLfu(size, 3, rates.tolist()) for size in slots]),
    ]
    for fast, reference in pairs:
        expected = [[cache.token(used) for used in keys.tolist()] for cache in reference]
        # A trace comes window by window.
        found = [fast.replay(keys[: len(keys) // 2]), fast.replay(keys[len(keys) // 2 :])]
        np.testing.assert_array_equal(np.concatenate(found, axis=1), expected)


def test_lru_by_hand():
    keys = np.array([[0, 1], [1, 2], [0, 2], [3, 1], [2, 1]])
    hits = Lru(4, [2, 3]).replay(keys)
    # Two slots hold {}, {0,1}, {1,2}, {0,2}, {3,1} before each token; three {}, {0,1}, {0,1,2}, {0,1,2}, {1,2,3}.
    assert hits[0].tolist() == [[0, 0], [1, 0], [0, 1], [0, 0], [0, 1]]
    assert hits[1].tolist() == [[0, 0], [1, 0], [1, 1], [0, 1], [1, 1]]


def test_lfu_decays_by_hand():
    # Half a token later a use is worth 1/4: after 0, 0, 1 the scores are 0.3125 and 1, and 1 stays.
    keys = np.array([[0], [0], [1], [1], [0]])
    assert Lfu(2, [1], half_life=0.5).replay(keys)[0, :, 0].tolist() == [False, True, False, True, False]
    # Without decay two uses of 0 outweigh one of 1, and two of each leave the lower number.
    assert Lfu(2, [1], half_life=np.inf).replay(keys)[0, :, 0].tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("kind", ["lru", "lfu", "tail"])
def test_a_seeded_cache_starts_as_the_profile(kind):
    counts = np.array([3, 0, 9, 9, 1, 4, 0, 0])
    ranked = ranking({0: counts})
    slots = list(range(9))
    cache = {
        "lru": Lru(8, slots, ranked),
        "lfu": Lfu(8, slots, counts / 9),
        "tail": Lru(8, slots, ranked, [size - size // 4 for size in slots]),
    }[kind]
    first = cache.replay(np.arange(8)[None])[:, 0]
    for size in slots:
        assert set(np.flatnonzero(first[size])) == set(ranked[:size])
