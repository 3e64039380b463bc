"""The CPU backend: native kernels read the pack's bytes where they lie."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from krasis.models.family import Linear
from krasis.native.cpu import Matrix, Pool
from krasis.runtime.attention import fused_attention
from krasis.runtime.backend import KvDtype, PackedMatrix, strip_parts


class CpuBackend:
    name = "cpu"
    kv: KvDtype = "bf16"

    def __init__(self, threads: int | None = None) -> None:
        self.layouts: tuple[str, ...] = ("cpu", "marlin")
        self.pool = Pool(threads)

    def linear(self, matrix: PackedMatrix) -> Linear:
        spec = matrix.spec
        if matrix.values is not None and matrix.values.dtype == torch.float32:
            return partial(functional.linear, weight=matrix.values)
        native = _native(matrix)
        columns = spec.shape[0] if spec.parts == 1 else spec.padded_shape[0]
        return lambda x: strip_parts(self.pool.matmul(native, x, columns), spec)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return fused_attention(q, k, v, scale)


def _native(matrix: PackedMatrix) -> Matrix:
    spec = matrix.spec
    n, k = spec.padded_shape
    codes = matrix.values if matrix.codes is None else matrix.codes
    assert codes is not None
    return Matrix(spec.codec, matrix.layout, k, n, spec.group_size, codes, matrix.scales)
