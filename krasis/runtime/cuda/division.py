"""Who computes what of the experts that a token misses: the CPU, and the GPU, reading them over PCIe."""

from collections.abc import Callable

from krasis.runtime.rates import Rates

Divide = Callable[[int, int, int, Rates, float], list[int]]
"""See `division`."""

BESIDE = 0.85
"""Share of the rate of PCIe that is left to kernels' own reads while the CPU reads too: on the reference machine 42 of
49 GB/s were, beside 12 threads."""

READ_S = 40e-6
"""What reading experts costs the GPU beside the bytes: few blocks wait for all of them, twice. Assumed."""

HAND_OFFS = 2
"""Hand-offs that asking the CPU costs: the round trip, and its threads' meetings, which are assumed to take as long."""


WORTH = 0.9
"""Of the time that the CPU takes alone, the most that both may take: what the GPU reads delays what else it computes.
Coder-Next in INT4, for which the rates promise 7% less, took between 4% less and 14% more on three H100 hosts.
"""


def host_beside(rates: Rates) -> float:
    """What the CPU reads while the GPU does: at least half of what it reads alone."""
    return max(rates.together - BESIDE * rates.pcie, rates.host_read / 2)


def division(most: int, size: int, parts: int, rates: Rates, passing: float = 0.0) -> list[int]:
    """[most + 1]: of so many missed experts of `size` bytes, each cut into `parts`, how many parts of each the CPU
    computes so that both are done soonest, or all where that is worth little. The GPU reads the others; `passing` bytes
    are copied to it meanwhile.
    """
    beside = BESIDE * rates.pcie

    def seconds(missed: int, asked: int) -> float:
        """With `asked` parts for the CPU."""
        part, left = missed * size / parts, parts - asked
        moved = passing + left * part
        host = host_beside(rates) if moved else rates.host_read
        cpu = HAND_OFFS * rates.hand_off_s + asked * part / host if asked else 0.0
        return max(cpu, READ_S * (left > 0) + moved / beside)

    def best(missed: int) -> int:
        soonest = min(range(parts + 1), key=lambda asked: seconds(missed, asked))
        return soonest if seconds(missed, soonest) <= WORTH * seconds(missed, parts) else parts

    return [best(missed) for missed in range(most + 1)]
