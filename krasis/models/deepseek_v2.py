"""DeepSeek-V2: latent attention, dense first layers, shared experts, routing that may be limited to groups."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor

from krasis.models.blocks import latent_attention as mla
from krasis.models.blocks.decoder import Decoder, Layer
from krasis.models.blocks.mlp import GatedMlp
from krasis.models.blocks.moe import Best, Moe, Route
from krasis.models.blocks.rope import Rope, RopeSpec
from krasis.models.blocks.routing import within_best_groups
from krasis.models.config import Config
from krasis.models.family import Count, Linear, ModelSpec, PartCount, Positive, Weights, Width
from krasis.models.ops import Ops, Routing, score, weigh
from krasis.models.state import LayerState
from krasis.models.weight import File, Group, Weight, base_file, experts, gated, layer_file, left_out, tensor


class MoeSpec(ModelSpec, frozen=True):
    """The first `first_moe_layer` layers have one MLP of `intermediate_size`; 0 `shared_size` is no shared expert.

    Of `groups` runs of experts a token uses the `kept_groups` best, each judged by its `group_votes` best experts.
    `corrected` routers choose by scores plus a bias and weigh by scores alone.
    """

    num_experts: PartCount
    experts_per_token: Count
    expert_size: Count
    shared_size: int
    first_moe_layer: int
    intermediate_size: int
    scores: Literal["softmax", "sigmoid"]
    corrected: bool
    groups: Count
    kept_groups: Count
    group_votes: Count
    norm_topk_prob: bool
    routed_scale: Positive


class Spec(MoeSpec, frozen=True, tag="deepseek_v2"):
    """A `q_lora_rank` of 0 is a query without latent."""

    num_heads: PartCount
    q_lora_rank: int
    kv_lora_rank: Width
    nope_dim: Width
    rope_dim: Width
    v_dim: Width
    rope: RopeSpec


def parse_config(tree: Mapping[str, Any]) -> Spec:
    config = Config(tree)
    config.require("scoring_func", "softmax")
    config.require("topk_method", "greedy", "group_limited_greedy")
    # DeepSeek's own code then drops routed_scaling_factor, transformers' does not normalize; no model asks for it.
    config.require("norm_topk_prob", False)
    limited = tree.get("topk_method") == "group_limited_greedy"
    fields = read(config) | (read_groups(config) if limited else {"groups": 1, "kept_groups": 1})
    spec = Spec(**fields, scores="softmax", corrected=False, group_votes=1)
    check(config, spec)
    return spec


def read(config: Config) -> dict[str, Any]:
    """The fields that DeepSeek-V2 and V3 configurations share."""
    config.require("attention_bias", False)
    config.require("mlp_bias", False)
    config.require("moe_layer_freq", 1)
    config.require("rope_interleave", True)
    for unused in ("num_key_value_heads", "head_dim", "qk_head_dim", "n_group", "topk_group"):
        config.skip(unused)
    return {
        **read_moe(config),
        "num_heads": config.take(int, "num_attention_heads"),
        "q_lora_rank": config.take(int, "q_lora_rank", default=0),
        "kv_lora_rank": config.take(int, "kv_lora_rank"),
        "nope_dim": config.take(int, "qk_nope_head_dim"),
        "rope_dim": config.take(int, "qk_rope_head_dim"),
        "v_dim": config.take(int, "v_head_dim"),
        "rope": config.rope(),
    }


def read_moe(config: Config) -> dict[str, Any]:
    """The fields of `MoeSpec` but for scores and groups."""
    config.require("hidden_act", "silu")
    for unused in TRAINING:
        config.skip(unused)
    common = config.common()
    experts, chosen = config.experts("n_routed_experts", "num_experts")
    size = config.take(int, "moe_intermediate_size")
    return {
        **common,
        "num_experts": experts,
        "experts_per_token": chosen,
        "expert_size": size,
        "shared_size": size * config.take(int, "n_shared_experts", default=0, least=0),
        "first_moe_layer": min(config.take(int, "first_k_dense_replace", default=0, least=0), common["num_layers"]),
        "intermediate_size": config.take(int, "intermediate_size", default=0),
        "norm_topk_prob": config.take(bool, "norm_topk_prob", default=False),
        "routed_scale": config.take(float, "routed_scaling_factor", default=1.0),
    }


TRAINING = ("aux_loss_alpha", "ep_size", "num_nextn_predict_layers", "seq_aux")
"""Keys of training and deployment. The layers of next-token prediction follow the last one and are left out."""


def read_groups(config: Config) -> dict[str, Any]:
    return {"groups": config.take(int, "n_group"), "kept_groups": config.take(int, "topk_group")}


def check(config: Config, spec: Spec) -> None:
    """Refuse fields that do not go together, and keys that were not used."""
    config.hold(spec.rope_dim % 2 == 0, "qk_rope_head_dim", "even, for rotary embedding")
    check_moe(config, spec)


def check_moe(config: Config, spec: MoeSpec) -> None:
    """`check` of the fields of `MoeSpec`."""
    whole = spec.num_experts % spec.groups == 0
    config.hold(whole, "n_group", f"a divisor of n_routed_experts, {spec.num_experts}")
    config.hold(spec.kept_groups <= spec.groups, "topk_group", f"at most n_group, {spec.groups}")
    reach = spec.kept_groups * spec.num_experts // spec.groups
    config.hold(spec.experts_per_token <= reach, "num_experts_per_tok", f"at most {reach} experts")
    votes = spec.kept_groups == spec.groups or spec.num_experts // spec.groups >= spec.group_votes
    config.hold(votes, "n_group", f"groups of at least {spec.group_votes} experts")
    dense = spec.intermediate_size > 0 or not spec.first_moe_layer
    config.hold(dense, "intermediate_size", "the width of dense layers")
    config.finish()


def files(spec: Spec) -> Iterator[File]:
    yield base_file(spec.hidden_size, spec.vocab_size, tied=spec.tied_embeddings)
    for layer in range(spec.num_layers):
        yield layer_file(layer, _layer(spec, layer))


def _layer(spec: Spec, layer: int) -> list[Group]:
    name, attention = f"layers.{layer}", f"model.layers.{layer}.self_attn."
    keep, dense, routed = mlp_weights(spec, layer)
    return [
        Group(name, "keep", ((*keep, *mla.kept(spec, attention)),)),
        Group(f"{name}.dense", "dense", ((*mla.dense(spec, attention), *dense),)),
        mla.heads(spec, name, attention),
        *routed,
    ]


def mlp_weights(spec: MoeSpec, layer: int) -> tuple[list[Weight], list[Weight], list[Group]]:
    """(kept weights, the layer's norms among them, dense weights, routed experts) of a layer but for its attention."""
    prefix, hidden = f"model.layers.{layer}.", spec.hidden_size
    mlp = f"{prefix}mlp."
    keep = [
        tensor("input_norm", f"{prefix}input_layernorm.weight", hidden),
        tensor("post_norm", f"{prefix}post_attention_layernorm.weight", hidden),
    ]
    if layer < spec.first_moe_layer:
        return keep, gated(mlp, hidden, spec.intermediate_size, "gate_up", "down"), []
    keep.append(tensor("router", f"{mlp}gate.weight", spec.num_experts, hidden))
    if spec.corrected:
        keep.append(tensor("router_bias", f"{mlp}gate.e_score_correction_bias", spec.num_experts))
    dense = []
    if spec.shared_size:
        dense = gated(f"{mlp}shared_experts.", hidden, spec.shared_size, "shared_gate_up", "shared_down")
    records = experts(f"{mlp}experts.", spec.num_experts, hidden, spec.expert_size)
    return keep, dense, [Group(f"layers.{layer}.experts", "expert", records)]


def ignored(name: str, spec: MoeSpec) -> bool:
    return left_out(name, tied=spec.tied_embeddings, layers=spec.num_layers)


def states(spec: Spec) -> list[LayerState]:
    return [mla.cache(spec)] * spec.num_layers


def moe_layers(spec: MoeSpec) -> dict[int, int]:
    return dict.fromkeys(range(spec.first_moe_layer, spec.num_layers), spec.num_experts)


def build(spec: Spec, weights: Weights) -> Decoder:
    layers = [_build_layer(spec, weights, layer) for layer in range(spec.num_layers)]
    return Decoder(weights, layers, Rope(spec.rope_dim, spec.rope), spec.norm_eps)


def _build_layer(spec: Spec, weights: Weights, layer: int) -> Layer:
    attention = mla.LatentAttention(spec, weights, layer)
    return Layer(weights, f"layers.{layer}", attention, build_mlp(spec, weights, layer), spec.norm_eps)


def build_mlp(spec: MoeSpec, weights: Weights, layer: int) -> Linear:
    """What follows the attention of a layer."""
    name = f"layers.{layer}"
    if layer < spec.first_moe_layer:
        return GatedMlp(weights, f"{name}.dense", "gate_up", "down")
    bias = weights.tensor(name, "router_bias").float() if spec.corrected else None
    shared = GatedMlp(weights, f"{name}.dense", "shared_gate_up", "shared_down") if spec.shared_size else None
    return Moe(weights, name, router(spec, weights.ops, bias), shared=shared)


def router(spec: MoeSpec, ops: Ops, bias: Tensor | None) -> Route:
    """How a token's experts are chosen (DeepSeek-V2, eq. 20 to 24; DeepSeek-V3, eq. 12 to 16)."""
    routing = Routing(spec.experts_per_token, spec.scores, spec.norm_topk_prob, spec.routed_scale)
    if spec.kept_groups == spec.groups:
        return Best(ops, routing, bias)

    def limited(logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = score(logits, routing.scores)
        choice = scores if bias is None else scores + bias
        choice = within_best_groups(choice, spec.groups, spec.kept_groups, spec.group_votes)
        ids = choice.topk(routing.k, dim=-1).indices
        return ids, weigh(scores.gather(-1, ids), routing)

    return limited
