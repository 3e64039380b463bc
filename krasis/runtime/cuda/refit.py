"""The rates that missed experts are divided by, refitted to what the CPU was seen to do."""

from msgspec.structs import replace

from krasis.native.server import Counts, Work
from krasis.runtime.cuda.division import BESIDE, HAND_OFFS, host_beside
from krasis.runtime.rates import Rates

LEAST = 256
"""Posts that tell something of a rate."""

BOUND = 2.0
"""A rate becomes at most so many times, and at least the same part of, what it was measured as."""

NEWS = 0.1
"""What a rate has to change by to be taken: small changes would make results differ from sequence to sequence."""


def refitted(used: Rates, measured: Rates, work: Work) -> Rates:
    """`used`, or with what the CPU reads alone and beside the GPU as posts of one token took it.

    What a post costs beside its bytes is what `division` assumes. Rates stay near `measured`.
    """
    alone = _rate(work.whole, measured, used.host_read, measured.host_read)
    beside = _rate(work.part, measured, host_beside(used), host_beside(measured))
    return replace(used, host_read=alone, together=beside + BESIDE * used.pcie)


def _rate(seen: Counts, measured: Rates, used: float, start: float) -> float:
    if seen.posts < LEAST:
        return used
    took = seen.seconds - seen.posts * (HAND_OFFS - 1) * measured.hand_off_s
    found = min(max(seen.read / max(took, 1e-9), start / BOUND), start * BOUND)
    return found if abs(found - used) > NEWS * used else used


class Refit:
    """`rates` are those in use: at first `measured`."""

    def __init__(self, measured: Rates) -> None:
        self.rates = self._measured = measured
        self._since: Work | None = None

    def refit(self, done: Work) -> bool:
        """Whether work since the last call changes `rates`. The first call only begins: work before is not counted."""
        before, self._since, used = self._since, done, self.rates
        if before is not None:
            self.rates = refitted(used, self._measured, done - before)
        return self.rates != used
