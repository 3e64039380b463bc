"""Who computes the experts that a token misses: the CPU, or the GPU, reading them over PCIe."""

from collections.abc import Callable

from krasis.runtime.rates import Rates

Divide = Callable[[int, int, Rates, float], list[int]]
"""See `division`."""

BESIDE = 0.85
"""Share of the rate of PCIe that is left to kernels' own reads while the CPU reads too."""

READ_S = 40e-6
"""What reading experts costs the GPU beside the bytes: few blocks wait for all of them, twice."""

HAND_OFFS = 2
"""Hand-offs that asking the CPU costs: the round trip, and its threads' meetings."""


def division(most: int, size: int, rates: Rates, passing: float = 0.0) -> list[int]:
    """[most + 1]: of so many missed experts of `size` bytes, how many the GPU reads so that both are done soonest;
    `passing` bytes are copied to it meanwhile.
    """
    beside = BESIDE * rates.pcie

    def seconds(read: int, left: int) -> float:
        moved = passing + read * size
        host = rates.host_read if not moved else max(rates.together - beside, rates.host_read / 2)
        asked = HAND_OFFS * rates.hand_off_s + left * size / host if left else 0.0
        reading = READ_S * (read > 0) + moved / beside
        return max(reading, asked)

    return [min(range(missed + 1), key=lambda read: seconds(read, missed - read)) for missed in range(most + 1)]
