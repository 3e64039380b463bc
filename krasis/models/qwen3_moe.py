"""Qwen3-MoE: grouped-query attention with head norms, softmax routing over many small experts."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from krasis.models.blocks.decoder import Decoder
from krasis.models.blocks.mlp import GatedMlp, swiglu
from krasis.models.blocks.norms import RmsNorm
from krasis.models.blocks.rope import Angles, Rope, RopeSpec, rotate
from krasis.models.blocks.routing import softmax_top_k
from krasis.models.config import Config
from krasis.models.family import Count, Linear, ModelSpec, Weights
from krasis.models.state import Cache, LayerState, State
from krasis.models.weight import File, Group, base_file, experts, gated, layer_file, left_out, tensor


class Spec(ModelSpec, frozen=True, tag="qwen3_moe"):
    """`intermediate_size` is the width of the layers in `dense_layers`, which have one MLP and no experts."""

    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    rope: RopeSpec
    num_experts: Count
    experts_per_token: Count
    expert_size: Count
    norm_topk_prob: bool
    dense_layers: tuple[int, ...]
    intermediate_size: int


def parse_config(tree: Mapping[str, Any]) -> Spec:
    config = Config(tree)
    config.require("hidden_act", "silu")
    config.require("attention_bias", False)
    config.require("use_sliding_window", False)
    for unused in ("sliding_window", "max_window_layers"):
        config.skip(unused)
    common = config.common()
    heads, kv_heads, head_dim = config.heads()
    spec = Spec(
        **common,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope=config.rope(),
        num_experts=config.take(int, "num_experts", "num_local_experts"),
        experts_per_token=config.take(int, "num_experts_per_tok"),
        expert_size=config.take(int, "moe_intermediate_size"),
        norm_topk_prob=config.take(bool, "norm_topk_prob"),
        dense_layers=config.dense_layers(common["num_layers"]),
        intermediate_size=config.take(int, "intermediate_size", default=0),
    )
    config.hold(
        spec.experts_per_token <= spec.num_experts, "num_experts_per_tok", f"at most {spec.num_experts} experts"
    )
    config.hold(spec.intermediate_size > 0 or not spec.dense_layers, "intermediate_size", "the width of dense layers")
    config.finish()
    return spec


def files(spec: Spec) -> Iterator[File]:
    yield base_file(spec.hidden_size, spec.vocab_size, tied=spec.tied_embeddings)
    for layer in range(spec.num_layers):
        yield layer_file(layer, _layer(spec, layer))


def _layer(spec: Spec, layer: int) -> list[Group]:
    name, prefix = f"layers.{layer}", f"model.layers.{layer}."
    hidden, dim = spec.hidden_size, spec.head_dim
    keep = [
        tensor("input_norm", f"{prefix}input_layernorm.weight", hidden),
        tensor("post_norm", f"{prefix}post_attention_layernorm.weight", hidden),
        tensor("q_norm", f"{prefix}self_attn.q_norm.weight", dim),
        tensor("k_norm", f"{prefix}self_attn.k_norm.weight", dim),
    ]
    dense = [
        tensor("q", f"{prefix}self_attn.q_proj.weight", spec.num_heads * dim, hidden),
        tensor("k", f"{prefix}self_attn.k_proj.weight", spec.num_kv_heads * dim, hidden),
        tensor("v", f"{prefix}self_attn.v_proj.weight", spec.num_kv_heads * dim, hidden),
        tensor("o", f"{prefix}self_attn.o_proj.weight", hidden, spec.num_heads * dim),
    ]
    routed = []
    if layer in spec.dense_layers:
        dense += gated(f"{prefix}mlp.", hidden, spec.intermediate_size, "gate_up", "down")
    else:
        keep.append(tensor("router", f"{prefix}mlp.gate.weight", spec.num_experts, hidden))
        records = experts(f"{prefix}mlp.experts.", spec.num_experts, hidden, spec.expert_size)
        routed = [Group(f"{name}.experts", "expert", records)]
    return [Group(name, "keep", (tuple(keep),)), Group(f"{name}.dense", "dense", (tuple(dense),)), *routed]


def ignored(name: str, spec: Spec) -> bool:
    return left_out(name, tied=spec.tied_embeddings, layers=spec.num_layers)


def states(spec: Spec) -> list[LayerState]:
    rows = ((spec.num_kv_heads, spec.head_dim),) * 2
    return [Cache(rows)] * spec.num_layers


def moe_layers(spec: Spec) -> dict[int, int]:
    return {layer: spec.num_experts for layer in range(spec.num_layers) if layer not in spec.dense_layers}


def build(spec: Spec, weights: Weights) -> Decoder:
    blocks = [_Block(spec, weights, layer) for layer in range(spec.num_layers)]
    return Decoder(weights, blocks, Rope(spec.head_dim, spec.rope), spec.norm_eps)


class _Block:
    def __init__(self, spec: Spec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}"
        self._input_norm, self._post_norm = (
            RmsNorm(weights.tensor(name, norm), spec.norm_eps) for norm in ("input_norm", "post_norm")
        )
        self._attention = _Attention(spec, weights, layer)
        self._mlp: Linear
        if layer in spec.dense_layers:
            self._mlp = GatedMlp(weights, f"{name}.dense", "gate_up", "down")
        else:
            self._mlp = _Moe(spec, weights, name)

    def forward(self, x: Tensor, angles: Angles, state: State) -> Tensor:
        x = x + self._attention(self._input_norm(x), angles, state)
        return x + self._mlp(self._post_norm(x))


class _Attention:
    def __init__(self, spec: Spec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}"
        self._layer, self._dim = layer, spec.head_dim
        self._q, self._k, self._v, self._o = (weights.linear(f"{name}.dense", key) for key in "qkvo")
        self._q_norm, self._k_norm = (RmsNorm(weights.tensor(name, f"{key}_norm"), spec.norm_eps) for key in "qk")

    def __call__(self, x: Tensor, angles: Angles, state: State) -> Tensor:
        q, k, v = (linear(x).view(len(x), -1, self._dim) for linear in (self._q, self._k, self._v))
        q, k = rotate(self._q_norm(q), angles), rotate(self._k_norm(k), angles)
        return self._o(state.attend(self._layer, q, k, v, self._dim**-0.5).flatten(-2))


class _Moe:
    def __init__(self, spec: Spec, weights: Weights, name: str) -> None:
        self._spec = spec
        self._router = weights.linear(name, "router")
        self._experts = weights.experts(f"{name}.experts", swiglu)

    def __call__(self, x: Tensor) -> Tensor:
        ids, shares = softmax_top_k(
            self._router(x), self._spec.experts_per_token, renormalize=self._spec.norm_topk_prob
        )
        return self._experts(x, ids, shares)
