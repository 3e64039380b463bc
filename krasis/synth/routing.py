"""Routing made up token by token: by the law of `krasis.synth.popularity`, whose ranks may drift."""

import numpy as np
import torch
from numpy.typing import NDArray

from krasis.heat.caches import Keys
from krasis.synth.popularity import TOKENS, calibrate, law


class Router:
    """Chooses `chosen` of `experts` in each of `layers` layers, by the law of `skew`.

    After every token each expert has changed places with another of its layer with probability `drift`.
    """

    def __init__(self, experts: int, layers: int, chosen: int, skew: float, drift: float, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._chosen, self._drift, self._due = chosen, drift, 0.0
        shares = law(experts, chosen, skew)
        noise = torch.from_numpy(self._rng.standard_normal((TOKENS, experts), dtype=np.float32))
        self._shares = shares.numpy()
        self._offsets = calibrate(shares, lambda logits: logits.topk(chosen, dim=-1).indices, noise).numpy()
        self._order = np.stack([self._rng.permutation(experts) for _ in range(layers)])

    @property
    def rates(self) -> NDArray[np.float64]:
        """Of all experts, layer after layer: the share of tokens that choose them by now."""
        found: NDArray[np.float64] = self._shares[self._order].ravel()
        return found

    def choose(self, tokens: int) -> Keys:
        """What so many tokens choose, one after the other."""
        return np.stack([self._token() for _ in range(tokens)])

    def _token(self) -> Keys:
        layers, experts = self._order.shape
        logits = self._offsets[self._order] + self._rng.standard_normal((layers, experts), dtype=np.float32)
        found = np.argpartition(logits, experts - self._chosen, axis=1)[:, -self._chosen :]
        self._wander()
        keys: Keys = (found + experts * np.arange(layers)[:, None]).ravel()
        return keys

    def _wander(self) -> None:
        layers, experts = self._order.shape
        # A change of places moves two.
        self._due += self._drift * experts / 2
        changes, rows = int(self._due), np.arange(layers)
        self._due -= changes
        for _ in range(changes):
            one, other = self._rng.integers(experts, size=(2, layers))
            self._order[rows, one], self._order[rows, other] = self._order[rows, other], self._order[rows, one]
