"""Watches what the router chooses while a model runs."""

import numpy as np
import torch
from torch import Tensor

from krasis.heat.routing import Choices, ChoiceWeights


class Tracer:
    """Keeps every token's choices until they are taken. `experts` maps layers to how many experts each has."""

    def __init__(self, experts: dict[int, int]) -> None:
        self.experts = experts
        self._ids: dict[int, list[Tensor]] = {layer: [] for layer in experts}
        self._weights: dict[int, list[Tensor]] = {layer: [] for layer in experts}

    def record(self, layer: int, ids: Tensor, weights: Tensor) -> None:
        """Note expert ids and their routing weights, both [tokens, top_k] and on any device, of one layer."""
        self._ids[layer].append(ids)
        self._weights[layer].append(weights)

    def take(self) -> tuple[Choices, ChoiceWeights]:
        """What was chosen since the last `take`, for at least one token."""
        choices = {layer: np.asarray(torch.cat(found).cpu().long()) for layer, found in self._ids.items()}
        weights = {layer: np.asarray(torch.cat(found).cpu()) for layer, found in self._weights.items()}
        self.forget()
        return choices, weights

    def forget(self) -> None:
        """Drop what was not taken."""
        for found in (*self._ids.values(), *self._weights.values()):
            found.clear()
