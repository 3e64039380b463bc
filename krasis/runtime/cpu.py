"""The CPU backend: native kernels read the pack's bytes where they lie."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.blocks.mlp import ClampedSwiglu, swiglu
from krasis.models.family import Activation, Block, Experts, Heads, Linear
from krasis.models.ops import Ops
from krasis.models.state import Cached
from krasis.native.cpu import Linears, Matrix, Pool
from krasis.native.moe import ExpertShape, NativeActivation, NativeExperts
from krasis.native.ops import MOST_HEAD_DIM, NativeOps
from krasis.pack.record import TensorSpec
from krasis.runtime.attention import fast_attention
from krasis.runtime.backend import (
    MOST_TOGETHER,
    ExpertRecords,
    KvDtype,
    PackedMatrix,
    each_head,
    rows_of,
    side_by_side,
)
from krasis.runtime.heads import PackedHeads
from krasis.runtime.ops import CpuOps
from krasis.runtime.recorded import Recorded
from krasis.runtime.rows import store_rows

LAYOUTS = ("cpu", "marlin")
"""Byte orders that the kernels read, best first."""

FEW_TOKENS = 8
"""Up to so many tokens attend to the cache as it lies; for more, torch's fused kernel on floats is faster."""


class CpuBackend:
    name = "cpu"
    kv: KvDtype = "bf16"
    exact_rows = True

    def __init__(self, threads: int | None = None) -> None:
        self.layouts: tuple[str, ...] = LAYOUTS
        self.pool = Pool(threads)
        self._native = NativeOps(self.pool)
        self.ops: Ops = CpuOps(self._native)

    def tensor(self, stored: Tensor) -> Tensor:
        return stored

    def embedding(self, table: Tensor) -> Linear:
        return rows_of(table)

    def linear(self, matrix: PackedMatrix, *, wide: bool = False) -> Linear:
        spec = matrix.spec
        if matrix.values is not None and matrix.values.dtype == torch.float32:
            return partial(_float_product, weight=matrix.values)
        if spec.parts == 1:
            return Product(self._native, self.pool.linears([_native(matrix)], [spec.shape[0]]))
        product = self.pool.linears([_native(matrix)], [spec.padded_shape[0]])
        return product if spec.shape[0] == spec.padded_shape[0] else lambda x: self._stripped(product(x), spec)

    def linears(self, matrices: Sequence[PackedMatrix]) -> Linear:
        if not all(map(_is_native, matrices)):
            return side_by_side([self.linear(matrix) for matrix in matrices])
        rows = [matrix.spec.shape[0] for matrix in matrices]
        return Product(self._native, self.pool.linears([_native(matrix) for matrix in matrices], rows))

    def heads(self, matrices: Sequence[PackedMatrix]) -> Heads:
        if not all(map(_is_native, matrices)):
            return PackedHeads(matrices, each_head([self.linear(matrix) for matrix in matrices]))
        rows = matrices[0].spec.shape[0]
        product = self.pool.linears([_native(matrix) for matrix in matrices], [rows] * len(matrices))
        return NativeHeads(self._native, matrices, lambda x: product.each(x).view(x.shape[0], -1, rows))

    def experts(
        self, layer: int, records: ExpertRecords, activation: Activation, beside: Linear | None
    ) -> Experts | None:
        w13, w2 = records.first["w13"], records.first["w2"]
        native = _native_activation(activation)
        if native is None or not (w13.spec.quantized and w2.spec.quantized):
            return None
        shape = ExpertShape(records.count, records.stride, w13.spec.shape[1], w2.spec.shape[1])
        b13, b2 = (records.first[name].values if name in records.first else None for name in ("b13", "b2"))
        routed = NativeExperts(self.pool, _native(w13), _native(w2), shape, native, b13, b2)
        return routed if beside is None else lambda x, *chosen: self._native.add(routed(x, *chosen), beside(x))

    def store(self, values: Tensor, scales: Tensor | None, at: int, x: Tensor) -> None:
        if scales is None and x.shape[0] > FEW_TOKENS:
            store_rows(values, scales, at, x)
        else:
            self._native.store(values, scales, at, x)

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float, window: int, sinks: Tensor | None) -> Tensor:
        if q.shape[0] > FEW_TOKENS or max(q.shape[-1], v.values.shape[-1]) > MOST_HEAD_DIM:
            return fast_attention(q, k, v, scale, window, sinks)
        return self._native.attention(q, (k.values, k.scales), (v.values, v.scales), scale, window, sinks)

    def layers(self, blocks: Sequence[Block], tell: Callable[[str], None]) -> Sequence[Block]:
        return [Recorded(blocks, self.pool, tell)]

    def _stripped(self, y: Tensor, spec: TensorSpec) -> Tensor:
        """See `strip_parts`."""
        rows, parts = len(y), spec.parts
        out = torch.empty((rows, spec.shape[0]), dtype=torch.float32)
        every = out.view(rows * parts, -1)
        self._native.copy(y.view(rows * parts, -1)[:, : every.shape[1]], every)
        return out


class Product:
    """Implements `krasis.models.family.Linear` and `TakesBias`."""

    def __init__(self, native: NativeOps, linears: Linears) -> None:
        self._native, self._linears = native, linears

    def __call__(self, x: Tensor) -> Tensor:
        return self._linears(x)

    def biased(self, bias: Tensor) -> Linear:
        return lambda x: self._native.add(self._linears(x), bias)


class NativeHeads(PackedHeads):
    """Their product and what stays beside it are put together natively."""

    def __init__(self, native: NativeOps, matrices: Sequence[PackedMatrix], product: Linear) -> None:
        super().__init__(matrices, product)
        self._native = native

    def leading(self, x: Tensor) -> Tensor:
        n, k = self._matrices[0].spec.shape
        tokens, heads, dim = x.shape
        out = torch.empty((tokens, heads, n + dim - k), dtype=torch.float32)
        flat = out.view(tokens * heads, -1)
        self._native.copy(self(x[..., :k]).view(tokens * heads, n), flat[:, :n])
        self._native.copy(x[..., k:].flatten(0, 1), flat[:, n:])
        return out


def _float_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [tokens, K] times the transposed weight [N, K]."""
    if x.shape[0] > MOST_TOGETHER:
        return functional.linear(x, weight)
    # Torch sums a row in an order that depends on how many there are.
    return torch.cat([functional.linear(row, weight) for row in torch.split(x, 1)])


def _native_activation(activation: Activation) -> NativeActivation | None:
    if activation is swiglu:
        return NativeActivation()
    if isinstance(activation, ClampedSwiglu):
        return NativeActivation("clamped_swiglu", activation.alpha, activation.limit)
    return None


def _is_native(matrix: PackedMatrix) -> bool:
    """Whether one product gives the logical columns side by side."""
    return matrix.spec.parts == 1 and (matrix.values is None or matrix.values.dtype == torch.bfloat16)


def _native(matrix: PackedMatrix) -> Matrix:
    spec = matrix.spec
    n, k = spec.padded_shape
    codes = matrix.values if matrix.codes is None else matrix.codes
    assert codes is not None
    return Matrix(spec.codec, matrix.layout, k, n, spec.group_size, codes, matrix.scales)
