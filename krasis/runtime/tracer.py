"""Counts which experts the router chose while a model runs."""

import torch
from torch import Tensor


class Tracer:
    """`counts[layer]` is int64 [experts]: tokens routed to each since the last `take`."""

    def __init__(self, moe_layers: dict[int, int]) -> None:
        self._experts = moe_layers
        self.counts = self._zeros()

    def record(self, layer: int, ids: Tensor) -> None:
        """Note expert ids int64 [tokens, top_k] of one layer."""
        self.counts[layer] += torch.bincount(ids.flatten(), minlength=self._experts[layer])

    def take(self) -> dict[int, Tensor]:
        """The counts so far, and start from zero."""
        taken, self.counts = self.counts, self._zeros()
        return taken

    def _zeros(self) -> dict[int, Tensor]:
        return {layer: torch.zeros(experts, dtype=torch.int64) for layer, experts in self._experts.items()}
