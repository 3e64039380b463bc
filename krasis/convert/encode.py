"""Turn checkpoint tensors into the arrays of a record: stack, pad with zeros, quantize, lay out."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from krasis import layout as layouts
from krasis import quant
from krasis.convert.encodings.stored import Coded, Stored
from krasis.pack.record import TensorSpec
from krasis.quant import int4, int8, mxfp4
from krasis.quant.codec import Quantized, squares

BLOCK = 64
"""Rows of a padded matrix quantized at once: what every layout keeps together."""

Target = tuple[str, Tensor, Tensor]
"""(layout, codes, scales): where a matrix goes, both arrays whole."""


def encode_plain(spec: TensorSpec, sources: list[Stored], place: Tensor, rows: range) -> None:
    """Fill `rows` of an unquantized tensor, its parts padded where it is a vector. `place` holds zeros so far."""
    codec, part = quant.get(spec.codec), spec.padded_shape[0] // len(sources)
    for number, source in enumerate(sources):
        weight = values(source)
        first, last = number * part, number * part + len(weight)
        some = range(max(first, rows.start), min(last, rows.stop))
        if some:
            place[some.start : some.stop] = codec.encode(weight[some.start - first : some.stop - first])


def encode_quantized(spec: TensorSpec, sources: list[Stored], targets: Sequence[Target], rows: range) -> Tensor:
    """Fill `rows` of a quantized matrix in every layout; float64 [blocks, 2] squares of errors and weights.

    Sources that the codec holds exactly are taken as they are.
    """
    weight = pad_parts(spec, map(values, sources))
    codec = quant.get(spec.codec)
    quantized = _as_they_are(spec, sources) or codec.quantize(weight, spec.group_size)
    for layout, codes, scales in targets:
        order = layouts.get(layout)
        codes.copy_(order.pack(quantized.codes, codec.BITS))
        scales.copy_(order.pack_scales(quantized.scales, spec.padded_shape[1], spec.group_size))
    return torch.tensor([squares(weight, codec.dequantize(quantized))], dtype=torch.float64)


def values(stored: Stored) -> Tensor:
    """A source in floats."""
    return stored.values() if isinstance(stored, Coded) else stored


def pad_parts(spec: TensorSpec, sources: Iterable[Tensor]) -> Tensor:
    """float32 [padded N, padded K]: each source at the start of its part, zeros after it."""
    rows, k = spec.padded_shape[0] // spec.parts, spec.padded_shape[1]
    return torch.cat([functional.pad(w.float(), (0, k - w.shape[1], 0, rows - w.shape[0])) for w in sources])


def _as_they_are(spec: TensorSpec, sources: list[Stored]) -> Quantized | None:
    found = [recode(source, spec.codec, spec.group_size) for source in sources if isinstance(source, Coded)]
    if len(found) < len(sources) or None in found:
        return None
    codec, rows, k = quant.get(spec.codec), spec.padded_shape[0] // spec.parts, spec.padded_shape[1]
    parts = [part for part in found if part is not None]
    codes = [_pad_to(part.codes, k, rows, codec.ZERO) for part in parts]
    scales = [_pad_to(part.scales, k // spec.group_size, rows, 0) for part in parts]
    return Quantized(torch.cat(codes, dim=1), torch.cat(scales, dim=1))


def recode(coded: Coded, codec: str, group_size: int) -> Quantized | None:
    """A coded matrix in a codec that holds it exactly, None where `codec` in such groups does not."""
    quantized = coded.quantized()
    if quantized.group_size % group_size or (coded.codec, codec) not in EXACT:
        return None
    finer = quantized.scales.repeat_interleave(quantized.group_size // group_size, dim=0)
    return EXACT[coded.codec, codec](Quantized(quantized.codes, finer))


def _same(quantized: Quantized) -> Quantized:
    return quantized


def _widen(quantized: Quantized) -> Quantized:
    """INT4 -> INT8: the same numbers."""
    return Quantized(quantized.codes + (int8.ZERO - int4.ZERO), quantized.scales)


EXACT = {
    (int4.NAME, int4.NAME): _same,
    (int4.NAME, int8.NAME): _widen,
    (mxfp4.NAME, mxfp4.NAME): _same,
    (mxfp4.NAME, int8.NAME): mxfp4.to_int8,
}
"""(from, to) -> how a matrix is carried over without error, in groups of the same size."""


def _pad_to(tensor: Tensor, height: int, width: int, value: int) -> Tensor:
    return functional.pad(tensor, (0, width - tensor.shape[1], 0, height - len(tensor)), value=value)
