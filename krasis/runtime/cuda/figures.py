"""What a GPU's engine tells of itself."""

import time
from dataclasses import astuple, dataclass, field


@dataclass(frozen=True)
class Traffic:
    """Bytes copied to the device: of experts for prompts, and of dense weights that pass through it. Of tokens taken a
    few at a time: pairs of a token and an expert that was chosen for it, those that were not resident, bytes of these
    that the CPU computed with, its seconds, and those that the device waited for it; pairs that would not have been had
    residents stayed where they were placed, and bytes that exchanging them moved.
    """

    copied: int = 0
    dense: int = 0
    routed: int = 0
    missed: int = 0
    cpu_read: int = 0
    cpu_s: float = 0.0
    waited_s: float = 0.0
    missed_if_static: int = 0
    exchanged: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Share of pairs whose expert was resident, None without any."""
        return 1 - self.missed / self.routed if self.routed else None

    @property
    def static_hit_rate(self) -> float | None:
        """The same had residents stayed where they were placed."""
        return 1 - self.missed_if_static / self.routed if self.routed else None

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class Started:
    """Seconds of each step of a start."""

    steps: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def done(self, step: str) -> None:
        now = time.perf_counter()
        self.steps[step], self._since = now - self._since, now
