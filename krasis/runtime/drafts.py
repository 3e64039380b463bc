"""Drafts of the next tokens that one pass checks: made only where they are expected to cost less than they save."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from krasis.runtime.lookup import GRAMS, Lookup

WIDTHS = (8, 4, 2)
"""Tokens of a pass that checks a draft, the last known one included. A GPU has captured steps of so many."""

MARGIN = 1.05
"""What a draft must be expected to bring for what it costs: costs are estimates."""

PRIORS = {8: 0.7, 4: 0.5, 2: 0.3}
"""How often what followed so many tokens follows them again. In the bundled texts it is 68% to 84%, 44% to 71% and 26%
to 46%, of scripture the least, of code the most.
"""

WEIGHT, DECAY = 4.0, 0.9
"""A prior counts as much as so many matches; each match counts so much less with every later one."""

LEARNT, FADED = 0.25, 0.005
"""Share of a new time that counts, and share of a prior that returns with every token that was not drafted."""

SLOPES = (0.0, 1.5)
"""What a further token of a pass may be found to cost, in passes of one."""


class Costs(Protocol):
    """What passes take."""

    def __call__(self, tokens: int) -> float:
        """A pass of so many tokens, in any unit."""

    def took(self, tokens: int, seconds: float) -> None:
        """What one took."""


@dataclass(frozen=True)
class Planned:
    """Implements `Costs` by expected seconds: what is drafted, and so how sums are rounded, is the same every time."""

    seconds: dict[int, float]

    def __call__(self, tokens: int) -> float:
        return self.seconds[tokens]

    def took(self, tokens: int, seconds: float) -> None:
        """Nothing is learnt."""


@dataclass
class Learnt:
    """Implements `Costs`: each further token takes the same share of a pass of one, at first `prior`, then as measured.

    Only for engines whose results do not depend on what is drafted.
    """

    prior: float
    slope: float = field(init=False)
    _one: float = 0.0

    def __post_init__(self) -> None:
        self.slope = self.prior

    def __call__(self, tokens: int) -> float:
        return 1 + self.slope * (tokens - 1)

    def took(self, tokens: int, seconds: float) -> None:
        if tokens == 1:
            # One token that had to wait for something says little of the others.
            self._one += LEARNT * (min(seconds, 2 * self._one) - self._one) if self._one else seconds
            self.slope += FADED * (self.prior - self.slope)
        elif self._one:
            found = (seconds / self._one - 1) / (tokens - 1)
            self.slope += LEARNT * (min(max(found, SLOPES[0]), SLOPES[1]) - self.slope)


def expected(acceptance: float, width: int) -> float:
    """Tokens that a pass of `width` is expected to give, each drafted one being right with that probability."""
    return sum(acceptance**i for i in range(width))


def best_width(acceptance: float, costs: Callable[[int], float], most: int) -> int:
    """Tokens of a pass, at most `most`, that gives most tokens a unit of cost; 1 where no draft pays."""
    plain = MARGIN / costs(1)
    rates = {width: expected(acceptance, width) / costs(width) for width in WIDTHS if width <= most}
    best = max(rates, key=rates.__getitem__, default=1)
    return best if best > 1 and rates[best] > plain else 1


@dataclass
class Acceptance:
    """How often a match is right of late, begun from `prior`."""

    prior: float
    right: float = 0.0
    seen: float = 0.0

    def saw(self, *, right: bool) -> None:
        self.right, self.seen = DECAY * self.right + right, DECAY * self.seen + 1

    @property
    def share(self) -> float:
        return (self.right + WEIGHT * self.prior) / (self.seen + WEIGHT)


class Drafter:
    """Drafts one answer; `drafted` and `accepted` count tokens.

    Every match is held against what came, drafted or not: to learn what drafts are worth costs nothing.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.drafted = self.accepted = 0
        self._lookup = Lookup()
        self._acceptance = {gram: Acceptance(PRIORS[gram]) for gram in GRAMS}

    def begin(self, prompt: Iterable[int]) -> None:
        """What the answer may quote."""
        self._lookup.read(prompt)

    def read(self, tokens: Iterable[int]) -> None:
        """The answer goes on."""
        for token in tokens:
            if (match := self._lookup.match()) is not None:
                right = self._lookup.following(match, 1) == [token]
                self._acceptance[match.gram].saw(right=right)
            self._lookup.read([token])

    def draft(self, most: int) -> list[int]:
        """At most `most` tokens to check after the last; none where that does not pay."""
        if (match := self._lookup.match()) is None:
            return []
        width = best_width(self._acceptance[match.gram].share, self.costs, most + 1)
        return self._lookup.following(match, width - 1)

    def checked(self, drafted: int, accepted: int) -> None:
        """So many of a draft were right."""
        self.drafted += drafted
        self.accepted += accepted
