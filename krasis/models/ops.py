"""What lies between products: operations that a backend may do its own way, and what they mean, in plain torch.

Tensors are float32; x that is said to be lost may have been overwritten with the result.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.blocks.causal_conv import causal_conv
from krasis.models.blocks.delta_rule import delta_rule
from krasis.models.blocks.mlp import swiglu
from krasis.models.blocks.norms import rms_norm
from krasis.models.blocks.rope import Angles, rotate
from krasis.models.blocks.routing import normalized
from krasis.models.state import Places

UNIT_EPS = 1e-6
"""Keeps the length of DeltaNet's keys and queries from 0, whatever the eps of norms is."""

Scores = Literal["softmax", "sigmoid", "logits"]


@dataclass(frozen=True)
class HeadShape:
    """Query heads, key and value heads, and dimensions of one, of grouped-query attention."""

    heads: int
    kv_heads: int
    dim: int


@dataclass(frozen=True)
class Routing:
    """`k` experts are chosen by the scores of their logits plus a bias, and weighed by their scores, times `scale`.

    Scores are a softmax over all logits or a sigmoid of each. "logits" chooses by logits plus bias and weighs by a
    softmax of the chosen ones. `normalize` divides weights by their sum before they are scaled.
    """

    k: int
    scores: Scores
    normalize: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class DeltaShape:
    """Heads and dimensions of a gated DeltaNet; value heads share keys in runs."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, eq=False)
class DeltaForm:
    """A gated DeltaNet. `rate` and `dt_bias` are [value heads], `norm` [value dim]."""

    shape: DeltaShape
    rate: Tensor
    dt_bias: Tensor
    norm: Tensor
    norm_eps: float


class Ops(Protocol):
    """See `TorchOps` for what each one computes. Results are those, but for the order of sums."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[tokens, n] -> `rms_norm` by weight [n]."""

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x + y and its norm, all [tokens, n]. x and y are lost."""

    def turn_heads(
        self,
        x: Tensor,
        shape: HeadShape,
        angles: Angles,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        places: Places = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, [tokens, heads, dim] each, which lie in the columns of x [tokens, n] one behind the other.

        q and k are normalized by `norms` [dim], where there are any, and turned. x is lost. k and v go to their places,
        if the state has any for them.
        """

    def turn_latent(
        self, q: Tensor, kv: Tensor, angles: Angles, norm: Tensor, eps: float, places: Places = None
    ) -> tuple[Tensor, Tensor]:
        """The same of latent attention: q [tokens, heads, nope + rope], kv [tokens, rank + rope], norm [rank].

        The last dimensions, which lie in pairs (0, 1), (2, 3), .., turn and become halves. q and kv are lost.
        """

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """x sigmoid(gate), both [tokens, n]."""

    def open_rows(self, x: Tensor, gate: Tensor) -> Tensor:
        """x [tokens, n] times sigmoid(gate [tokens, 1])."""

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """[tokens, 2 n], gate beside up -> `swiglu` [tokens, n]."""

    def open_swiglu(self, gate_up: Tensor, x: Tensor, door: Tensor) -> Tensor:
        """The same, rows times sigmoid(x door^T): x [tokens, k], door [1, k] as it is stored."""

    def conv_silu(self, x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
        """silu of `causal_conv`."""

    def route(self, logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        """Logits [tokens, experts], bias [experts] -> ids int64 and weights, both [tokens, k]."""

    def delta_net(self, qkv: Tensor, z: Tensor, beta_step: Tensor, form: DeltaForm, memory: Tensor) -> Tensor:
        """norm(o) silu(z), [tokens, value heads * value dim], o being the gated delta rule (Yang et al. 2024).

        qkv [tokens, channels] has all queries, then keys, then values; z is as the values; beta_step [tokens, 2 * value
        heads] has all betas, then all steps; memory [value heads, key dim, value dim] is overwritten.
        """


class TorchOps:
    """Implements `Ops`: the reference."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x + y
        return x, rms_norm(x, weight, eps)

    def turn_heads(
        self,
        x: Tensor,
        shape: HeadShape,
        angles: Angles,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
        places: Places = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = split_heads(x, shape)
        if norms is not None:
            q, k = rms_norm(q, norms[0], eps), rms_norm(k, norms[1], eps)
        return rotate(q, angles), rotate(k, angles), v

    def turn_latent(
        self, q: Tensor, kv: Tensor, angles: Angles, norm: Tensor, eps: float, places: Places = None
    ) -> tuple[Tensor, Tensor]:
        rope = 2 * angles[0].shape[-1]
        q_nope, q_rope = q[..., :-rope], q[..., -rope:]
        latent, k_rope = kv[:, :-rope], kv[:, None, -rope:]
        q_rope, k_rope = rotate(_halves(q_rope), angles), rotate(_halves(k_rope), angles)
        return torch.cat((q_nope, q_rope), dim=-1), torch.cat((rms_norm(latent, norm, eps), k_rope[:, 0]), dim=-1)

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate.sigmoid()

    def open_rows(self, x: Tensor, gate: Tensor) -> Tensor:
        # By an operation on rows: torch rounds the sigmoid of a single value by where in the tensor it lies.
        return x * self.gate(torch.ones_like(gate), gate)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return swiglu(*gate_up.chunk(2, dim=-1))

    def open_swiglu(self, gate_up: Tensor, x: Tensor, door: Tensor) -> Tensor:
        return self.open_rows(self.swiglu(gate_up), x @ door.to(x.dtype).T)

    def conv_silu(self, x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
        return functional.silu(causal_conv(x, weight, state))

    def route(self, logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        scores = score(logits, routing.scores)
        choice = scores if bias is None else scores + bias
        chosen, ids = choice.topk(routing.k, dim=-1)
        weights = chosen.softmax(-1) if routing.scores == "logits" else scores.gather(-1, ids)
        return ids, weigh(weights, routing)

    def delta_net(self, qkv: Tensor, z: Tensor, beta_step: Tensor, form: DeltaForm, memory: Tensor) -> Tensor:
        q, k, v = _unit_heads(qkv, form.shape)
        beta, step = beta_step.chunk(2, dim=-1)
        decay = form.rate * functional.softplus(step + form.dt_bias)
        out = delta_rule(q, k, v, decay, beta.sigmoid(), memory)
        return rms_norm(out, form.norm, form.norm_eps).flatten(-2) * functional.silu(z)


def split_heads(x: Tensor, shape: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q, k and v in the columns of x; what follows them is left out."""
    all_heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    count = sum(all_heads)
    q, k, v = x[:, : count * shape.dim].view(x.shape[0], count, shape.dim).split_with_sizes(all_heads, dim=1)
    return q, k, v


def score(logits: Tensor, scores: Scores) -> Tensor:
    """See `Routing`."""
    if scores == "logits":
        return logits
    return logits.softmax(-1) if scores == "softmax" else logits.sigmoid()


def weigh(weights: Tensor, routing: Routing) -> Tensor:
    """See `Routing`."""
    return (normalized(weights) if routing.normalize else weights) * routing.scale


def _halves(x: Tensor) -> Tensor:
    """Dimensions stored in pairs (0, 1), (2, 3), .. as `rotate` takes them. Keys and queries move alike."""
    return torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)


def _unit_heads(qkv: Tensor, shape: DeltaShape) -> tuple[Tensor, Tensor, Tensor]:
    """[tokens, channels] -> q, k and v by heads, k of length 1 and q shorter by the root of its dimensions."""
    keys = 2 * shape.key_heads * shape.key_dim
    qk = qkv[:, :keys].reshape(len(qkv), 2, shape.key_heads, shape.key_dim)
    q, k = (qk * torch.rsqrt(qk.square().sum(-1, keepdim=True) + UNIT_EPS)).unbind(1)
    v = qkv[:, keys:].reshape(len(qkv), shape.value_heads, shape.value_dim)
    return q * shape.key_dim**-0.5, k, v
