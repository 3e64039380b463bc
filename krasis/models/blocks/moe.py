"""A mixture of experts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from krasis.models.blocks.mlp import swiglu
from krasis.models.family import Activation, Linear, Routes, Weights
from krasis.models.ops import Ops, Routing

Route = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Router logits float32 [tokens, experts] -> (expert ids int64 [tokens, k], weights float32 [tokens, k])."""


@dataclass(frozen=True, eq=False)
class Best:
    """The `Route` that `Ops.route` is, which some routers take themselves."""

    ops: Ops
    routing: Routing
    bias: Tensor | None = None

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return self.ops.route(logits, self.bias, self.routing)


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
        self._route, self._choose = route, _chooser(self._router, route)

    def __call__(self, x: Tensor) -> Tensor:
        return self._experts(x, *self._choose(x))


def _chooser(router: Linear, route: Route) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x [tokens, H] -> what `route` makes of the router's logits."""
    if isinstance(route, Best) and isinstance(router, Routes):
        return partial(router.choose, bias=route.bias, routing=route.routing)
    return lambda x: route(router(x))
