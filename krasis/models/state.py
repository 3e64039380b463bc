"""What a sequence remembers between forwards: what a family asks for, and what a backend gives it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from krasis.models.blocks.rope import Angles, Rope


@dataclass(frozen=True)
class Cache:
    """Grows by a row a token. `rows` are the shapes (heads, dim) kept of each: keys and values, say.

    Attention looks back over `window` tokens, itself included; 0 is all. `expanded` is how many float32 values a
    forward makes of one cached token where these are more than the rows themselves.
    """

    rows: tuple[tuple[int, int], ...]
    window: int = 0
    expanded: int = 0


@dataclass(frozen=True)
class Recurrent:
    """Of one size however long the sequence: float32 tensors of these shapes, zeros at first."""

    shapes: tuple[tuple[int, ...], ...]


LayerState = Cache | Recurrent


@dataclass(frozen=True, slots=True)
class Cached:
    """Rows [length, heads, dim] as a cache has them; `scales` float32 [length, heads, 1] multiply them, where given."""

    values: Tensor
    scales: Tensor | None = None

    def __len__(self) -> int:
        return self.values.shape[0]

    def float(self) -> Tensor:
        """What they stand for, float32 [length, heads, dim]."""
        values = self.values.float()
        return values if self.scales is None else values * self.scales

    def leading(self, dims: int) -> "Cached":
        """The first dimensions of every row."""
        return Cached(self.values[..., :dims], self.scales)


Places = tuple[Any, ...] | None
"""Where a backend's operations put a layer's rows; None where its state does that."""


class OneSequence(Protocol):
    """The state of one sequence."""

    def extend(self, layer: int, *rows: Tensor) -> tuple[Cached, ...]:
        """Cache rows [tokens, heads, dim], one tensor for each of `Cache.rows`; all of them so far."""

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float) -> Tensor:
        """Causal attention of q [tokens, heads, dim], the last positions of k and v [length, kv heads, dim]."""

    def recurrent(self, layer: int) -> tuple[Tensor, ...]:
        """The tensors of `Recurrent.shapes`, to be read and overwritten in place."""


class State(Protocol):
    """What a forward goes on from: one sequence and its next tokens, or several and the next token of each."""

    def angles(self, rope: "Rope", tokens: int) -> "Angles":
        """Those of the positions of the next tokens, as many as there are rows."""

    def span(self, rows: int) -> tuple[int, int]:
        """By how many tokens each sequence goes on with so many rows, and how many the longest then has."""

    def advance(self, tokens: int) -> None:
        """Move on by so many rows: once a forward, at its end."""

    def places(self, layer: int, tokens: int) -> Places:
        """Where `Ops.turn_heads` and `turn_latent` are to put what they make of so many tokens for this layer.

        Whoever asks has them do so: `attend` or `extend` of the same rows then finds them there.
        """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor | None = None) -> Tensor:
        """Cache k and v [tokens, kv heads, dim]; causal attention of q [tokens, heads, dim] over what is cached.

        `sinks`, [heads] logits, take part in the softmax and are then dropped.
        """

    def each(self, run: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """What `run(sequence, its part of rows, ..)` gives for every `OneSequence`, one under the other.

        This is how tokens meet in one sequence only; what is done to each row by itself is done to all at once.
        """
