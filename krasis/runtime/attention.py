"""Causal attention over a sequence's keys and values: the obvious form, and a fast one.

Shapes: q [tokens, heads, dim] are the last positions of k [length, kv heads, dim] and v [length, kv heads, v dim];
heads share kv heads in runs. A token sees the `window` positions up to its own, all where it is 0. `sinks`, [heads]
logits, join the softmax and are then dropped (Xiao et al. 2023). Returns float32 [tokens, heads, v dim].
"""

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.state import Cached

Rows = Tensor | Cached


def causal_mask(tokens: int, length: int, window: int = 0) -> Tensor:
    """bool [tokens, length]: token i, at position length - tokens + i, sees itself and what came before."""
    mask = torch.ones(tokens, length, dtype=torch.bool).tril(length - tokens)
    return mask.triu(length - tokens - window + 1) if window else mask


def reference_attention(
    q: Tensor, k: Rows, v: Rows, scale: float, window: int = 0, sinks: Tensor | None = None
) -> Tensor:
    """softmax(q k^T * scale) v in float32 (Vaswani et al. 2017, eq. 1)."""
    k, v = k.float(), v.float()
    shared = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    scores = scores.masked_fill(~causal_mask(len(q), len(k), window), float("-inf"))
    if sinks is not None:
        scores = torch.cat((sinks.float()[:, None, None].expand(-1, len(q), 1), scores), dim=-1)
    weights = scores.softmax(-1)[..., -len(k) :]
    return torch.einsum("hqk,khd->qhd", weights, v)


def fast_attention(q: Tensor, k: Rows, v: Rows, scale: float, window: int = 0, sinks: Tensor | None = None) -> Tensor:
    """The same, many tokens by torch's fused kernel and one without it."""
    k, v = k.float(), v.float()
    if len(q) == 1:
        return _one_token(q, k[-window:], v[-window:], scale, sinks)
    return _fused(q.float(), k, v, scale, causal_mask(len(q), len(k), window), sinks)


def _one_token(q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor | None) -> Tensor:
    """Heads that share keys are multiplied as one matrix, so that a long context is read once for all of them."""
    shared = q.shape[1] // k.shape[1]
    scores = scale * q[0].float().reshape(-1, shared, q.shape[-1]) @ k.float().permute(1, 2, 0)
    if sinks is not None:
        scores = torch.cat((sinks.float().view(-1, shared, 1), scores), dim=-1)
    weights = scores.softmax(-1)[..., -len(k) :]
    return (weights @ v.float().transpose(0, 1)).flatten(0, 1)[None]


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor, sinks: Tensor | None) -> Tensor:
    v_dim = v.shape[-1]
    if sinks is not None:
        # A first key that every token sees, with no value: one more dimension holds 1 there and a head's sink in q.
        q = torch.cat((q, (sinks.float() / scale)[None, :, None].expand(len(q), -1, 1)), dim=-1)
        k, v = functional.pad(k, (0, 1, 0, 0, 1, 0)), functional.pad(v, (0, 0, 0, 0, 1, 0))
        k[0, :, -1] = 1
        mask = functional.pad(mask, (1, 0), value=True)
    # The fused kernel wants keys and values of one size; without it every score would be held at once.
    dim = max(k.shape[-1], v.shape[-1])
    q, k, v = (functional.pad(t, (0, dim - t.shape[-1])).transpose(0, 1)[None] for t in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out[0, ..., :v_dim].transpose(0, 1)
