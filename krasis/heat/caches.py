"""Caches of experts, replayed over a decode trace: what a resident set that follows the text would hit.

All layers share one pool of equal slots, each large enough for any expert: experts of a model are of one size as a
rule, and a pool gives a layer what its heat earns, as static placement does. What is resident changes between tokens
only, for a captured decode step reads its placement from a table: a token hits what lay there when it began, and what
it loads serves the next one.

Both policies rank experts by a priority, and the highest are resident. An expert's number counts through the layers
in their order; of equal priorities the lower number stays. Sorting all priorities for every token is what a replay
costs: 0.1 ms for 24,576 experts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from krasis.heat.coverage import Ranking

Keys = NDArray[np.int64]
"""int64 [tokens, experts of a token], numbers of experts in the order of layers. None comes twice in a token."""

Hits = NDArray[np.bool_]
"""bool [sizes, tokens, experts of a token]"""

HALF_LIFE = 128.0
"""Tokens after which a use counts half, for LFU."""

NEVER = -np.inf
"""The priority of an expert that was never loaded."""


class Cache:
    """Several caches of one policy but for their sizes, `slots` each. `priority` is [experts] or [sizes, experts]."""

    def __init__(self, slots: Sequence[int], priority: NDArray[np.float64]) -> None:
        self._slots = np.array(slots)
        self._priority = np.atleast_2d(priority).astype(np.float64)

    def replay(self, keys: Keys) -> Hits:
        """Which uses hit, token after token. A second call goes on where the first ended."""
        hits = np.empty((len(self._slots), *keys.shape), np.bool_)
        for token, used in enumerate(keys):
            hits[:, token] = self._resident(used)
            self._touch(used)
        return hits

    def _resident(self, used: Keys) -> Hits:
        rows, experts = self._priority.shape
        ordered = np.sort(self._priority, axis=1)
        row, size = np.arange(len(self._slots)) % rows, self._slots
        last = np.where(size > 0, ordered[row, -size], np.inf)
        # Where the first that has no slot ties with the last that has one, numbers decide.
        tied = (size > 0) & (size < experts) & (ordered[row, experts - 1 - size] == last)
        mine = np.broadcast_to(self._priority[:, used], (len(size), len(used)))
        found = (mine >= last[:, None]) & (mine > NEVER)
        for i in np.flatnonzero(tied & (found & (mine == last[:, None])).any(axis=1)):
            priority = self._priority[row[i]]
            place = (priority > last[i]).sum() + np.cumsum(priority == last[i])[used]
            found[i] &= (mine[i] > last[i]) | (place <= size[i])
        return found

    def _touch(self, used: Keys) -> None:
        raise NotImplementedError


class Lru(Cache):
    """The most recently used stay; a priority is the time of last use.

    Seeded by `ranking`, it starts as if its experts had been used from the last to the first, and `pinned[i]` of the
    first never leave the cache of size `slots[i]`.
    """

    def __init__(
        self, experts: int, slots: Sequence[int], ranking: Ranking | None = None, pinned: Sequence[int] = (0,)
    ) -> None:
        priority = np.full((len(pinned), experts), NEVER)
        if ranking is not None:
            priority[:, ranking] = np.arange(experts, 0, -1)
            for row, count in enumerate(pinned):
                priority[row, ranking[:count]] = np.inf
        super().__init__(slots, priority)
        self._clock = experts + 1

    def _touch(self, used: Keys) -> None:
        now = np.arange(self._clock, self._clock + len(used))
        self._priority[:, used] = np.maximum(self._priority[:, used], now)
        self._clock += len(used)


class Lfu(Cache):
    """The most used stay; a priority is the number of uses, each worth half as much after every `half_life` tokens.

    `rates` float64 [experts], uses a token, seed it with what they would have left behind had they gone on forever.
    """

    def __init__(
        self,
        experts: int,
        slots: Sequence[int],
        rates: NDArray[np.float64] | None = None,
        half_life: float = HALF_LIFE,
    ) -> None:
        self._keep = 0.5 ** (1 / half_life)
        super().__init__(slots, np.full(experts, NEVER) if rates is None else rates / (1 - self._keep))

    def _touch(self, used: Keys) -> None:
        self._priority *= self._keep
        self._priority[:, used] = np.maximum(self._priority[:, used], 0) + 1
