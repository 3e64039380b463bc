"""How much of a workload's routing a set of resident experts covers."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from krasis.heat.routing import Counts

Number = TypeVar("Number", np.int64, np.float64)

Ranking = NDArray[np.int64]
"""int64 [experts of all layers], hottest first. An expert's number counts through the layers in their order."""


def flat(layers: Mapping[int, NDArray[Number]]) -> NDArray[Number]:
    """All layers' values [experts] one after the other, in the order of layers."""
    return np.concatenate([layers[layer] for layer in sorted(layers)])


def ranking(profile: Counts) -> Ranking:
    """Experts of all layers together by routed tokens, ties broken by layer and number."""
    return np.argsort(-flat(profile), kind="stable")


def coverage(profile: Counts, workload: Counts, share: float) -> float:
    """Share of the workload's routed (token, expert) pairs held by the profile's hottest `share` of all experts."""
    covered = curve(ranking(profile), flat(workload))
    return float(covered[round(share * (len(covered) - 1))])


def curve(ranked: Ranking, workload: NDArray[Number]) -> NDArray[np.float64]:
    """float64 [experts + 1]: the share of `workload` [experts] that the first 0, 1, ... of `ranked` hold."""
    held = np.concatenate([[0], np.cumsum(workload[ranked], dtype=np.float64)])
    shares: NDArray[np.float64] = held / held[-1]
    return shares
