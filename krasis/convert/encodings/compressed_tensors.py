"""INT4 of the compressed-tensors library, format pack-quantized: `X.weight_packed` int32 [N, K/8], eight codes a word,
the first in the lowest bits, a code being its number + 8; `X.weight_scale` [N, K/g], or [N, 1] for whole rows;
`X.weight_shape` holds N and K.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from krasis.convert.encodings.stored import Coded, Header, Headers, Read, Stored
from krasis.errors import InputError
from krasis.models.config import Config
from krasis.models.weight import Source
from krasis.quant import int4

FORMAT = "pack-quantized"
SCALE_DTYPES = ("BF16", "F16", "F32")

_WORD = 8
# Codecs have zero and normal scales alone, and no weight beyond 2^127.
_LEAST_SCALE, _SCALE_END = torch.finfo(torch.float32).tiny, 2.0**124


def of(config: Config) -> "CompressedTensors":
    """The encoding that a `quantization_config` announces. Raises InputError for all but symmetric INT4 weights."""
    config.demand("format", FORMAT)
    config.require("quantization_status", "compressed", "frozen")
    config.require("kv_cache_scheme")
    for empty in ("sparsity_config", "transform_config"):
        config.require(empty, {})
    # Names tell what is quantized.
    for informative in ("ignore", "global_compression_ratio", "version"):
        config.skip(informative)
    groups = config.object("config_groups")
    group = groups.object("group_0")
    groups.finish()
    group.require("input_activations")
    group.require("output_activations")
    group.require("format", FORMAT)
    group.skip("targets")
    weights = group.object("weights")
    group.finish()
    return CompressedTensors(_group_size(weights))


def _group_size(weights: Config) -> int:
    weights.demand("num_bits", int4.BITS)
    weights.demand("type", "int")
    weights.demand("symmetric", True)
    weights.require("dynamic", False)
    weights.require("block_structure")
    # By weight or static, columns were only visited in another order: they are stored in their own.
    weights.require("actorder", False, "weight", "static")
    for informative in ("observer", "observer_kwargs", "scale_dtype", "zp_dtype"):
        weights.skip(informative)
    group_size = 0
    if weights.take(str, "strategy") == "channel":
        weights.require("group_size", -1)
    else:
        weights.demand("strategy", "group")
        group_size = weights.take(int, "group_size")
        weights.require("group_size", *int4.GROUP_SIZES)
    weights.finish()
    return group_size


@dataclass(frozen=True)
class CompressedTensors:
    """`group_size` columns share a scale, all of a row where it is 0."""

    group_size: int
    kept_as = None

    def names(self, name: str, have: Headers) -> tuple[str, ...]:
        found = f"{name}_packed", f"{name}_scale", f"{name}_shape"
        return found if any(tensor in have for tensor in found) else ()

    def shape(self, source: Source, have: Headers) -> tuple[int, ...]:
        packed, scales = (have[f"{source.name}_{part}"].pick(source) for part in ("packed", "scale"))
        if not self._fit(packed, scales):
            what = f"{source.name}_packed is {packed}, {source.name}_scale {scales}"
            groups = f"K/{self.group_size}" if self.group_size else "1"
            raise InputError(what, expected=f"I32 [N, K/{_WORD}] and {', '.join(SCALE_DTYPES)} [N, {groups}]")
        sizes = have[f"{source.name}_shape"]
        if sizes not in (Header("I64", (2,)), Header("I32", (2,))):
            raise InputError(f"{source.name}_shape is {sizes}", expected="I64 [2]")
        return packed.shape[0], packed.shape[1] * _WORD

    def _fit(self, packed: Header, scales: Header) -> bool:
        if packed.dtype != "I32" or scales.dtype not in SCALE_DTYPES or not len(packed.shape) == len(scales.shape) == 2:
            return False
        k = packed.shape[1] * _WORD
        return scales.shape[0] == packed.shape[0] and scales.shape[1] * (self.group_size or k) == k

    def read(self, read: Read, source: Source) -> Stored:
        codes = decode(read(f"{source.name}_packed", source.index))
        sizes = read(f"{source.name}_shape", None).tolist()
        if sizes != list(codes.shape):
            raise InputError(f"weight_shape is {sizes}", expected=f"{list(codes.shape)}, as packed")
        scales = read(f"{source.name}_scale", source.index)
        _check(scales)
        if scales.dtype == int4.SCALE_DTYPE:
            return Coded(int4.NAME, codes, scales)
        numbers = codes.float().sub_(int4.ZERO).view(*scales.shape, -1)
        return numbers.mul_(scales.float().unsqueeze(-1)).view(codes.shape)


def decode(packed: Tensor) -> Tensor:
    """int32 [N, K/8] -> codes uint8 [N, K]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (packed.unsqueeze(-1) >> shifts & 15).to(torch.uint8).flatten(1)


def _check(scales: Tensor) -> None:
    # Written so that a NaN counts too.
    size = scales.float().abs()
    usable = (size == 0) | ((size >= _LEAST_SCALE) & (size < _SCALE_END))
    if count := int((~usable).sum()):
        found = f"{count} of {scales.numel()} scales are NaN, too small or too large"
        raise InputError(found, expected="zero, or 2^-126 and above, below 2^124")
