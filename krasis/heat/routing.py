"""What routers chose, summed over tokens: the raw material of heat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = dict[int, NDArray[np.int64]]
"""Layer -> int64 [experts] of routed tokens."""

Weights = dict[int, NDArray[np.float64]]
"""Layer -> float64 [experts], the sums of their routing weights."""

Choices = dict[int, NDArray[np.int64]]
"""Layer -> int64 [tokens, top_k], the experts of each token in the order of the text."""

ChoiceWeights = dict[int, NDArray[np.float32]]
"""Layer -> float32 [tokens, top_k], the routing weight of each choice, as the layer multiplies by it."""


@dataclass(frozen=True)
class Routing:
    """What the routers of all layers with experts chose for `tokens` tokens."""

    tokens: int
    counts: Counts
    weights: Weights

    @classmethod
    def nothing(cls, experts: dict[int, int]) -> "Routing":
        """Of no tokens, for layers that have so many experts."""
        counts = {layer: np.zeros(n, np.int64) for layer, n in experts.items()}
        return cls(0, counts, {layer: np.zeros(n) for layer, n in experts.items()})

    @classmethod
    def of(cls, choices: Choices, weights: ChoiceWeights, experts: dict[int, int]) -> "Routing":
        """The sums over some tokens' choices, each layer's of the same tokens."""
        tokens = len(next(iter(choices.values()), ()))
        counts = {layer: np.bincount(choices[layer].ravel(), minlength=n) for layer, n in experts.items()}
        sums = {
            layer: np.asarray(np.bincount(choices[layer].ravel(), weights[layer].ravel(), n), np.float64)
            for layer, n in experts.items()
        }
        return cls(tokens, counts, sums)

    def __add__(self, other: "Routing") -> "Routing":
        counts = {layer: found + other.counts[layer] for layer, found in self.counts.items()}
        weights = {layer: found + other.weights[layer] for layer, found in self.weights.items()}
        return Routing(self.tokens + other.tokens, counts, weights)
