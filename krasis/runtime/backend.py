"""What a backend provides: products with packed matrices, and attention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from krasis.models.family import Activation, Experts, Linear
from krasis.pack.record import TensorSpec

KvDtype = Literal["f32", "bf16", "fp8"]

Attention = Callable[[Tensor, Tensor, Tensor, float, int, Tensor | None], Tensor]
"""(q, k, v, scale, window, sinks) -> causal attention of the last tokens over all; see `krasis.runtime.attention`."""


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix as it lies in the pack, the arrays being views of the mapping.

    `codes` and `scales` are None for an unquantized one, `values` for a quantized one.
    """

    spec: TensorSpec
    layout: str
    codes: Tensor | None
    scales: Tensor | None
    values: Tensor | None


@dataclass(frozen=True)
class ExpertRecords:
    """The experts of a layer, records of one form `stride` bytes apart: `first` has the tensors of the first."""

    first: dict[str, PackedMatrix]
    count: int
    stride: int


class Backend(Protocol):
    """`layouts` are those it can run, best first; `kv` the precision it caches keys and values in unless told."""

    name: str
    layouts: tuple[str, ...]
    kv: KvDtype

    def linear(self, matrix: PackedMatrix) -> Linear:
        """x float32 [tokens, K] -> float32 [tokens, N], in logical sizes."""

    def products(self, matrices: Sequence[PackedMatrix]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """Products with several matrices at once, one x for each, as `linear` gives them."""

    def experts(self, records: ExpertRecords, activation: Activation) -> Experts | None:
        """The experts of a layer in kernels of their own, None where there are none for their codec or activation."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, sinks: Tensor | None) -> Tensor:
        """See `Attention`."""


def strip_parts(y: Tensor, spec: TensorSpec) -> Tensor:
    """Drop the padding at the end of each part: [..., padded N] -> [..., N]."""
    if spec.shape[0] == y.shape[-1]:
        return y
    rows = spec.shape[0] // spec.parts
    return y.view(*y.shape[:-1], spec.parts, -1)[..., :rows].flatten(-2)
