"""What a heat profile is worth on text that it never saw, beside other ways to choose the resident experts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from operator import add

import msgspec
import numpy as np
from numpy.typing import NDArray

from krasis.errors import InputError, UsageError
from krasis.heat.caches import HALF_LIFE, Cache, Keys, Lfu, Lru
from krasis.heat.coverage import Ranking, curve, flat, ranking
from krasis.heat.routing import Choices, Counts, Routing

SHARES = (0.1, 0.2, 0.25, 0.3, 0.5, 0.75)
WINDOW = 64
"""Tokens over which the hit rate of a cache is taken to see it recover."""
TAIL = 4
"""One slot of so many follows the text where the rest hold the profile's hottest for good."""

POLICIES = {
    "profile": "this profile, fixed",
    "oracle": "oracle: the scored text's own hottest, fixed",
    "uniform": "uniform: any experts, expected",
    "lru": "LRU cache, empty at first",
    "lfu": "LFU cache with decay, empty at first",
    "seeded_lru": "LRU cache seeded by the profile",
    "seeded_lfu": "LFU cache with decay, seeded by the profile",
    "tail": "recency tail: 3/4 the profile, fixed, 1/4 LRU",
}
"""Name of a policy -> what it keeps resident."""
SEEDED = ("seeded_lru", "seeded_lfu", "tail")


@dataclass(frozen=True)
class Domain:
    """One kind of text: what was counted for the profile and held out of it.

    `trace` is the choices for held-out tokens as decode makes them, window after window, and is read several times.
    """

    name: str
    profile: Routing
    held_out: Routing
    trace: Iterable[Choices]


class _Chain:
    """Traces one after the other, as often as asked."""

    def __init__(self, traces: Sequence[Iterable[Choices]]) -> None:
        self._traces = traces

    def __iter__(self) -> Iterator[Choices]:
        return chain.from_iterable(self._traces)


def join(domains: Sequence[Domain]) -> Domain:
    """All of them as one, their texts one after the other."""
    profile = reduce(add, [domain.profile for domain in domains])
    held_out = reduce(add, [domain.held_out for domain in domains])
    name = "all text" if len(domains) > 1 else domains[0].name
    return Domain(name, profile, held_out, _Chain([domain.trace for domain in domains]))


class Score(msgspec.Struct, frozen=True):
    """Hits as a share of routed (token, expert) pairs and of routing weight, null where unknown, and what misses cost.

    `bytes_per_token`: bytes of experts that are routed to and not resident, each crossing PCIe once a token.
    """

    pairs: float
    weight: float | None
    bytes_per_token: float


class AtShare(msgspec.Struct, frozen=True):
    """A pool of `slots`, `share` of all experts' bytes, and the score of each policy. See `POLICIES`."""

    share: float
    slots: int
    policies: dict[str, Score]


class Scored(msgspec.Struct, frozen=True):
    """Policies that know the profile `profile` on held-out text of `text`."""

    profile: str
    text: str
    tokens: int
    shares: tuple[AtShare, ...]


class Regained(msgspec.Struct, frozen=True):
    """Tokens until a cache's hit rate had won back 50% and 90% of the way from profile to oracle, null if never."""

    half: int | None
    most: int | None


class Transfer(Scored, frozen=True):
    """`regained[i]`: what each cache won back at `shares[i]`; empty for a domain's own profile."""

    regained: tuple[dict[str, Regained], ...]


class Evaluation(msgspec.Struct, frozen=True):
    """`together` and `domains` score the profile of all domains, `transfers` that of each on each.

    Sizes are in bytes: of one slot, and of all experts.
    """

    experts: int
    slot_bytes: int
    total_bytes: int
    window: int
    half_life: float
    together: Scored
    domains: tuple[Scored, ...]
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True)
class _Pool:
    """Slots for each share; `sizes` float64 [experts] are bytes of an expert, `first` the number of a layer's first."""

    shares: tuple[float, ...]
    slots: tuple[int, ...]
    sizes: NDArray[np.float64]
    first: dict[int, int]

    @classmethod
    def of(cls, experts: Counts, expert_bytes: dict[int, int], shares: Sequence[float]) -> "_Pool":
        sizes = {layer: np.full(len(found), float(expert_bytes[layer])) for layer, found in experts.items()}
        ends = np.cumsum([len(sizes[layer]) for layer in sorted(sizes)])
        first = {layer: int(end) - len(sizes[layer]) for layer, end in zip(sorted(sizes), ends, strict=True)}
        every = flat(sizes)
        room = every.sum() / every.max()
        return cls(tuple(shares), tuple(round(share * room) for share in shares), every, first)

    def keys(self, choices: Choices) -> Keys:
        return np.concatenate([choices[layer] + self.first[layer] for layer in sorted(choices)], axis=1)


