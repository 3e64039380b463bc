"""Turn checkpoint tensors into the arrays of a record: stack, pad with zeros, quantize, lay out."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from krasis import layout as layouts
from krasis import quant
from krasis.pack.record import TensorSpec
from krasis.quant.codec import Quantized, relative_rms

Arrays = dict[tuple[str, str], Tensor]


def encode_plain(spec: TensorSpec, sources: Iterable[Tensor]) -> Arrays:
    """The stored values of an unquantized tensor."""
    return {(spec.name, "values"): quant.get(spec.codec).encode(torch.cat(tuple(sources)))}


def quantize(spec: TensorSpec, sources: Iterable[Tensor]) -> tuple[Quantized, float]:
    """Stack the sources as padded parts and quantize. Also gives the relative RMS error of the logical weights."""
    weight = pad_parts(spec, sources)
    codec = quant.get(spec.codec)
    quantized = codec.quantize(weight, spec.group_size)
    return quantized, relative_rms(weight, codec.dequantize(quantized))


def pad_parts(spec: TensorSpec, sources: Iterable[Tensor]) -> Tensor:
    """float32 [padded N, padded K]: each source at the start of its part, zeros after it."""
    rows, k = spec.padded_shape[0] // spec.parts, spec.padded_shape[1]
    return torch.cat([functional.pad(w.float(), (0, k - w.shape[1], 0, rows - w.shape[0])) for w in sources])


def lay_out(spec: TensorSpec, quantized: Quantized, layout: str) -> Arrays:
    """The codes and scales of a quantized matrix in the byte order of `layout`."""
    order, bits, k = layouts.get(layout), quant.get(spec.codec).BITS, spec.padded_shape[1]
    return {
        (spec.name, "codes"): order.pack(quantized.codes, bits),
        (spec.name, "scales"): order.pack_scales(quantized.scales, k, spec.group_size),
    }
