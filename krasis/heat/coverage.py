"""How much of a workload's routing a set of resident experts covers."""

import numpy as np

from krasis.heat.routing import Counts


def coverage(profile: Counts, workload: Counts, share: float) -> float:
    """Share of the workload's routed (token, expert) pairs held by the profile's hottest `share` of all experts.

    Experts are ranked over all layers together, ties broken by layer and number.
    """
    ranked = np.concatenate([profile[layer] for layer in sorted(profile)])
    routed = np.concatenate([workload[layer] for layer in sorted(profile)])
    chosen = np.argsort(-ranked, kind="stable")[: round(share * len(ranked))]
    return float(routed[chosen].sum() / routed.sum())
