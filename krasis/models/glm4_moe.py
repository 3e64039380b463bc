"""GLM-4.5: DeepSeek-V3's experts behind grouped-query attention that turns half of a head."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from krasis.models import deepseek_v2
from krasis.models.blocks.decoder import Decoder, Layer
from krasis.models.blocks.linear import biased
from krasis.models.blocks.norms import stored_norm
from krasis.models.blocks.rope import Angles, Rope, RopeSpec
from krasis.models.config import Config
from krasis.models.deepseek_v2 import ignored, moe_layers
from krasis.models.family import PartCount, Weights, Width
from krasis.models.ops import HeadShape
from krasis.models.state import Cache, LayerState, State
from krasis.models.weight import File, Group, base_file, layer_file, tensor

__all__ = ["Spec", "build", "files", "ignored", "moe_layers", "parse_config", "states"]


class Spec(deepseek_v2.MoeSpec, frozen=True, tag="glm4_moe"):
    """`biased`: queries, keys and values have biases; `normed`: queries and keys have head norms."""

    num_heads: PartCount
    num_kv_heads: PartCount
    head_dim: Width
    rope: RopeSpec
    biased: bool
    normed: bool


def parse_config(tree: Mapping[str, Any]) -> Spec:
    config = Config(tree)
    # Where head_dim is missing, implementations differ in what it is.
    config.take(int, "head_dim")
    heads, kv_heads, head_dim = config.heads()
    rope = config.rope(partial=0.5)
    config.hold(Rope(head_dim, rope).dim % 2 == 0, "head_dim", f"one of which {rope.partial} is even")
    spec = Spec(
        **deepseek_v2.read_moe(config),
        **deepseek_v2.read_groups(config),
        scores="sigmoid",
        corrected=True,
        group_votes=2,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope,
        biased=config.take(bool, "attention_bias", default=False),
        normed=config.take(bool, "use_qk_norm", default=False),
    )
    deepseek_v2.check_moe(config, spec)
    return spec


def files(spec: Spec) -> Iterator[File]:
    yield base_file(spec.hidden_size, spec.vocab_size, tied=spec.tied_embeddings)
    for layer in range(spec.num_layers):
        yield layer_file(layer, _layer(spec, layer))


def _layer(spec: Spec, layer: int) -> list[Group]:
    name, prefix, hidden = f"layers.{layer}", f"model.layers.{layer}.self_attn.", spec.hidden_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    keep, dense, routed = deepseek_v2.mlp_weights(spec, layer)
    rows = {"q": queries, "k": keys, "v": keys}
    dense = [tensor(key, f"{prefix}{key}_proj.weight", size, hidden) for key, size in rows.items()] + dense
    dense.append(tensor("o", f"{prefix}o_proj.weight", hidden, queries))
    if spec.biased:
        keep += [tensor(f"{key}_bias", f"{prefix}{key}_proj.bias", size) for key, size in rows.items()]
    if spec.normed:
        keep += [tensor(f"{key}_norm", f"{prefix}{key}_norm.weight", spec.head_dim) for key in "qk"]
    return [Group(name, "keep", (tuple(keep),)), Group(f"{name}.dense", "dense", (tuple(dense),)), *routed]


def states(spec: Spec) -> list[LayerState]:
    return [Cache(((spec.num_kv_heads, spec.head_dim),) * 2)] * spec.num_layers


def build(spec: Spec, weights: Weights) -> Decoder:
    layers = [
        Layer(
            weights,
            f"layers.{layer}",
            _Attention(spec, weights, layer),
            deepseek_v2.build_mlp(spec, weights, layer),
            spec.norm_eps,
        )
        for layer in range(spec.num_layers)
    ]
    return Decoder(weights, layers, Rope(spec.head_dim, spec.rope), spec.norm_eps)


class _Attention:
    def __init__(self, spec: Spec, weights: Weights, layer: int) -> None:
        name = f"layers.{layer}"
        self._layer, self._scale = layer, spec.head_dim**-0.5
        self._ops, self._eps = weights.ops, spec.norm_eps
        self._heads = HeadShape(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        self._qkv, self._o = weights.linears(f"{name}.dense", "qkv"), weights.linear(f"{name}.dense", "o")
        if spec.biased:
            self._qkv = biased(self._qkv, *(weights.tensor(name, f"{key}_bias") for key in "qkv"))
        self._norms = None
        if spec.normed:
            self._norms = (stored_norm(weights, name, "q_norm"), stored_norm(weights, name, "k_norm"))

    def __call__(self, x: Tensor, angles: Angles, state: State) -> Tensor:
        places = state.places(self._layer, len(x))
        q, k, v = self._ops.turn_heads(self._qkv(x), self._heads, angles, self._norms, self._eps, places)
        return self._o(state.attend(self._layer, q, k, v, self._scale).flatten(-2))
