"""A mixture of experts."""

from collections.abc import Callable

from torch import Tensor

from krasis.models.blocks.mlp import swiglu
from krasis.models.family import Activation, Linear, Weights

Route = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Router logits float32 [tokens, experts] -> (expert ids int64 [tokens, k], weights float32 [tokens, k])."""


class Moe:
    """The experts that `route` chooses by the logits of segment `name`'s router, and what every token shares."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        route: Route,
        *,
        activation: Activation = swiglu,
        shared: Linear | None = None,
    ) -> None:
        self._router = weights.linear(name, "router")
        self._experts = weights.experts(f"{name}.experts", activation, shared)
        self._route = route

    def __call__(self, x: Tensor) -> Tensor:
        return self._experts(x, *self._route(self._router(x)))
