"""Qwen3-Next: gated DeltaNet in most layers and gated attention in some, softmax routing, a shared expert."""

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
from krasis.models.ops import DeltaForm, DeltaShape, HeadShape, Routing
from krasis.models.qwen3_moe import read_mlp
from krasis.models.state import Cache, LayerState, OneSequence, Recurrent, State
from krasis.models.weight import File, Group, Source, Weight, base_file, experts, gated, layer_file, left_out, tensor


class Spec(ModelSpec, frozen=True, tag="qwen3_next"):
    """Layers in `attention_layers` have attention, the others DeltaNet, whose sizes begin with `linear`.

    `intermediate_size` is the width of the layers in `dense_layers`, which have one MLP and no experts.
    """

    attention_layers: tuple[int, ...]
    num_heads: PartCount
    num_kv_heads: PartCount
    head_dim: Width
    rope: RopeSpec
    linear_key_heads: PartCount
    linear_value_heads: PartCount
    linear_key_dim: Count
    linear_value_dim: Count
    conv_width: Count
    num_experts: PartCount
    experts_per_token: Count
    expert_size: Count
    shared_size: Count
    norm_topk_prob: bool
    dense_layers: tuple[int, ...]
    intermediate_size: int

    def __post_init__(self) -> None:
        if self.linear_value_heads % self.linear_key_heads:
            raise ValueError(f"{self.linear_value_heads} value heads can't share {self.linear_key_heads} key heads")

    @property
    def shared_heads(self) -> int:
        """Value heads that share a key head in DeltaNet."""
        return self.linear_value_heads // self.linear_key_heads

    @property
    def channels(self) -> int:
        """What DeltaNet's convolution runs over: queries, keys and values."""
        return 2 * self.linear_key_heads * self.linear_key_dim + self.linear_value_heads * self.linear_value_dim


def parse_config(tree: Mapping[str, Any]) -> Spec:
    config = Config(tree)
    config.require("hidden_act", "silu")
    config.require("attention_bias", False)
    config.require("use_sliding_window", False)
    for unused in ("sliding_window", "max_window_layers"):
        config.skip(unused)
    common = config.common()
    # Where head_dim is missing, implementations differ in what it is.
    config.take(int, "head_dim")
    heads, kv_heads, head_dim = config.heads()
    rope = config.rope(partial=0.25)
    turning = int(head_dim * rope.partial)
    config.hold(turning > 0 and turning % 2 == 0, "head_dim", f"even once {rope.partial} of it is taken")
    key_heads, value_heads = (config.take(int, f"linear_num_{part}_heads") for part in ("key", "value"))
    config.hold(value_heads % key_heads == 0, "linear_num_value_heads", f"a multiple of {key_heads} key heads")
    spec = Spec(
        **common,
        attention_layers=_attention_layers(config, common["num_layers"]),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope,
        linear_key_heads=key_heads,
        linear_value_heads=value_heads,
        linear_key_dim=config.take(int, "linear_key_head_dim"),
        linear_value_dim=config.take(int, "linear_value_head_dim"),
        conv_width=config.take(int, "linear_conv_kernel_dim"),
        shared_size=config.take(int, "shared_expert_intermediate_size"),
        **read_mlp(config, common["num_layers"]),
    )
    config.finish()
    return spec


def _attention_layers(config: Config, layers: int) -> tuple[int, ...]:
    interval = config.take(int, "full_attention_interval", default=4)
    full, linear = "full_attention", "linear_attention"
    types = config.strings("layer_types", full, linear)
    if not types:
        return tuple(range(interval - 1, layers, interval))
    config.hold(len(types) == layers, "layer_types", f"one for each of num_hidden_layers, {layers}")
    return tuple(layer for layer, kind in enumerate(types) if kind == full)


def files(spec: Spec) -> Iterator[File]:
    yield base_file(spec.hidden_size, spec.vocab_size, tied=spec.tied_embeddings)
    for layer in range(spec.num_layers):
        yield layer_file(layer, _layer(spec, layer))


