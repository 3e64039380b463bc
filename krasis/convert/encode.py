"""Turn checkpoint tensors into the arrays of a record: stack, pad with zeros, quantize, lay out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from krasis import quant
from krasis.convert.calibration import Guide, feed_back
from krasis.convert.encodings.stored import Coded, Stored
from krasis.convert.parts import covered
from krasis.native.quantize import Target, pack, quantize
from krasis.pack.record import TensorSpec
from krasis.quant import int4, int8, mxfp4
from krasis.quant.codec import Quantized


def encode_plain(spec: TensorSpec, sources: list[Stored], place: Tensor, rows: range) -> None:
    """Fill `rows` of an unquantized tensor, its parts padded where it is a vector. `place` holds zeros so far."""
    codec = quant.get(spec.codec)
    for at, part in covered(spec.padded_shape[0], list(map(values, sources)), rows):
        place[at] = codec.encode(part)


def encode_quantized(
    spec: TensorSpec, sources: list[Stored], targets: Sequence[Target], rows: range, guide: Guide | None = None
) -> Tensor:
    """Fill `rows` of a quantized matrix in every layout; float64 [blocks, 2] squares of errors and weights.

    With a guide [blocks, 4], the same two weighted by importance after them. Sources that the codec holds exactly are
    taken as they are, and have [1, 2] zeros.
    """
    n, k = spec.padded_shape
    kept = [recode(source, spec.codec, spec.group_size) for source in sources if isinstance(source, Coded)]
    exact = [coded for coded in kept if coded is not None]
    if len(exact) == len(sources):
        codes, scales = [coded.codes for coded in exact], [coded.scales for coded in exact]
        pack(spec.codec, codes, scales, (n, k), spec.group_size, targets, rows=rows)
        return torch.zeros(1, 2, dtype=torch.float64)
    parts, importance = list(map(values, sources)), guide.importance if guide else None
    squares = quantize(spec.codec, parts, (n, k), spec.group_size, targets, rows=rows, importance=importance)
    return squares if guide is None or guide.shares is None else feed_back(spec, parts, targets, rows, guide)


def values(stored: Stored) -> Tensor:
    """A source in floats."""
    return stored.values() if isinstance(stored, Coded) else stored


def recode(coded: Coded, codec: str, group_size: int) -> Coded | None:
    """A coded matrix in a codec that holds it exactly, None where `codec` in such groups does not."""
    own_size = coded.codes.shape[1] // coded.scales.shape[1]
    if own_size % group_size or (coded.codec, codec) not in EXACT:
        return None
    finer = coded.scales.repeat_interleave(own_size // group_size, dim=1)
    found = EXACT[coded.codec, codec](Quantized(coded.codes.T, finer.T))
    return Coded(codec, found.codes.T, found.scales.T)


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
