"""The CPU backend: native kernels read the pack's bytes where they lie."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.blocks.mlp import ClampedSwiglu, swiglu
from krasis.models.family import Activation, Experts, Linear
from krasis.native.cpu import Matrix, Pool
from krasis.native.moe import ExpertShape, NativeActivation, NativeExperts
from krasis.pack.record import TensorSpec
from krasis.runtime.attention import fast_attention
from krasis.runtime.backend import ExpertRecords, KvDtype, PackedMatrix, strip_parts


class CpuBackend:
    name = "cpu"
    kv: KvDtype = "bf16"

    def __init__(self, threads: int | None = None) -> None:
        self.layouts: tuple[str, ...] = ("cpu", "marlin")
        self.pool = Pool(threads)

    def linear(self, matrix: PackedMatrix) -> Linear:
        spec = matrix.spec
        if matrix.values is not None and _is_float32(matrix):
            return partial(functional.linear, weight=matrix.values)
        native, columns = _native(matrix), _columns(spec)
        return lambda x: strip_parts(self.pool.matmul(native, x, columns), spec)

    def products(self, matrices: Sequence[PackedMatrix]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        if any(map(_is_float32, matrices)):
            linears = [self.linear(matrix) for matrix in matrices]
            return lambda xs: [linear(x) for linear, x in zip(linears, xs, strict=True)]
        specs = [matrix.spec for matrix in matrices]
        natives = [(_native(matrix), _columns(matrix.spec)) for matrix in matrices]

        def run(xs: Sequence[Tensor]) -> list[Tensor]:
            jobs = [(native, x, columns) for (native, columns), x in zip(natives, xs, strict=True)]
            return [strip_parts(y, spec) for y, spec in zip(self.pool.matmul_batch(jobs), specs, strict=True)]

        return run

    def experts(self, records: ExpertRecords, activation: Activation) -> Experts | None:
        w13, w2 = records.first["w13"], records.first["w2"]
        native = _native_activation(activation)
        if native is None or not (w13.spec.quantized and w2.spec.quantized):
            return None
        shape = ExpertShape(records.count, records.stride, w13.spec.shape[1], w2.spec.shape[1])
        b13, b2 = (records.first[name].values if name in records.first else None for name in ("b13", "b2"))
        return NativeExperts(self.pool, _native(w13), _native(w2), shape, native, b13, b2)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, sinks: Tensor | None) -> Tensor:
        return fast_attention(q, k, v, scale, window, sinks)


def _native_activation(activation: Activation) -> NativeActivation | None:
    if activation is swiglu:
        return NativeActivation()
    if isinstance(activation, ClampedSwiglu):
        return NativeActivation("clamped_swiglu", activation.alpha, activation.limit)
    return None


def _is_float32(matrix: PackedMatrix) -> bool:
    return matrix.values is not None and matrix.values.dtype == torch.float32


def _columns(spec: TensorSpec) -> int:
    return spec.shape[0] if spec.parts == 1 else spec.padded_shape[0]


def _native(matrix: PackedMatrix) -> Matrix:
    spec = matrix.spec
    n, k = spec.padded_shape
    codes = matrix.values if matrix.codes is None else matrix.codes
    assert codes is not None
    return Matrix(spec.codec, matrix.layout, k, n, spec.group_size, codes, matrix.scales)
