"""What a family provides (spec, checkpoint rules, forward) and what a backend provides to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import msgspec
from msgspec import Meta
from torch import Tensor

from krasis.models.state import LayerState, State
from krasis.models.weight import File

if TYPE_CHECKING:
    from krasis.models.blocks.rope import Angles
    from krasis.models.ops import Ops, Routing

# Whoever writes a config.json or a manifest says how many things are made for each layer, expert and head.
MOST_LAYERS, MOST_PARTS, MOST_WIDTH = 1 << 10, 1 << 12, 1 << 20
# Far beyond any constant of a model; products and quotients of a few stay finite.
LEAST_FLOAT, MOST_FLOAT = 1e-30, 1e30

Count = Annotated[int, Meta(ge=1, lt=1 << 31)]
LayerCount = Annotated[int, Meta(ge=1, le=MOST_LAYERS)]
PartCount = Annotated[int, Meta(ge=1, le=MOST_PARTS)]
Width = Annotated[int, Meta(ge=1, le=MOST_WIDTH)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Positive = Annotated[float, Meta(ge=LEAST_FLOAT, le=MOST_FLOAT)]


class ModelSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, tag_field="model_type"):
    """The fields every family shares. A family adds its own; the pack's manifest stores the whole."""

    hidden_size: Width
    num_layers: LayerCount
    vocab_size: Count
    max_positions: Count
    norm_eps: Positive
    eos_token_ids: tuple[TokenId, ...]
    tied_embeddings: bool


Linear = Callable[[Tensor], Tensor]
"""x float [tokens, K] -> [tokens, N], a tensor of its own."""


@runtime_checkable
class Adds(Protocol):
    """A `Linear` that adds its result where it belongs, rather than making a tensor of it."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def add_to(self, out: Tensor, x: Tensor) -> None:
        """out float32 [tokens, N] += the result."""


@runtime_checkable
class TakesBias(Protocol):
    """A `Linear` that can have a bias of its own."""

    def biased(self, bias: Tensor) -> Linear:
        """The same plus `bias` float32 [N]."""


@runtime_checkable
class Routes(Protocol):
    """A router, a `Linear` of x [tokens, H], that can choose experts as well."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def choose(self, x: Tensor, bias: Tensor | None, routing: "Routing") -> tuple[Tensor, Tensor]:
        """`Ops.route` of its logits."""


def add_product(linear: Linear, out: Tensor, x: Tensor) -> None:
    """out += linear(x)."""
    if isinstance(linear, Adds):
        linear.add_to(out, x)
    else:
        out += linear(x)


Activation = Callable[[Tensor, Tensor], Tensor]
"""(gate, up), each [tokens, I] -> [tokens, I]."""

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [tokens, H], expert ids int64 [tokens, top_k], weights float32 [tokens, top_k]) -> weighted sum [tokens, H]."""


class Heads(Protocol):
    """A matrix a head, all of one shape [N, K]."""

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [tokens, heads, K] -> [tokens, heads, N], each head by its own matrix."""

    def leading(self, x: Tensor) -> Tensor:
        """[tokens, heads, K + rest] -> [tokens, heads, N + rest]: the same of the first K, the rest as it is."""

    def dense(self, heads: slice) -> Tensor:
        """float32 [heads, N, K] of some heads, made anew at every call."""


class Weights(Protocol):
    """A backend's view of the pack, and what it does between products."""

    ops: "Ops"

    def tensor(self, segment: str, name: str) -> Tensor:
        """An unquantized tensor."""

    def embedding(self, segment: str, name: str) -> Linear:
        """The rows of an unquantized table: ids int64 [tokens] -> float32 [tokens, H]."""

    def linear(self, segment: str, name: str) -> Linear:
        """The product with a matrix of any codec."""

    def linears(self, segment: str, names: Sequence[str]) -> Linear:
        """The products of one x with several matrices, side by side in the order of `names`."""

    def heads(self, segment: str, name: str) -> Heads:
        """The matrices called `name` of a segment that has one record a head."""

    def experts(self, segment: str, activation: Activation, beside: Linear | None) -> Experts:
        """The routed experts of a layer: w13 (gate over up) and w2 of each record, with biases b13 and b2 if it has.

        What `beside` makes of x is added: a backend may compute it while experts are being waited for.
        """


class Block(Protocol):
    """One layer."""

    def forward(self, x: Tensor, update: Tensor | None, angles: "Angles", state: State) -> tuple[Tensor, Tensor]:
        """The residual stream, float32 [tokens, H], and what is yet to be added to it -> the same behind this layer.

        Both are lost. Before the first layer there is nothing to be added.
        """


class Model(Protocol):
    """A family's forward, written once for all backends. An engine may put something around its layers, `blocks`."""

    blocks: Sequence[Block]

    def forward(self, ids: Tensor, state: State) -> Tensor:
        """ids int64 [tokens], continuing `state` -> hidden states [tokens, H], and moves the state on."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, H] -> float32 [tokens, vocabulary]."""


class Family(Protocol):
    """The module of a family."""

    Spec: type[ModelSpec]

    def parse_config(self, config: Mapping[str, Any]) -> ModelSpec:
        """The spec of a hub config.json. Raises InputError for what is missing, unknown or unsupported."""

    def files(self, spec: Any) -> Iterator[File]:
        """Every file of weights and the groups in it."""

    def ignored(self, name: str, spec: Any) -> bool:
        """Whether a checkpoint tensor is rightly left out."""

    def states(self, spec: Any) -> list[LayerState]:
        """What each layer remembers of a sequence."""

    def moe_layers(self, spec: Any) -> dict[int, int]:
        """Layer -> number of routed experts, for layers that have any."""

    def build(self, spec: Any, weights: Weights) -> Model:
        """The model on a backend's weights."""
