"""What a backend provides: products with packed matrices, and attention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.family import Activation, Block, Experts, Heads, Linear
from krasis.models.ops import Ops
from krasis.models.state import Cached
from krasis.pack.record import TensorSpec

KvDtype = Literal["f32", "bf16", "fp8"]

MOST_TOGETHER = 64
"""Sequences that may run together."""

Attention = Callable[[Tensor, Cached, Cached, float, int, Tensor | None], Tensor]
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


def packed_matrix(spec: TensorSpec, layout: str, arrays: Mapping[tuple[str, str], Tensor]) -> PackedMatrix:
    """One of the tensors of a record, of which `Pack.arrays` gives the arrays."""
    return PackedMatrix(spec, layout, *(arrays.get((spec.name, part)) for part in ("codes", "scales", "values")))


@dataclass(frozen=True)
class ExpertRecords:
    """The experts of a layer, records of one form `stride` bytes apart: `first` has the tensors of the first."""

    first: dict[str, PackedMatrix]
    count: int
    stride: int


class Backend(Protocol):
    """`layouts` are those it can run, best first; `kv` the precision it caches keys and values in unless told.

    `exact_rows`: what it makes of a row is the same bit for bit whatever rows are beside it, up to `MOST_TOGETHER`.
    """

    name: str
    layouts: tuple[str, ...]
    kv: KvDtype
    ops: Ops
    exact_rows: bool

    def tensor(self, stored: Tensor) -> Tensor:
        """An unquantized tensor of the pack, where the other operations want it."""

    def embedding(self, table: Tensor) -> Linear:
        """ids int64 [tokens] -> rows of an unquantized table, float32 [tokens, H]."""

    def linear(self, matrix: PackedMatrix, *, wide: bool = False) -> Linear:
        """x [tokens, K] -> [tokens, N], in logical sizes; float32, which a GPU gives only where asked to be wide."""

    def linears(self, matrices: Sequence[PackedMatrix]) -> Linear:
        """Products of one x with matrices of as many columns, side by side."""

    def heads(self, matrices: Sequence[PackedMatrix]) -> Heads:
        """A matrix a head, all of one shape."""

    def experts(
        self, layer: int, records: ExpertRecords, activation: Activation, beside: Linear | None
    ) -> Experts | None:
        """See `Weights.experts`; in kernels of their own, None where there are none for their codec or activation."""

    def store(self, values: Tensor, scales: Tensor | None, at: int, x: Tensor) -> None:
        """Cache keys or values as `krasis.runtime.rows.store_rows` does."""

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float, window: int, sinks: Tensor | None) -> Tensor:
        """See `Attention`."""


@runtime_checkable
class RunsLayers(Protocol):
    """A `Backend` that has something to run in place of a model's layers, which do nothing but what it is asked to."""

    def layers(self, blocks: Sequence[Block], tell: Callable[[str], None]) -> Sequence[Block]:
        """`tell` is told what makes them slow, once that is known."""


def rows_of(table: Tensor) -> Linear:
    """See `Backend.embedding`."""
    return lambda ids: functional.embedding(ids, table).float()


def with_beside(experts: Experts, beside: Linear | None) -> Experts:
    """See `Weights.experts`."""
    if beside is None:
        return experts
    return lambda x, ids, weights: experts(x, ids, weights) + beside(x)


def side_by_side(linears: Sequence[Linear]) -> Linear:
    """Products of one x, one after the other."""
    return lambda x: torch.cat([linear(x) for linear in linears], dim=-1)


def each_head(linears: Sequence[Linear]) -> Linear:
    """Products of x [tokens, heads, K], a linear a head, one after the other."""
    return lambda x: torch.stack([linear(x[:, head]) for head, linear in enumerate(linears)], dim=1)


def strip_parts(y: Tensor, spec: TensorSpec) -> Tensor:
    """Drop the padding at the end of each part: [..., padded N] -> [..., N]."""
    if spec.shape[0] == y.shape[-1]:
        return y
    rows = spec.shape[0] // spec.parts
    return y.view(*y.shape[:-1], spec.parts, -1)[..., :rows].flatten(-2)
