"""What steps of a few tokens are expected to take, so that drafts are made where they pay."""

import numpy as np
from numpy.typing import NDArray

from krasis.runtime.cuda.passes import Crossover
from krasis.runtime.drafts import WIDTHS, Planned
from krasis.runtime.placement.residents import Candidates
from krasis.runtime.placement.speed import touched

ROUND_TRIP_S = 100e-6
"""What the device idles where the host looks at tokens before it says what is next."""


def step_costs(found: Candidates, away: NDArray[np.bool_], ways: Crossover, kernels_s: float, undo: int) -> Planned:
    """Seconds of steps: bytes at the rates of `ways`, hand-offs, and `kernels_s`. `away`, [experts], are on no device.

    A step of several tokens also waits for the host, and copies `undo` bytes, which it may copy back: each is read and
    written.
    """
    rates, there = ways.rates, np.where(away, 0, found.bytes)
    fixed = kernels_s + ways.layers * rates.hand_off_s + ways.passing / rates.pcie

    def seconds(tokens: int) -> float:
        read = ways.dense + float(touched(found, tokens) @ there)
        missed = ways.missed(tokens) / (rates.together if tokens == 1 else rates.host_read)
        several = 0.0 if tokens == 1 else ROUND_TRIP_S + 4 * undo / rates.device_read
        return fixed + read / rates.device_read + missed + several

    return Planned({tokens: seconds(tokens) for tokens in (1, *WIDTHS)})
