"""From router logits float32 [tokens, experts] to (ids int64 [tokens, k], weights float32 [tokens, k])."""

import torch
from torch import Tensor


def normalized(weights: Tensor) -> Tensor:
    """Weights that sum to 1 for every token."""
    return weights / weights.sum(-1, keepdim=True)


def within_best_groups(scores: Tensor, groups: int, kept: int, votes: int) -> Tensor:
    """Scores with all but the `kept` best of `groups` equal runs of experts at minus infinity.

    A group is as good as the sum of its `votes` best scores: 1 in DeepSeek-V2 (section 2.2.1, device-limited routing),
    2 in DeepSeek-V3 (section 2.1.2, node-limited routing).
    """
    if kept == groups:
        return scores
    grouped = scores.view(len(scores), groups, -1)
    best = grouped.topk(votes, dim=-1).values.sum(-1).topk(kept, dim=-1).indices
    dropped = torch.ones(len(scores), groups, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(dropped[..., None], float("-inf")).flatten(1)
