"""How the tokens of a prompt meet experts that are not on the device: whichever way is predicted to take least."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from krasis.native.cuda.gemm import MOST_FEW
from krasis.runtime.placement.residents import Candidates
from krasis.runtime.placement.speed import touched
from krasis.runtime.rates import Rates

Way = Literal["few", "touched", "whole"]
"""`few` at a time by the kernels of decode, the CPU computing what is missing; only experts that are `touched` passing
through the device, once a layer's router has said which; or all of them, the `whole` layer, copied ahead of it.
"""

SYNC_S = 60e-6
"""A layer's wait for its router, in which nothing is copied: a read of the device, and the first copy's beginning."""


@dataclass(frozen=True)
class Crossover:
    """`missed(tokens)` is how many bytes of experts so many tokens are expected to touch that are not on the device, of
    `whole` that are not, in `layers` layers. Every pass reads `dense` bytes that are, and `passing` ones pass through.
    """

    missed: Callable[[int], float]
    whole: float
    layers: int
    dense: float
    passing: float
    rates: Rates

    @classmethod
    def of(
        cls, found: Candidates, away: NDArray[np.bool_], layers: int, dense: float, passing: float, rates: Rates
    ) -> "Crossover":
        """Where `away`, [experts], says which of the experts that are expected to be chosen are not on the device."""
        sizes = np.where(away, found.bytes, 0)

        def missed(tokens: int) -> float:
            return float(touched(found, tokens) @ sizes)

        return cls(missed, float(sizes.sum()), layers, dense, passing, rates)

    def seconds(self, tokens: int) -> dict[Way, float]:
        """Expected time of the bytes alone, the simplest way first."""
        times, rest = divmod(tokens, MOST_FEW)
        few, passes = times * self.missed(MOST_FEW) + (self.missed(rest) if rest else 0.0), times + bool(rest)
        hand_offs = self.layers * self.rates.hand_off_s
        dense = self.dense / self.rates.device_read + self.passing / self.rates.pcie
        return {
            "whole": dense + self.whole / self.rates.pcie,
            "touched": dense + self.missed(tokens) / self.rates.pcie + self.layers * SYNC_S,
            "few": passes * (dense + hand_offs) + few / self.rates.host_read,
        }

    def best(self, tokens: int) -> Way:
        """The way that takes least."""
        if tokens == 1:
            return "few"
        found = self.seconds(tokens)
        return min(found, key=found.__getitem__)
