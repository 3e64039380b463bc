"""The gated delta rule (Yang et al. 2024, "Gated Delta Networks"): the obvious form, and one by chunks.

A head's memory is a matrix that maps keys to values. Every token fades it, and moves what it holds for the token's key
towards the token's value. Shapes, all float32: q and k [tokens, key heads, dk], the keys of length 1; v [tokens, value
heads, dv]; value heads share keys and queries in runs. `decay` [tokens, value heads] is the logarithm of the factor
that fades, 0 or less; `beta`, the same shape, the share that moves, 0 to 1. `state` [value heads, dk, dv] is
overwritten; it is the paper's S, transposed. Returns [tokens, value heads, dv].
"""

import torch
from torch import Tensor

CHUNK = 64
FEW = 6
"""Up to so many tokens are faster one at a time, measured on 2 cores with 32 value heads of 128."""


def delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """The faster of the two forms."""
    form = recurrent_delta_rule if len(q) <= FEW else chunked_delta_rule
    return form(q, k, v, decay, beta, state)


def recurrent_delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """Token by token (eq. 10): S = a S + k (beta (v - a S^T k))^T with a = exp(decay), and S^T q."""
    shared = v.shape[1] // k.shape[1]
    q, k = (x.repeat_interleave(shared, dim=1)[:, :, None] for x in (q, k))
    v, beta, kept = v[:, :, None], beta[:, :, None, None], decay.exp()[:, :, None, None]
    out = []
    for t in range(len(q)):
        state *= kept[t]
        state.addcmul_(k[t].mT, beta[t] * (v[t] - k[t] @ state))
        out.append(q[t] @ state)
    return torch.stack(out).squeeze(2)


def chunked_delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """The same, `CHUNK` tokens at a time (section 3.3)."""
    tokens, heads = k.shape[:2]
    q, k = (x.transpose(0, 1)[:, None] for x in (q, k))
    v, decay, beta = (x.view(tokens, heads, -1, *x.shape[2:]).movedim(0, 2) for x in (v, decay, beta))
    memory = state.view(heads, -1, *state.shape[1:])
    chunks = zip(*(torch.split(x, CHUNK, dim=2) for x in (q, k, v, decay, beta)), strict=True)
    return torch.cat([_chunk(memory, *chunk).flatten(0, 1).transpose(0, 1) for chunk in chunks])


def _chunk(state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """One chunk: [key heads, 1, tokens, dk], [key heads, shared, tokens, dv], [key heads, shared, tokens].

    What a token writes, u_i = beta_i (v_i - what is held for k_i), depends on what those before it wrote, so that all u
    are the solution of a triangular system: the WY form, u being the paper's U - W S^T. Decays between two tokens are
    differences of running sums; all of them are exponentials of numbers not above 0.
    """
    # Beside a strong decay float32 would round a weak one away.
    since = decay.double().cumsum(-1)
    between = (since[..., :, None] - since[..., None, :]).tril().float().exp().tril()
    until_end = (since[..., -1:] - since).float().exp()[..., None]
    since_start = since.float().exp()[..., None]

    system = (k @ k.mT * between * beta[..., None]).tril(-1)
    right = beta[..., None] * (v - since_start * (k @ state))
    u: Tensor = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)

    out = since_start * (q @ state) + (q @ k.mT * between) @ u
    state *= since_start[..., -1:, :]
    state += (k * until_end).mT @ u
    return out
