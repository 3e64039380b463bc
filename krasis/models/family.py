"""What a family provides (spec, checkpoint rules, forward) and what a backend provides to it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta
from torch import Tensor

Count = Annotated[int, Meta(ge=1, lt=1 << 31)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Positive = Annotated[float, Meta(gt=0)]


class ModelSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, tag_field="model_type"):
    """The fields every family shares. A family adds its own; the pack's manifest stores the whole."""

    hidden_size: Count
    num_layers: Count
    vocab_size: Count
    max_positions: Count
    norm_eps: Positive
    eos_token_ids: tuple[TokenId, ...]


@dataclass(frozen=True)
class Weight:
    """One tensor of the pack and the checkpoint tensors it is made of, stacked along rows (gate over up, say).

    `shape` is that of each source. `feeds` names the matrix of the same record that consumes the rows: they are padded
    to its padded input.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    feeds: str = ""

    @property
    def stacked(self) -> tuple[int, ...]:
        """The shape of the whole."""
        return (self.shape[0] * len(self.sources), *self.shape[1:])


@dataclass(frozen=True)
class Group:
    """A segment of the pack: records of the same weights. `keep` is stored as it is, `dense` and `expert` quantized."""

    name: str
    kind: Literal["keep", "dense", "expert"]
    records: tuple[tuple[Weight, ...], ...]


Linear = Callable[[Tensor], Tensor]
"""x float [tokens, K] -> [tokens, N]."""

Activation = Callable[[Tensor, Tensor], Tensor]
"""(gate, up), each [tokens, I] -> [tokens, I]."""

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [tokens, H], expert ids int64 [tokens, top_k], weights float32 [tokens, top_k]) -> weighted sum [tokens, H]."""


class Weights(Protocol):
    """A backend's view of the pack."""

    def tensor(self, segment: str, name: str) -> Tensor:
        """An unquantized tensor."""

    def linear(self, segment: str, name: str) -> Linear:
        """The product with a matrix of any codec."""

    def experts(self, segment: str, activation: Activation) -> Experts:
        """The routed experts of a layer: w13 (gate over up) and w2 of each record."""


class State(Protocol):
    """What a sequence remembers between forwards."""

    position: int

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Append k and v [tokens, kv heads, dim]; causal attention of q [tokens, heads, dim] over all so far."""


class Model(Protocol):
    """A family's forward, written once for all backends."""

    def forward(self, ids: Tensor, state: State) -> Tensor:
        """ids int64 [tokens], continuing at state.position -> hidden states [tokens, H], and moves the position on."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, H] -> float32 [tokens, vocabulary]."""


class Family(Protocol):
    """The module of a family."""

    Spec: type[ModelSpec]

    def parse_config(self, config: Mapping[str, Any]) -> ModelSpec:
        """The spec of a hub config.json. Raises InputError for what is missing, unknown or unsupported."""

    def groups(self, spec: Any) -> Iterator[tuple[str, list[Group]]]:
        """(file name, segments in it) for every file of weights."""

    def ignored(self, name: str, spec: Any) -> bool:
        """Whether a checkpoint tensor is rightly left out."""

    def kv_shapes(self, spec: Any) -> list[tuple[int, int]]:
        """(kv heads, head dim) that each layer caches a token."""

    def moe_layers(self, spec: Any) -> dict[int, int]:
        """Layer -> number of routed experts, for layers that have any."""

    def build(self, spec: Any, weights: Weights) -> Model:
        """The model on a backend's weights."""
