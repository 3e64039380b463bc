"""MXFP4 as gpt-oss stores it: `NAME_blocks` uint8 [experts, N, K/32, 16], two codes a byte, the even k in the low
half, and `NAME_scales` uint8 [experts, N, K/32], exponents of two (OCP Microscaling Formats v1.0).
"""

import torch
from torch import Tensor

from krasis.convert.encodings.stored import Coded, Header, Headers, Read
from krasis.errors import InputError
from krasis.models.config import Config
from krasis.models.weight import Source
from krasis.quant import mxfp4


def of(config: Config) -> "Mxfp4":
    """The encoding that a `quantization_config` announces."""
    # Names tell what is quantized; dequantize is about loading.
    for informative in ("modules_to_not_convert", "dequantize"):
        config.skip(informative)
    return Mxfp4()


class Mxfp4:
    kept_as = mxfp4.NAME

    def names(self, name: str, have: Headers) -> tuple[str, ...]:
        found = f"{name}_blocks", f"{name}_scales"
        return found if any(tensor in have for tensor in found) else ()

    def shape(self, source: Source, have: Headers) -> tuple[int, ...]:
        blocks, scales = (have[f"{source.name}_{part}"].pick(source) for part in ("blocks", "scales"))
        if blocks != Header("U8", (*scales.shape, mxfp4.GROUP // 2)) or scales.dtype != "U8" or len(scales.shape) != 2:
            what = f"{source.name}_blocks is {blocks}, {source.name}_scales {scales}"
            raise InputError(what, expected="U8 [N, K/32, 16] and U8 [N, K/32]")
        n, groups = scales.shape
        return n, groups * mxfp4.GROUP

    def read(self, read: Read, source: Source) -> Coded:
        blocks, scales = (read(f"{source.name}_{part}", source.index) for part in ("blocks", "scales"))
        found = mxfp4.from_e8m0(decode(blocks).T, scales.T)
        return Coded(mxfp4.NAME, found.codes.T, found.scales.T)


def decode(blocks: Tensor) -> Tensor:
    """uint8 [N, K/32, 16] -> codes uint8 [N, K]."""
    return torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(1)
