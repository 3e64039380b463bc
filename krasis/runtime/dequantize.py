"""What a packed matrix stands for."""

from torch import Tensor

from krasis import layout as layouts
from krasis import quant
from krasis.quant.codec import Quantized
from krasis.runtime.backend import PackedMatrix, strip_parts


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
