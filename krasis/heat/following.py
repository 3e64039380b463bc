"""A resident set that follows the text: a seeded LFU that looks up seldom, and exchanges only what pays.

It decides every few tokens rather than after each, and is bounded in what it moves. `bench/residency.py` replays it
beside `krasis.heat.caches`.
"""

import numpy as np
from numpy.typing import NDArray

from krasis.heat.caches import HALF_LIFE, Keys

Numbers = NDArray[np.int64]
"""int64 [n], numbers of experts in the order of layers."""

EVERY = 16
"""Tokens between looks at what was used."""

STEPS = 4
"""Tokens that newcomers have to arrive: a token takes milliseconds, and so do the copies."""

GAIN = 4.0
"""Uses, faded as priorities are, that a newcomer must be ahead of whom it replaces. About as many misses are saved for
each record that is moved; and of routing that stays as it was, chance is seldom so far ahead.
"""

SHARE = 0.05
"""Bytes that are moved, of those that misses move anyhow, at most. No more is saved up than so much of all experts."""


class Following:
    """Keeps track of which experts `resident`, bool [experts], says are resident.

    Slots are exchanged among experts of one size; `sizes` int64 [experts] are their bytes. `rates` float64 [experts],
    uses a token, seed the priorities as in `krasis.heat.caches.Lfu`.
    """

    def __init__(
        self,
        sizes: NDArray[np.int64],
        resident: NDArray[np.bool_],
        rates: NDArray[np.float64],
        half_life: float = HALF_LIFE,
    ) -> None:
        self.resident = resident.copy()
        self._sizes, self._kinds = sizes, np.unique(sizes).tolist()
        self._keep = 0.5 ** (1 / half_life)
        self._priority = rates / (1 - self._keep)
        self._may_move, self._most = 0.0, max(SHARE * float(sizes.sum()), float(sizes.max()))

    def saw(self, uses: NDArray[np.int64], tokens: int, *, together: bool = False) -> None:
        """Some tokens used each expert so often, [experts], at an even rate. Experts of tokens that were computed
        `together` moved once, not for every use.
        """
        faded = self._keep**tokens
        self._priority *= faded
        self._priority += uses / tokens * (1 - faded) / (1 - self._keep)
        moved = np.where(self.resident, 0, np.minimum(uses, 1) if together else uses) @ self._sizes
        self._may_move = min(self._may_move + SHARE * float(moved), self._most)

    def exchange(self) -> tuple[Numbers, Numbers]:
        """Who comes, and who leaves for each of them; from now on these count as exchanged."""
        pairs = [self._pairs(size) for size in self._kinds]
        come, leave = (np.concatenate(found) for found in zip(*pairs, strict=True))
        self.resident[come], self.resident[leave] = True, False
        return come, leave

    def _pairs(self, size: int) -> tuple[Numbers, Numbers]:
        mine = self._sizes == size
        away, there = np.flatnonzero(mine & ~self.resident), np.flatnonzero(mine & self.resident)
        most = min(int(self._may_move) // size, len(away), len(there))
        come, leave = self._first(away, -self._priority, most), self._first(there, self._priority, most)
        pays = self._priority[come] - self._priority[leave] >= GAIN
        self._may_move -= float(pays.sum() * size)
        return come[pays], leave[pays]

    def _first(self, numbers: Numbers, order: NDArray[np.float64], count: int) -> Numbers:
        """Those `count` of the numbers that come first."""
        keys = order[numbers]
        if count < len(numbers):
            some = np.argpartition(keys, count)[:count]
            numbers, keys = numbers[some], keys[some]
        return numbers[np.lexsort((numbers, keys))]


def replay(policy: Following, keys: Keys) -> tuple[NDArray[np.bool_], int]:
    """Which uses of decoded tokens hit, bool [tokens, experts of a token], and how many experts were exchanged.

    As a device that is looked at does it: exchanged a token after the look, who leaves at once and who comes later.
    """
    resident, hits, exchanged = policy.resident.copy(), np.empty(keys.shape, np.bool_), 0
    for token, used in enumerate(keys):
        hits[token] = resident[used]
        since = token % EVERY
        if since == 0 and token:
            policy.saw(np.bincount(keys[token - EVERY : token].ravel(), minlength=len(resident)), EVERY)
            _, leave = policy.exchange()
            resident[leave] = False
            exchanged += len(leave)
        elif since == STEPS:
            resident = policy.resident.copy()
    return hits, exchanged
