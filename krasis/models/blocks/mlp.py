"""Gated MLPs and their activations."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from krasis.models.family import Linear, Weights, add_product


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020)."""
    return functional.silu(gate) * up


@dataclass(frozen=True)
class ClampedSwiglu:
    """(up + 1) gate sigmoid(alpha gate), gate being at most `limit` and up within it (`swiglu` of openai/gpt-oss)."""

    alpha: float
    limit: float

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * (self.alpha * gate).sigmoid()


class GatedMlp:
    """down(swiglu(gate(x), up(x))), gate and up being the two halves of one matrix; see `weight.gated`.

    Implements `Adds`.
    """

    def __init__(self, weights: Weights, segment: str, gate_up: str, down: str) -> None:
        self._ops = weights.ops
        self._gate_up: Linear = weights.linear(segment, gate_up)
        self._down: Linear = weights.linear(segment, down)

    def __call__(self, x: Tensor) -> Tensor:
        return self._down(self._ops.swiglu(self._gate_up(x)))

    def add_to(self, out: Tensor, x: Tensor, door: Tensor | None = None) -> None:
        """See `Adds`; with a door, as far as x opens it: see `Ops.open_swiglu`."""
        both = self._gate_up(x)
        hidden = self._ops.swiglu(both) if door is None else self._ops.open_swiglu(both, x, door)
        add_product(self._down, out, hidden)