def _layer(spec: Spec, layer: int) -> list[Group]:
    name, prefix, hidden = f"layers.{layer}", f"model.layers.{layer}.", spec.hidden_size
    mlp = f"{prefix}mlp."
    mixer = _attention if layer in spec.attention_layers else _delta_net
    keep, dense = mixer(spec, prefix)
    keep += [
        tensor("input_norm", f"{prefix}input_layernorm.weight", hidden),
        tensor("post_norm", f"{prefix}post_attention_layernorm.weight", hidden),
    ]
    routed = []
    if layer in spec.dense_layers:
        dense += gated(mlp, hidden, spec.intermediate_size, "gate_up", "down")
    else:
        keep.append(tensor("router", f"{mlp}gate.weight", spec.num_experts, hidden))
        keep.append(tensor("shared_gate", f"{mlp}shared_expert_gate.weight", 1, hidden))
        dense += gated(f"{mlp}shared_expert.", hidden, spec.shared_size, "shared_gate_up", "shared_down")
        records = experts(f"{mlp}experts.", spec.num_experts, hidden, spec.expert_size)
        routed = [Group(f"{name}.experts", "expert", records)]
    return [Group(name, "keep", (tuple(keep),)), Group(f"{name}.dense", "dense", (tuple(dense),)), *routed]


def _attention(spec: Spec, prefix: str) -> tuple[list[Weight], list[Weight]]:
    """What is kept and what is quantized. The checkpoint has a head's query over its gate, head after head."""
    own, hidden, dim = f"{prefix}self_attn.", spec.hidden_size, spec.head_dim
    queries, keys = spec.num_heads * dim, spec.num_kv_heads * dim
    both = f"{own}q_proj.weight"
    keep = [tensor("q_norm", f"{own}q_norm.weight", dim), tensor("k_norm", f"{own}k_norm.weight", dim)]
    return keep, [
        Weight("q", (Source(both, runs=spec.num_heads, last=dim),), (queries, hidden)),
        Weight("gate", (Source(both, runs=spec.num_heads, first=dim),), (queries, hidden)),
        tensor("k", f"{own}k_proj.weight", keys, hidden),
        tensor("v", f"{own}v_proj.weight", keys, hidden),
        tensor("o", f"{own}o_proj.weight", hidden, queries),
    ]


def _delta_net(spec: Spec, prefix: str) -> tuple[list[Weight], list[Weight]]:
    """What is kept and what is quantized. The checkpoint has for every key head its rows of q, k, v and z, and b and a.

    v and z have rows for all value heads that share the key head, b and a one for each.
    """
    own, hidden, runs, shared = f"{prefix}linear_attn.", spec.hidden_size, spec.linear_key_heads, spec.shared_heads
    keys, values = runs * spec.linear_key_dim, spec.linear_value_heads * spec.linear_value_dim
    beta = Source(f"{own}in_proj_ba.weight", runs=runs, last=shared)
    decay = Source(f"{own}in_proj_ba.weight", runs=runs, first=shared)
    keep = [
        Weight("beta_decay", (beta, decay), (spec.linear_value_heads, hidden)),
        tensor("a_log", f"{own}A_log", spec.linear_value_heads),
        tensor("dt_bias", f"{own}dt_bias", spec.linear_value_heads),
        tensor("conv", f"{own}conv1d.weight", spec.channels, 1, spec.conv_width),
        tensor("out_norm", f"{own}norm.weight", spec.linear_value_dim),
    ]
    dense, first = [], 0
    for key, rows in (("q", keys), ("k", keys), ("v", values), ("z", values)):
        last = first + rows // runs
        source = Source(f"{own}in_proj_qkvz.weight", runs=runs, first=first, last=last)
        dense.append(Weight(key, (source,), (rows, hidden)))
        first = last
    return keep, [*dense, tensor("o", f"{own}out_proj.weight", hidden, values)]


def ignored(name: str, spec: Spec) -> bool:
    # The layers that predict further tokens have a prefix of their own.
    return name.startswith("mtp.") or left_out(name, tied=spec.tied_embeddings, layers=spec.num_layers)


def states(spec: Spec) -> list[LayerState]:
    cache = Cache(((spec.num_kv_heads, spec.head_dim),) * 2)
    memory = (spec.linear_value_heads, spec.linear_key_dim, spec.linear_value_dim)
    recurrent = Recurrent(((spec.conv_width - 1, spec.channels), memory))
    return [cache if layer in spec.attention_layers else recurrent for layer in range(spec.num_layers)]


