"""Multi-head latent attention (DeepSeek-V2, section 2.1): a small latent a token is cached, not keys and values.

The matrices that make keys and values of a latent, W_UK and W_UV, lie in segment `layers.N.heads`, a record a head:
`k_b` [latent, nope] and `v_b` [v, latent]. They are kept as they are: the two forms of attention multiply them with
different vectors, so rounding would make prefill and decode differ (by 0.003 nats in 8 bits, on a small model).
"""

from typing import Protocol

import torch
from torch import Tensor

from krasis.models.blocks.norms import Norm, stored_norm
from krasis.models.blocks.rope import Angles, RopeSpec
from krasis.models.family import Linear, Weights
from krasis.models.state import Cache, Cached, OneSequence, State
from krasis.models.weight import Group, Source, Weight, tensor

NORM_EPS = 1e-6
"""Of the norms of latents, whatever the model's own is."""

HEADS_AT_ONCE = 4
"""Heads whose keys and values are made at one time, so that a long context takes little memory."""


class LatentSpec(Protocol):
    """What the spec of a family with latent attention has. A `q_lora_rank` of 0 is a query without latent."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def q_lora_rank(self) -> int: ...
    @property
    def kv_lora_rank(self) -> int: ...
    @property
    def nope_dim(self) -> int: ...
    @property
    def rope_dim(self) -> int: ...
    @property
    def v_dim(self) -> int: ...
    @property
    def rope(self) -> RopeSpec: ...


def cache(spec: LatentSpec) -> Cache:
    """What a layer keeps of a token: its latent and the one key part that turns, shared by all heads."""
    expanded = HEADS_AT_ONCE * (spec.nope_dim + spec.rope_dim + max(spec.nope_dim, spec.v_dim))
    return Cache(((1, spec.kv_lora_rank + spec.rope_dim),), expanded=expanded)


def kept(spec: LatentSpec, prefix: str) -> list[Weight]:
    """Norms of the latents."""
    weights = [tensor("kv_norm", f"{prefix}kv_a_layernorm.weight", spec.kv_lora_rank)]
    if spec.q_lora_rank:
        weights.append(tensor("q_norm", f"{prefix}q_a_layernorm.weight", spec.q_lora_rank))
    return weights


def dense(spec: LatentSpec, prefix: str) -> list[Weight]:
    """Matrices that all heads share."""
    hidden, rank = spec.hidden_size, spec.q_lora_rank
    queries = spec.num_heads * (spec.nope_dim + spec.rope_dim)
    weights = [
        tensor("kv_a", f"{prefix}kv_a_proj_with_mqa.weight", spec.kv_lora_rank + spec.rope_dim, hidden),
        tensor("o", f"{prefix}o_proj.weight", hidden, spec.num_heads * spec.v_dim),
    ]
    if not rank:
        return [tensor("q", f"{prefix}q_proj.weight", queries, hidden), *weights]
    q_a, q_b = f"{prefix}q_a_proj.weight", f"{prefix}q_b_proj.weight"
    return [tensor("q_a", q_a, rank, hidden), tensor("q_b", q_b, queries, rank), *weights]


def heads(spec: LatentSpec, name: str, prefix: str) -> Group:
    """The matrices of each head, cut from kv_b_proj."""
    source, both = f"{prefix}kv_b_proj.weight", spec.nope_dim + spec.v_dim

    def record(head: int) -> tuple[Weight, ...]:
        first, middle, last = head * both, head * both + spec.nope_dim, (head + 1) * both
        k_b = Source(source, first=first, last=middle, turned=True)
        v_b = Source(source, first=middle, last=last)
        return (
            Weight("k_b", (k_b,), (spec.kv_lora_rank, spec.nope_dim)),
            Weight("v_b", (v_b,), (spec.v_dim, spec.kv_lora_rank)),
        )

    return Group(f"{name}.heads", "keep", tuple(map(record, range(spec.num_heads))))


class LatentAttention:
    def __init__(self, spec: LatentSpec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}"
        self._spec, self._layer = spec, layer
        self._query_kv_a = weights.linears(f"{name}.dense", ("q_a" if spec.q_lora_rank else "q", "kv_a"))
        self._query, self._o = _query(spec, weights, name), weights.linear(f"{name}.dense", "o")
        self._ops = weights.ops
        self._kv_norm = stored_norm(weights, name, "kv_norm")
        self._k_b, self._v_b = (weights.heads(f"{name}.heads", key) for key in ("k_b", "v_b"))
        self._scale = (spec.nope_dim + spec.rope_dim) ** -0.5
        if spec.rope.yarn is not None:
            self._scale *= spec.rope.yarn.softmax_factor

    def __call__(self, x: Tensor, angles: Angles, state: State) -> Tensor:
        spec = self._spec
        places = state.places(self._layer, len(x))
        query, kv = _cut(self._query_kv_a(x), -(spec.kv_lora_rank + spec.rope_dim))
        q = self._query(query).view(x.shape[0], spec.num_heads, -1)
        q, latent = self._ops.turn_latent(q, kv, angles, self._kv_norm, NORM_EPS, places)
        attend = self.absorbed if self._absorbs(*state.span(x.shape[0])) else self.expanded
        return self._o(attend(q, latent, state).flatten(1))

    def absorbed(self, q: Tensor, latent: Tensor, state: State) -> Tensor:
        """Attention on the latents themselves, W_UK being applied to the query and W_UV to the result."""
        return self._v_b(state.each(self._attend_latents, self._k_b.leading(q), latent))

    def expanded(self, q: Tensor, latent: Tensor, state: State) -> Tensor:
        """Attention on keys and values made of the latents."""
        return state.each(self._attend_keys, q, latent)

    def _attend_latents(self, sequence: OneSequence, q: Tensor, latent: Tensor) -> Tensor:
        (cached,) = sequence.extend(self._layer, latent[:, None])
        return sequence.attention(q, cached, cached.leading(self._spec.kv_lora_rank), self._scale)

    def _attend_keys(self, sequence: OneSequence, q: Tensor, latent: Tensor) -> Tensor:
        """A few heads at a time."""
        (cached,) = sequence.extend(self._layer, latent[:, None])
        latents, k_rope = _cut(cached.float(), self._spec.kv_lora_rank)
        out = []
        for first in range(0, self._spec.num_heads, HEADS_AT_ONCE):
            some = slice(first, first + HEADS_AT_ONCE)
            k_b, v_b = self._k_b.dense(some), self._v_b.dense(some)
            latents, k_rope = latents.to(k_b.dtype), k_rope.to(k_b.dtype)
            k_nope = torch.einsum("tc,hcn->thn", latents[:, 0], k_b)
            k = torch.cat((k_nope, k_rope.expand(-1, len(k_b), -1)), dim=-1)
            v = torch.einsum("tc,hvc->thv", latents[:, 0], v_b)
            out.append(sequence.attention(q[:, some], Cached(k), Cached(v), self._scale))
        return torch.cat(out, dim=1)

    def _absorbs(self, tokens: int, length: int) -> bool:
        """Whether the absorbed form takes fewer multiplications a head. One more token stands for dequantization."""
        spec = self._spec
        matrices = spec.kv_lora_rank * (spec.nope_dim + spec.v_dim)
        absorbed = tokens * (matrices + length * (2 * spec.kv_lora_rank + spec.rope_dim))
        expanded = (length + 1) * matrices + tokens * length * (spec.nope_dim + spec.rope_dim + spec.v_dim)
        return absorbed <= expanded


def _query(spec: LatentSpec, weights: Weights, name: str) -> Linear:
    """What makes queries of their latent; of a query itself where there is none."""
    if not spec.q_lora_rank:
        return lambda query: query
    q_b, norm = weights.linear(f"{name}.dense", "q_b"), Norm(weights, name, "q_norm", NORM_EPS)
    return lambda latent: q_b(norm(latent))


def _cut(x: Tensor, at: int) -> tuple[Tensor, Tensor]:
    return x[..., :at], x[..., at:]
