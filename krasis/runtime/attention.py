"""Causal attention over a sequence's keys and values: the obvious form, and torch's fused one.

Shapes: q [tokens, heads, dim] are the last positions of k, v [length, kv heads, dim]; heads share kv heads in runs.
Returns [tokens, heads, dim].
"""

import torch
from torch import Tensor
from torch.nn import functional


def causal_mask(tokens: int, length: int) -> Tensor:
    """bool [tokens, length]: token i, at position length - tokens + i, sees itself and what came before."""
    return torch.ones(tokens, length, dtype=torch.bool).tril(length - tokens)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) v in float32 (Vaswani et al. 2017, eq. 1)."""
    shared = q.shape[1] // k.shape[1]
    k, v = (t.float().repeat_interleave(shared, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    scores = scores.masked_fill(~causal_mask(len(q), len(k)), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same by torch's scaled_dot_product_attention, in float32."""
    mask = None if len(q) == 1 else causal_mask(len(q), len(k))
    q, k, v = (t.float().transpose(0, 1)[None] for t in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)