def moe_layers(spec: Spec) -> dict[int, int]:
    return {layer: spec.num_experts for layer in range(spec.num_layers) if layer not in spec.dense_layers}


def build(spec: Spec, weights: Weights) -> Decoder:
    layers = [_build_layer(spec, weights, layer) for layer in range(spec.num_layers)]
    return Decoder(weights, layers, Rope(spec.head_dim, spec.rope), spec.norm_eps, offset=1)


def _build_layer(spec: Spec, weights: Weights, layer: int) -> Layer:
    name = f"layers.{layer}"
    mixer = _Attention if layer in spec.attention_layers else _DeltaNet
    if layer in spec.dense_layers:
        mlp: Linear = GatedMlp(weights, f"{name}.dense", "gate_up", "down")
    else:
        routing = Routing(spec.experts_per_token, "softmax", normalize=spec.norm_topk_prob)
        mlp = Moe(weights, name, Best(weights.ops, routing), shared=_Shared(weights, name))
    return Layer(weights, name, mixer(spec, weights, layer), mlp, spec.norm_eps, offset=1)


class _Attention:
    def __init__(self, spec: Spec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}"
        self._layer, self._scale = layer, spec.head_dim**-0.5
        self._ops, self._eps = weights.ops, spec.norm_eps
        self._heads = HeadShape(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        self._queries = spec.num_heads * spec.head_dim
        self._qkv_gate = weights.linears(f"{name}.dense", (*"qkv", "gate"))
        self._o = weights.linear(f"{name}.dense", "o")
        self._norms = (stored_norm(weights, name, "q_norm", offset=1), stored_norm(weights, name, "k_norm", offset=1))

    def __call__(self, x: Tensor, angles: Angles, state: State) -> Tensor:
        both, places = self._qkv_gate(x), state.places(self._layer, len(x))
        q, k, v = self._ops.turn_heads(both, self._heads, angles, self._norms, self._eps, places)
        out = state.attend(self._layer, q, k, v, self._scale).flatten(-2)
        return self._o(self._ops.gate(out, both[:, -self._queries :]))


class _DeltaNet:
    """Gated DeltaNet (Yang et al. 2024, section 3.4), the decay being Mamba-2's (Dao and Gu 2024)."""

    def __init__(self, spec: Spec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}"
        self._ops, self._layer, self._channels = weights.ops, layer, spec.channels
        self._qkvz, self._o = weights.linears(f"{name}.dense", "qkvz"), weights.linear(f"{name}.dense", "o")
        self._beta_decay = weights.linear(name, "beta_decay")
        self._conv = weights.tensor(name, "conv").float().squeeze(1).T.contiguous()
        self._form = DeltaForm(
            shape=DeltaShape(
                spec.linear_key_heads, spec.linear_value_heads, spec.linear_key_dim, spec.linear_value_dim
            ),
            rate=-weights.tensor(name, "a_log").float().exp(),
            dt_bias=weights.tensor(name, "dt_bias").float(),
            norm=stored_norm(weights, name, "out_norm"),
            norm_eps=spec.norm_eps,
        )

    def __call__(self, x: Tensor, angles: Angles, state: State) -> Tensor:
        return self._o(state.each(self._mix, self._qkvz(x), self._beta_decay(x)))

    def _mix(self, sequence: OneSequence, qkvz: Tensor, beta_decay: Tensor) -> Tensor:
        past, memory = sequence.recurrent(self._layer)
        qkv = self._ops.conv_silu(qkvz[:, : self._channels], self._conv, past)
        return self._ops.delta_net(qkv, qkvz[:, self._channels :], beta_decay, self._form, memory)


class _Shared:
    """An expert that every token goes through, as far as it opens the gate of it. Implements `Adds`."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._ops = weights.ops
        self._gate, self._door = weights.linear(name, "shared_gate"), weights.tensor(name, "shared_gate")
        self._mlp = GatedMlp(weights, f"{name}.dense", "shared_gate_up", "shared_down")

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.open_rows(self._mlp(x), self._gate(x))

    def add_to(self, out: Tensor, x: Tensor) -> None:
        self._mlp.add_to(out, x, self._door)
