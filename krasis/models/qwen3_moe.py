"""Qwen3-MoE: grouped-query attention with head norms, softmax routing over many small experts."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from krasis.models.blocks import Rope, gated_mlp, rms_norm, rotate, softmax_top_k, swiglu
from krasis.models.config import Config
from krasis.models.family import Count, Group, ModelSpec, Positive, State, Weight, Weights


class Spec(ModelSpec, frozen=True, tag="qwen3_moe"):
    """`intermediate_size` is the width of the layers in `dense_layers`, which have one MLP and no experts."""

    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    rope_theta: Positive
    num_experts: Count
    experts_per_token: Count
    expert_size: Count
    norm_topk_prob: bool
    dense_layers: tuple[int, ...]
    intermediate_size: int
    tied_embeddings: bool


def parse_config(tree: Mapping[str, Any]) -> Spec:
    config = Config(tree)
    config.require("hidden_act", "silu")
    config.require("attention_bias", False)
    config.require("use_sliding_window", False)
    for unused in ("sliding_window", "max_window_layers"):
        config.require(unused, tree.get(unused))
    layers = config.take(int, "num_hidden_layers")
    step = config.take(int, "decoder_sparse_step", default=1)
    listed = config.ints("mlp_only_layers")
    heads = config.take(int, "num_attention_heads")
    hidden = config.take(int, "hidden_size")
    spec = Spec(
        hidden_size=hidden,
        num_layers=layers,
        vocab_size=config.take(int, "vocab_size"),
        max_positions=config.take(int, "max_position_embeddings"),
        norm_eps=config.take(float, "rms_norm_eps"),
        eos_token_ids=config.ints("eos_token_id"),
        num_heads=heads,
        num_kv_heads=config.take(int, "num_key_value_heads", default=heads),
        head_dim=config.take(int, "head_dim", default=hidden // heads),
        rope_theta=config.rope_theta(),
        num_experts=config.take(int, "num_experts", "num_local_experts"),
        experts_per_token=config.take(int, "num_experts_per_tok"),
        expert_size=config.take(int, "moe_intermediate_size"),
        norm_topk_prob=config.take(bool, "norm_topk_prob"),
        dense_layers=tuple(i for i in range(layers) if i in listed or (i + 1) % step),
        intermediate_size=config.take(int, "intermediate_size", default=0),
        tied_embeddings=config.take(bool, "tie_word_embeddings", default=False),
    )
    config.hold(heads % spec.num_kv_heads == 0, "num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    config.hold(spec.head_dim % 2 == 0, "head_dim", "even, for rotary embedding")
    config.hold(
        spec.experts_per_token <= spec.num_experts, "num_experts_per_tok", f"at most {spec.num_experts} experts"
    )
    config.hold(spec.intermediate_size > 0 or not spec.dense_layers, "intermediate_size", "the width of dense layers")
    config.finish()
    return spec


def groups(spec: Spec) -> Iterator[tuple[str, list[Group]]]:
    hidden, vocab = spec.hidden_size, spec.vocab_size
    embed = "model.embed_tokens.weight"
    head = embed if spec.tied_embeddings else "lm_head.weight"
    keep = (Weight("embed", (embed,), (vocab, hidden)), Weight("norm", ("model.norm.weight",), (hidden,)))
    yield (
        "base.bin",
        [Group("base", "keep", (keep,)), Group("head", "dense", ((Weight("lm_head", (head,), (vocab, hidden)),),))],
    )
    for layer in range(spec.num_layers):
        yield f"layer-{layer:03d}.bin", _layer_groups(spec, layer)


def _layer_groups(spec: Spec, layer: int) -> list[Group]:
    prefix = f"model.layers.{layer}."
    hidden, dim = spec.hidden_size, spec.head_dim
    keep = [
        Weight("input_norm", (f"{prefix}input_layernorm.weight",), (hidden,)),
        Weight("post_norm", (f"{prefix}post_attention_layernorm.weight",), (hidden,)),
        Weight("q_norm", (f"{prefix}self_attn.q_norm.weight",), (dim,)),
        Weight("k_norm", (f"{prefix}self_attn.k_norm.weight",), (dim,)),
    ]
    dense = [
        Weight("q", (f"{prefix}self_attn.q_proj.weight",), (spec.num_heads * dim, hidden)),
        Weight("k", (f"{prefix}self_attn.k_proj.weight",), (spec.num_kv_heads * dim, hidden)),
        Weight("v", (f"{prefix}self_attn.v_proj.weight",), (spec.num_kv_heads * dim, hidden)),
        Weight("o", (f"{prefix}self_attn.o_proj.weight",), (hidden, spec.num_heads * dim)),
    ]
    name = f"layers.{layer}"
    if layer in spec.dense_layers:
        dense += _gated(f"{prefix}mlp.", hidden, spec.intermediate_size, "gate_up", "down")
        return [Group(name, "keep", (tuple(keep),)), Group(f"{name}.dense", "dense", (tuple(dense),))]
    keep.append(Weight("router", (f"{prefix}mlp.gate.weight",), (spec.num_experts, hidden)))
    experts = tuple(
        tuple(_gated(f"{prefix}mlp.experts.{expert}.", hidden, spec.expert_size, "w13", "w2"))
        for expert in range(spec.num_experts)
    )
    return [
        Group(name, "keep", (tuple(keep),)),
        Group(f"{name}.dense", "dense", (tuple(dense),)),
        Group(f"{name}.experts", "expert", experts),
    ]


def _gated(prefix: str, hidden: int, size: int, gate_up: str, down: str) -> list[Weight]:
    halves = (f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight")
    return [
        Weight(gate_up, halves, (size, hidden), feeds=down),
        Weight(down, (f"{prefix}down_proj.weight",), (hidden, size)),
    ]


def ignored(name: str, spec: Spec) -> bool:
    return spec.tied_embeddings and name == "lm_head.weight"


def kv_shapes(spec: Spec) -> list[tuple[int, int]]:
    return [(spec.num_kv_heads, spec.head_dim)] * spec.num_layers


def moe_layers(spec: Spec) -> dict[int, int]:
    return {layer: spec.num_experts for layer in range(spec.num_layers) if layer not in spec.dense_layers}


def build(spec: Spec, weights: Weights) -> "Qwen3Moe":
    return Qwen3Moe(spec, weights)


class Qwen3Moe:
    """The decoder. Hidden states are float32 [tokens, H]."""

    def __init__(self, spec: Spec, weights: Weights) -> None:
        self._spec = spec
        self._embed = weights.tensor("base", "embed")
        self._norm = weights.tensor("base", "norm")
        self._lm_head = weights.linear("head", "lm_head")
        self._rope = Rope(spec.head_dim, spec.rope_theta)
        self._blocks = [_Block(spec, weights, layer) for layer in range(spec.num_layers)]

    def forward(self, ids: Tensor, state: State) -> Tensor:
        x = functional.embedding(ids, self._embed).float()
        angles = self._rope.angles(state.position, len(ids))
        for block in self._blocks:
            x = block.forward(x, angles, state)
        state.position += len(ids)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self._lm_head(rms_norm(hidden, self._norm, self._spec.norm_eps))


class _Block:
    def __init__(self, spec: Spec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}"
        self._spec, self._layer = spec, layer
        self._norms = {key: weights.tensor(name, key) for key in ("input_norm", "post_norm", "q_norm", "k_norm")}
        self._q, self._k, self._v, self._o = (weights.linear(f"{name}.dense", key) for key in "qkvo")
        self._dense = layer in spec.dense_layers
        if self._dense:
            self._gate_up, self._down = (weights.linear(f"{name}.dense", key) for key in ("gate_up", "down"))
        else:
            self._router = weights.linear(name, "router")
            self._experts = weights.experts(f"{name}.experts", swiglu)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], state: State) -> Tensor:
        x = x + self._attention(self._normed(x, "input_norm"), angles, state)
        return x + self._mlp(self._normed(x, "post_norm"))

    def _normed(self, x: Tensor, norm: str) -> Tensor:
        return rms_norm(x, self._norms[norm], self._spec.norm_eps)

    def _attention(self, x: Tensor, angles: tuple[Tensor, Tensor], state: State) -> Tensor:
        q, k, v = (linear(x).view(len(x), -1, self._spec.head_dim) for linear in (self._q, self._k, self._v))
        q = rotate(self._normed(q, "q_norm"), angles)
        k = rotate(self._normed(k, "k_norm"), angles)
        return self._o(state.attend(self._layer, q, k, v, self._spec.head_dim**-0.5).flatten(-2))

    def _mlp(self, x: Tensor) -> Tensor:
        if self._dense:
            return gated_mlp(self._gate_up, self._down, x)
        ids, weights = softmax_top_k(
            self._router(x), self._spec.experts_per_token, renormalize=self._spec.norm_topk_prob
        )
        return self._experts(x, ids, weights)
