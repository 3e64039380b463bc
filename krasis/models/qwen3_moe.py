"""Qwen3-MoE: grouped-query attention with head norms, softmax routing over many small experts."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from krasis.models.blocks.decoder import Decoder, Layer
from krasis.models.blocks.mlp import GatedMlp
from krasis.models.blocks.moe import Best, Moe
from krasis.models.blocks.norms import stored_norm
from krasis.models.blocks.rope import Angles, Rope, RopeSpec
from krasis.models.config import Config
from krasis.models.family import Count, Linear, ModelSpec, PartCount, Weights, Width
from krasis.models.ops import HeadShape, Routing
from krasis.models.state import Cache, LayerState, State
from krasis.models.weight import File, Group, base_file, experts, gated, layer_file, left_out, tensor


class Spec(ModelSpec, frozen=True, tag="qwen3_moe"):
    """`intermediate_size` is the width of the layers in `dense_layers`, which have one MLP and no experts."""

    num_heads: PartCount
    num_kv_heads: PartCount
    head_dim: Width
    rope: RopeSpec
    num_experts: PartCount
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
        **read_mlp(config, common["num_layers"]),
    )
    config.finish()
    return spec


def read_mlp(config: Config, layers: int) -> dict[str, Any]:
    """The fields of experts and dense layers that Qwen's families share."""
    step = config.take(int, "decoder_sparse_step", default=1)
    listed = config.ints("mlp_only_layers")
    dense = tuple(layer for layer in range(layers) if layer in listed or (layer + 1) % step)
    size = config.take(int, "intermediate_size", default=0)
    config.hold(size > 0 or not dense, "intermediate_size", "the width of dense layers")
    experts, chosen = config.experts("num_experts", "num_local_experts")
    return {
        "num_experts": experts,
        "experts_per_token": chosen,
        "expert_size": config.take(int, "moe_intermediate_size"),
        "norm_topk_prob": config.take(bool, "norm_topk_prob"),
        "dense_layers": dense,
        "intermediate_size": size,
    }


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
    layers = [_build_layer(spec, weights, layer) for layer in range(spec.num_layers)]
    return Decoder(weights, layers, Rope(spec.head_dim, spec.rope), spec.norm_eps)


def _build_layer(spec: Spec, weights: Weights, layer: int) -> Layer:
    name = f"layers.{layer}"
    if layer in spec.dense_layers:
        mlp: Linear = GatedMlp(weights, f"{name}.dense", "gate_up", "down")
    else:
        routing = Routing(spec.experts_per_token, "softmax", normalize=spec.norm_topk_prob)
        mlp = Moe(weights, name, Best(weights.ops, routing))
    return Layer(weights, name, _Attention(spec, weights, layer), mlp, spec.norm_eps)


class _Attention:
    def __init__(self, spec: Spec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}"
        self._layer, self._scale = layer, spec.head_dim**-0.5
        self._ops, self._eps = weights.ops, spec.norm_eps
        self._heads = HeadShape(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        self._qkv, self._o = weights.linears(f"{name}.dense", "qkv"), weights.linear(f"{name}.dense", "o")
        self._norms = (stored_norm(weights, name, "q_norm"), stored_norm(weights, name, "k_norm"))

    def __call__(self, x: Tensor, angles: Angles, state: State) -> Tensor:
        places = state.places(self._layer, len(x))
        q, k, v = self._ops.turn_heads(self._qkv(x), self._heads, angles, self._norms, self._eps, places)
        return self._o(state.attend(self._layer, q, k, v, self._scale).flatten(-2))
