"""gpt-oss: attention with sinks, in some layers over a window; clamped experts with biases (gpt-oss model card)."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta
from torch import Tensor

from krasis.models.blocks.decoder import Decoder, Layer
from krasis.models.blocks.linear import biased
from krasis.models.blocks.mlp import ClampedSwiglu
from krasis.models.blocks.moe import Best, Moe
from krasis.models.blocks.rope import Angles, Rope, RopeSpec
from krasis.models.config import Config
from krasis.models.family import Count, ModelSpec, PartCount, Positive, Weights, Width
from krasis.models.ops import HeadShape, Routing
from krasis.models.state import Cache, LayerState, State
from krasis.models.weight import File, Group, Source, Weight, base_file, layer_file, left_out, tensor

Window = Annotated[int, Meta(ge=0, lt=1 << 31)]


class Spec(ModelSpec, frozen=True, tag="gpt_oss"):
    """`windows` has the tokens that each layer's attention looks back over, itself included; 0 is all."""

    num_heads: PartCount
    num_kv_heads: PartCount
    head_dim: Width
    windows: tuple[Window, ...]
    rope: RopeSpec
    num_experts: PartCount
    experts_per_token: Count
    expert_size: Count
    swiglu_alpha: Positive
    swiglu_limit: Positive

    def __post_init__(self) -> None:
        if len(self.windows) != self.num_layers:
            raise ValueError(f"windows of {len(self.windows)} layers, expected {self.num_layers}")


def parse_config(tree: Mapping[str, Any]) -> Spec:
    config = Config(tree)
    config.require("hidden_act", "silu")
    config.require("attention_bias", True)
    # Where both are missing, implementations differ in whether positions are stretched.
    config.hold(bool(tree.get("rope_parameters") or tree.get("rope_scaling")), "rope_parameters", "an object")
    common = config.common()
    heads, kv_heads, head_dim = config.heads()
    experts, chosen = config.experts("num_local_experts", "num_experts")
    spec = Spec(
        **common,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        windows=_windows(config, common["num_layers"]),
        rope=config.rope(),
        num_experts=experts,
        experts_per_token=chosen,
        expert_size=config.take(int, "intermediate_size"),
        swiglu_alpha=config.take(float, "swiglu_alpha", default=1.702),
        swiglu_limit=config.take(float, "swiglu_limit", default=7.0),
    )
    if spec.rope.yarn is not None:
        config.require("initial_context_length", spec.rope.yarn.original_positions)
    config.finish()
    return spec


def _windows(config: Config, layers: int) -> tuple[int, ...]:
    sliding = "sliding_attention"
    alternating = tuple("full_attention" if layer % 2 else sliding for layer in range(layers))
    types = config.strings("layer_types", sliding, "full_attention") or alternating
    config.hold(len(types) == layers, "layer_types", f"one for each of num_hidden_layers, {layers}")
    window = config.take(int, "sliding_window", default=0)
    config.hold(window > 0 or sliding not in types, "sliding_window", f"a number of tokens for {sliding}")
    return tuple(window if kind == sliding else 0 for kind in types)


def files(spec: Spec) -> Iterator[File]:
    yield base_file(spec.hidden_size, spec.vocab_size, tied=spec.tied_embeddings)
    for layer in range(spec.num_layers):
        yield layer_file(layer, _layer(spec, layer))


def _layer(spec: Spec, layer: int) -> list[Group]:
    name, prefix = f"layers.{layer}", f"model.layers.{layer}."
    attention, router, experts = f"{prefix}self_attn.", f"{prefix}mlp.router.", f"{prefix}mlp.experts."
    hidden = spec.hidden_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    keep = (
        tensor("input_norm", f"{prefix}input_layernorm.weight", hidden),
        tensor("post_norm", f"{prefix}post_attention_layernorm.weight", hidden),
        *(tensor(f"{key}_bias", f"{attention}{key}_proj.bias", shape[0]) for key, shape in shapes.items()),
        tensor("sinks", f"{attention}sinks", spec.num_heads),
        tensor("router", f"{router}weight", spec.num_experts, hidden),
        tensor("router_bias", f"{router}bias", spec.num_experts),
    )
    dense = tuple(tensor(key, f"{attention}{key}_proj.weight", *shape) for key, shape in shapes.items())
    records = tuple(_expert(spec, experts, expert) for expert in range(spec.num_experts))
    return [
        Group(name, "keep", (keep,)),
        Group(f"{name}.dense", "dense", (dense,)),
        Group(f"{name}.experts", "expert", records),
    ]


def _expert(spec: Spec, prefix: str, expert: int) -> tuple[Weight, ...]:
    hidden, size = spec.hidden_size, spec.expert_size
    gate_up, down = f"{prefix}gate_up_proj", f"{prefix}down_proj"

    def halves(name: str, columns: bool) -> tuple[Source, ...]:
        """Even rows are the gate, odd ones up."""
        return tuple(Source(name, expert, runs=size, first=i, last=i + 1, columns=columns) for i in (0, 1))

    return (
        Weight("w13", halves(gate_up, columns=True), (size, hidden), feeds="w2"),
        Weight("w2", (Source(down, expert, columns=True),), (hidden, size)),
        Weight("b13", halves(f"{gate_up}_bias", columns=False), (size,), bias_of="w13"),
        Weight("b2", (Source(f"{down}_bias", expert),), (hidden,), bias_of="w2"),
    )


def ignored(name: str, spec: Spec) -> bool:
    return left_out(name, tied=spec.tied_embeddings, layers=spec.num_layers)


def states(spec: Spec) -> list[LayerState]:
    rows = ((spec.num_kv_heads, spec.head_dim),) * 2
    return [Cache(rows, window) for window in spec.windows]


def moe_layers(spec: Spec) -> dict[int, int]:
    return dict.fromkeys(range(spec.num_layers), spec.num_experts)


def build(spec: Spec, weights: Weights) -> Decoder:
    layers = [_build_layer(spec, weights, layer) for layer in range(spec.num_layers)]
    return Decoder(weights, layers, Rope(spec.head_dim, spec.rope), spec.norm_eps)


def _build_layer(spec: Spec, weights: Weights, layer: int) -> Layer:
    name = f"layers.{layer}"
    bias = weights.tensor(name, "router_bias").float()
    activation = ClampedSwiglu(spec.swiglu_alpha, spec.swiglu_limit)
    route = Best(weights.ops, Routing(spec.experts_per_token, "logits"), bias)
    moe = Moe(weights, name, route, activation=activation)
    return Layer(weights, name, _Attention(spec, weights, layer), moe, spec.norm_eps)


class _Attention:
    def __init__(self, spec: Spec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}"
        self._layer, self._scale = layer, spec.head_dim**-0.5
        self._ops = weights.ops
        self._heads = HeadShape(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        self._qkv = biased(
            weights.linears(f"{name}.dense", "qkv"), *(weights.tensor(name, f"{key}_bias") for key in "qkv")
        )
        self._o = biased(weights.linear(f"{name}.dense", "o"), weights.tensor(name, "o_bias"))
        self._sinks = weights.tensor(name, "sinks").float()

    def __call__(self, x: Tensor, angles: Angles, state: State) -> Tensor:
        places = state.places(self._layer, len(x))
        q, k, v = self._ops.turn_heads(self._qkv(x), self._heads, angles, None, 0, places)
        return self._o(state.attend(self._layer, q, k, v, self._scale, self._sinks).flatten(-2))
