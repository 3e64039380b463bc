"""Choose the next token from logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from krasis.errors import UsageError

_BITS = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. Filters apply in the order top-k, top-p, min-p; their defaults let all through."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.temperature >= 0, "--temperature", self.temperature, "0 or more")
        _require(self.top_k >= 0, "--top-k", self.top_k, "0 (off) or more")
        _require(0 < self.top_p <= 1, "--top-p", self.top_p, "above 0, at most 1")
        _require(0 <= self.min_p <= 1, "--min-p", self.min_p, "0 to 1")
        _require(0 <= self.seed < 1 << 64, "--seed", self.seed, "0 to 2^64 - 1")


def _require(holds: bool, flag: str, value: float, expected: str) -> None:
    if not holds:
        raise UsageError(f"{flag} is {value}", expected=expected)


class Sampler:
    """Draws tokens where the logits are, without waiting for them.

    What is drawn depends on the seed, the logits, the position and the kind of device, and on nothing drawn before: so
    a position may be drawn for again, or ahead of time.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()

    def __call__(self, logits: Tensor, position: int) -> Tensor:
        """float32 [vocabulary] -> token id, int64 [1]. Equal logits resolve to the lowest id when greedy."""
        if self._sampling.temperature == 0:
            return logits.argmax(0, keepdim=True)
        if self._generator.device != logits.device:
            self._generator = torch.Generator(logits.device)
        self._generator.manual_seed(seed_at(self._sampling.seed, position))
        probabilities = filtered(logits, self._sampling)
        # Of exponential variables of these rates each is the least with its probability: no sum is needed, and no wait.
        waits = torch.empty_like(probabilities).exponential_(generator=self._generator)
        return (probabilities / waits).argmax(0, keepdim=True)


def seed_at(seed: int, position: int) -> int:
    """64 bits that look unlike those of other seeds and positions: the finalizer of SplitMix64 (Steele et al. 2014)."""
    z = (seed * 0xD1342543DE82EF95 + (position + 1) * 0x9E3779B97F4A7C15) & _BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _BITS
    return z ^ (z >> 31)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [vocabulary] after temperature and filters; they need not sum to one.

    top-p keeps the smallest set of most likely tokens whose mass reaches p (Holtzman et al. 2020); min-p keeps tokens
    at least p times as likely as the most likely one (Nguyen et al. 2024).
    """
    # Relative to the largest, so that no temperature however low makes an infinity.
    scaled = (logits.double() - logits.max()) / sampling.temperature
    ranked, order = scaled.softmax(-1).sort(descending=True, stable=True)
    if sampling.top_k:
        ranked[sampling.top_k :] = 0
        ranked /= ranked.sum()
    ranked.masked_fill_(ranked.cumsum(0) - ranked >= sampling.top_p, 0)
    ranked.masked_fill_(ranked < sampling.min_p * ranked[0], 0)
    return torch.zeros_like(ranked).scatter_(0, order, ranked)