def evaluate(domains: Sequence[Domain], expert_bytes: dict[int, int], shares: Sequence[float] = SHARES) -> Evaluation:
    """Score the profile of all domains on each and on all, one after the other; and each domain's profile on each.

    `expert_bytes`: layer -> bytes of one of its experts. Raises InputError where a domain routed nothing, or traced
    nothing, UsageError where two have one name.
    """
    names = Counter(domain.name for domain in domains)
    for domain in domains:
        if names[domain.name] > 1:
            raise UsageError("two texts have the same name", where=domain.name, hint="rename one of them")
        if not domain.profile.tokens or not domain.held_out.tokens:
            raise InputError("too little text to evaluate a heat profile", where=domain.name)
    pool = _Pool.of(domains[0].profile.counts, expert_bytes, shares)
    every = join(domains)
    several = len(domains) > 1
    scored = tuple(_scored(pool, every, domain) for domain in domains)
    return Evaluation(
        experts=len(pool.sizes),
        slot_bytes=int(pool.sizes.max()),
        total_bytes=int(pool.sizes.sum()),
        window=WINDOW,
        half_life=HALF_LIFE,
        together=_scored(pool, every, every) if several else scored[0],
        domains=scored,
        transfers=tuple(_transfer(pool, a, b) for a in domains for b in domains) if several else (),
    )


def _scored(pool: _Pool, source: Domain, text: Domain) -> Scored:
    cold: dict[str, Cache] = {"lru": Lru(len(pool.sizes), pool.slots), "lfu": Lfu(len(pool.sizes), pool.slots)}
    replays = _replays(pool, cold | _seeded(pool, source.profile), text)
    return Scored(source.name, text.name, text.held_out.tokens, _at_shares(pool, source, text, replays))


def _transfer(pool: _Pool, source: Domain, text: Domain) -> Transfer:
    replays = _replays(pool, _seeded(pool, source.profile), text)
    at = _at_shares(pool, source, text, replays)
    foreign = source is not text
    regained = tuple(
        {
            name: _regained(replay.hit_rates[i], found.policies["profile"].pairs, found.policies["oracle"].pairs)
            for name, replay in replays.items()
            if foreign
        }
        for i, found in enumerate(at)
    )
    return Transfer(source.name, text.name, text.held_out.tokens, at, regained)


def _seeded(pool: _Pool, profile: Routing) -> dict[str, Cache]:
    experts, ranked = len(pool.sizes), ranking(profile.counts)
    fixed = [slots - slots // TAIL for slots in pool.slots]
    return {
        "seeded_lru": Lru(experts, pool.slots, ranked),
        "seeded_lfu": Lfu(experts, pool.slots, flat(profile.counts) / profile.tokens),
        "tail": Lru(experts, pool.slots, ranked, fixed),
    }


@dataclass(frozen=True)
class _Replay:
    """Of each size: `hit_rates` float64 [sizes, tokens], and `loaded` float64 [sizes], bytes over all tokens."""

    hit_rates: NDArray[np.float64]
    loaded: NDArray[np.float64]

    def score(self, size: int) -> Score:
        rates = self.hit_rates[size]
        return Score(float(rates.mean()), None, float(self.loaded[size] / len(rates)))


def _replays(pool: _Pool, caches: dict[str, Cache], text: Domain) -> dict[str, _Replay]:
    rates: dict[str, list[NDArray[np.float64]]] = {name: [] for name in caches}
    loaded = {name: np.zeros(len(pool.slots)) for name in caches}
    for choices in text.trace:
        keys = pool.keys(choices)
        for name, cache in caches.items():
            hits = cache.replay(keys)
            rates[name].append(hits.mean(axis=2))
            loaded[name] += (~hits * pool.sizes[keys]).sum(axis=(1, 2))
    if not all(rates.values()):
        raise InputError("no decode trace to evaluate a heat profile on", where=text.name)
    return {name: _Replay(np.concatenate(rates[name], axis=1), loaded[name]) for name in caches}


def _at_shares(pool: _Pool, source: Domain, text: Domain, replays: dict[str, _Replay]) -> tuple[AtShare, ...]:
    ranked = {"profile": ranking(source.profile.counts), "oracle": ranking(text.held_out.counts)}
    fixed = {name: _fixed(pool, order, text.held_out) for name, order in ranked.items()}
    uniform = _uniform(pool, text.held_out)
    return tuple(
        AtShare(
            share,
            pool.slots[i],
            {name: scores[i] for name, scores in fixed.items()}
            | {"uniform": uniform[i]}
            | {name: replay.score(i) for name, replay in replays.items()},
        )
        for i, share in enumerate(pool.shares)
    )


def _fixed(pool: _Pool, ranked: Ranking, text: Routing) -> list[Score]:
    """Scores of the first experts of `ranked`, never exchanged."""
    counts, weights = flat(text.counts), flat(text.weights)
    pairs = curve(ranked, counts)
    weight = curve(ranked, weights) if weights.any() else None
    missed = (counts * pool.sizes)[ranked][::-1].cumsum()[::-1] / text.tokens
    missed = np.append(missed, 0)
    return [Score(float(pairs[n]), None if weight is None else float(weight[n]), float(missed[n])) for n in pool.slots]


def _uniform(pool: _Pool, text: Routing) -> list[Score]:
    """What as many experts as there are slots score on average over all choices of them."""
    routed = float(flat(text.counts) @ pool.sizes) / text.tokens
    known = flat(text.weights).any()
    held = [slots / len(pool.sizes) for slots in pool.slots]
    return [Score(share, share if known else None, (1 - share) * routed) for share in held]


def _regained(rates: NDArray[np.float64], profile: float, oracle: float) -> Regained:
    """`rates` [tokens]: the share of a token's experts that hit."""
    sums = np.cumsum(np.append(0, rates))
    windows = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW

    def after(part: float) -> int | None:
        reached = np.flatnonzero(windows >= profile + part * (oracle - profile))
        return int(reached[0]) + WINDOW if len(reached) else None

    return Regained(after(0.5), after(0.9))
