"""The reference backend: dequantize, multiply in float32. Slow and obvious; it judges the others."""

from collections.abc import Sequence

from torch import Tensor

from krasis import layout as layouts
from krasis.models.family import Activation, Experts, Heads, Linear
from krasis.models.ops import Ops, TorchOps
from krasis.models.state import Cached
from krasis.runtime.attention import reference_attention
from krasis.runtime.backend import ExpertRecords, KvDtype, PackedMatrix, each_head, rows_of, side_by_side
from krasis.runtime.dequantize import dequantize
from krasis.runtime.heads import PackedHeads
from krasis.runtime.rows import store_rows


class ReferenceBackend:
    name = "reference"
    kv: KvDtype = "f32"
    exact_rows = False

    def __init__(self) -> None:
        self.ops: Ops = TorchOps()
        self.layouts = tuple(layouts.names())

    def tensor(self, stored: Tensor) -> Tensor:
        return stored

    def embedding(self, table: Tensor) -> Linear:
        return rows_of(table)

    def linear(self, matrix: PackedMatrix, *, wide: bool = False) -> Linear:
        # Dequantized at every call, so that memory stays bounded whatever the model's size.
        return lambda x: x @ dequantize(matrix).T

    def linears(self, matrices: Sequence[PackedMatrix]) -> Linear:
        return side_by_side([self.linear(matrix) for matrix in matrices])

    def heads(self, matrices: Sequence[PackedMatrix]) -> Heads:
        return PackedHeads(matrices, each_head([self.linear(matrix) for matrix in matrices]))

    def experts(
        self, layer: int, records: ExpertRecords, activation: Activation, beside: Linear | None
    ) -> Experts | None:
        return None

    def store(self, values: Tensor, scales: Tensor | None, at: int, x: Tensor) -> None:
        store_rows(values, scales, at, x)

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float, window: int, sinks: Tensor | None) -> Tensor:
        return reference_attention(q, k, v, scale, window, sinks)
