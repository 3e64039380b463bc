"""How often a made-up router chooses each expert: the law, and the offsets of logits that make it hold."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krasis.heat.routing import Routing
from krasis.models import deepseek_v2
from krasis.models.family import ModelSpec
from krasis.models.ops import TorchOps

MOST = 0.9
"""No expert is chosen by a larger share of tokens, however skewed the law: none is certain."""

TOKENS = 4096
EXPECTED = 10**6
"""Tokens that a profile of the law counts."""

ROUNDS = 12

Choose = Callable[[Tensor], Tensor]
"""Router logits float32 [tokens, experts] -> ids int64 [tokens, k] of the experts chosen."""


def law(experts: int, chosen: int, skew: float) -> Tensor:
    """float64 [experts]: the share of tokens that choose the expert of each rank, `chosen` in all.

    It is a rank^-skew, at most `MOST` (Zipf's law, cut off); what is cut off falls to the others in proportion.
    """
    shares = torch.arange(1, experts + 1, dtype=torch.float64) ** -skew
    most = max(MOST, chosen / experts)
    capped = 0
    while True:
        rest = (chosen - most * capped) / float(shares[capped:].sum()) if capped < experts else 0.0
        if capped == experts or rest * float(shares[capped]) <= most:
            break
        capped += 1
    found = shares * rest
    found[:capped] = most
    return found


def chooser(spec: ModelSpec) -> Choose:
    """How the family of a spec chooses by logits."""
    if isinstance(spec, deepseek_v2.MoeSpec):
        route = deepseek_v2.router(spec, TorchOps(), None)
        return lambda logits: route(logits)[0]
    count: int = spec.experts_per_token  # type: ignore[attr-defined]
    return lambda logits: logits.topk(count, dim=-1).indices


class Popularity:
    """The offsets that `skew` asks for of a model's routers, and a random order of experts in every layer.

    A token's logits are taken as independent standard normals plus one offset an expert.
    """

    def __init__(self, spec: ModelSpec, skew: float, seed: int) -> None:
        self._experts: int = spec.num_experts  # type: ignore[attr-defined]
        self._groups: int = getattr(spec, "groups", 1)
        noise = np.random.default_rng(seed).standard_normal((TOKENS, self._experts), dtype=np.float32)
        # Ranks are dealt to groups like cards, so that each has as much to offer.
        dealt = torch.arange(self._experts).view(-1, self._groups).T.flatten()
        chosen: int = spec.experts_per_token  # type: ignore[attr-defined]
        self.shares = law(self._experts, chosen, skew)[dealt]
        self._offsets = calibrate(self.shares, chooser(spec), torch.from_numpy(noise))

    def order(self, rng: np.random.Generator) -> Tensor:
        """int64 [experts]: at each, the index into `shares` of the expert there. Groups stay together."""
        groups = torch.arange(self._experts).view(self._groups, -1)
        order = [groups[group][rng.permutation(groups.shape[1])] for group in rng.permutation(self._groups)]
        return torch.cat(order)

    def offsets(self, order: Tensor) -> Tensor:
        """float32 [experts]: what each logit of a layer is raised by, next to normals of spread 1."""
        return self._offsets[order]

    def counts(self, order: Tensor) -> NDArray[np.int64]:
        """How often each expert is chosen for `EXPECTED` tokens."""
        return _counts(self.shares[order])


def calibrate(shares: Tensor, choose: Choose, noise: Tensor) -> Tensor:
    """float32 offsets with which `choose` takes each expert as often as `shares` says, over `noise` as logits."""
    experts, floor = len(shares), 0.5 / len(noise)

    def quantiles(found: Tensor) -> Tensor:
        z: Tensor = torch.special.ndtri(found.double().clamp(floor, 1 - floor))
        return z

    wanted = quantiles(shares)
    offsets = wanted.clone()
    for _ in range(ROUNDS):
        ids = choose(noise + offsets.float())
        offsets += wanted - quantiles(torch.bincount(ids.flatten(), minlength=experts) / len(noise))
    return offsets.float()


def routing(spec: ModelSpec, layers: dict[int, int], skew: float) -> Routing:
    """The law as a profile: of each layer with experts, `layers`, how often their ranks are chosen, best first."""
    shares = {layer: law(experts, spec.experts_per_token, skew) for layer, experts in layers.items()}  # type: ignore[attr-defined]
    return counted({layer: _counts(found) for layer, found in shares.items()})


def counted(counts: dict[int, NDArray[np.int64]]) -> Routing:
    """What `EXPECTED` tokens chose, unweighted."""
    return Routing(EXPECTED, counts, {layer: np.zeros(len(found)) for layer, found in counts.items()})


def _counts(shares: Tensor) -> NDArray[np.int64]:
    found: NDArray[np.int64] = (shares * EXPECTED).round().long().numpy()
    return found
