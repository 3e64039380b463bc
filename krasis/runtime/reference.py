"""The reference backend: dequantize, multiply in float32. Slow and obvious; it judges the others."""

from collections.abc import Sequence

from torch import Tensor

from krasis import layout as layouts
from krasis import quant
from krasis.models.family import Activation, Experts, Linear
from krasis.models.ops import Ops, TorchOps
from krasis.models.state import Cached
from krasis.quant.codec import Quantized
from krasis.runtime.attention import reference_attention
from krasis.runtime.backend import ExpertRecords, KvDtype, PackedMatrix, each_head, side_by_side, strip_parts
from krasis.runtime.rows import store_rows


class ReferenceBackend:
    name = "reference"
    kv: KvDtype = "f32"
    exact_rows = False

    def __init__(self) -> None:
        self.ops: Ops = TorchOps()
        self.layouts = tuple(layouts.names())

    def linear(self, matrix: PackedMatrix) -> Linear:
        # Dequantized at every call, so that memory stays bounded whatever the model's size.
        return lambda x: x @ dequantize(matrix).T

    def linears(self, matrices: Sequence[PackedMatrix]) -> Linear:
        return side_by_side([self.linear(matrix) for matrix in matrices])

    def head_products(self, matrices: Sequence[PackedMatrix]) -> Linear:
        return each_head([self.linear(matrix) for matrix in matrices])

    def experts(self, records: ExpertRecords, activation: Activation) -> Experts | None:
        return None

    def store(self, values: Tensor, scales: Tensor | None, at: int, x: Tensor) -> None:
        store_rows(values, scales, at, x)

    def attention(self, q: Tensor, k: Cached, v: Cached, scale: float, window: int, sinks: Tensor | None) -> Tensor:
        return reference_attention(q, k, v, scale, window, sinks)


def dequantize(matrix: PackedMatrix) -> Tensor:
    """float32 [N, K], logical."""
    spec = matrix.spec
    if matrix.values is not None:
        return matrix.values.float()
    assert matrix.codes is not None
    assert matrix.scales is not None
    codec, order = quant.get(spec.codec), layouts.get(matrix.layout)
    padded_k = spec.padded_shape[1]
    codes = order.unpack(matrix.codes, codec.BITS)
    scales = order.unpack_scales(matrix.scales, padded_k, spec.group_size)
    weight = codec.dequantize(Quantized(codes, scales))[:, : spec.shape[1]]
    return strip_parts(weight.T.contiguous(), spec).T
