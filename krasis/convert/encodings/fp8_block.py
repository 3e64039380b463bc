"""FP8 in blocks as DeepSeek-V3 stores it: `X.weight` float8_e4m3fn [N, K] and `X.weight_scale_inv` float32 or bfloat16
[ceil(N/128), ceil(K/128)]; a weight is its number times the scale of its block (DeepSeek-V3, section 3.3.2).
"""

from torch import Tensor

from krasis.convert.encodings.stored import Headers, Read
from krasis.errors import InputError
from krasis.models.config import Config
from krasis.models.weight import Source

BLOCK = 128
DTYPE = "F8_E4M3"
SCALE_DTYPES = ("F32", "BF16")


def of(config: Config) -> "Fp8Block":
    """The encoding that a `quantization_config` announces. Raises InputError where scales are not in blocks."""
    config.demand("weight_block_size", [BLOCK, BLOCK])
    config.require("fmt", "e4m3")
    config.require("activation_scheme", "dynamic")
    config.require("scale_fmt", "float", "ue8m0")
    config.require("expert_dtype", "fp8")
    # Names tell what is quantized; dequantize is about loading.
    for informative in ("modules_to_not_convert", "modules_to_convert", "ignored_layers", "dequantize"):
        config.skip(informative)
    return Fp8Block()


class Fp8Block:
    kept_as = None

    def names(self, name: str, have: Headers) -> tuple[str, ...]:
        found = name, f"{name}_scale_inv"
        return found if found[1] in have or (name in have and have[name].dtype == DTYPE) else ()

    def shape(self, source: Source, have: Headers) -> tuple[int, ...]:
        weight, scales = (have[tensor].pick(source) for tensor in self.names(source.name, have))
        blocks = tuple(-(-size // BLOCK) for size in weight.shape)
        fits = len(blocks) == 2 and weight.dtype == DTYPE and scales.shape == blocks and scales.dtype in SCALE_DTYPES
        if not fits:
            what = f"{source.name} is {weight}, {source.name}_scale_inv {scales}"
            raise InputError(what, expected=f"{DTYPE} [N, K] and F32 or BF16 [N/{BLOCK}, K/{BLOCK}], rounded up")
        return weight.shape

    def read(self, read: Read, source: Source) -> Tensor:
        return decode(read(source.name, source.index), read(f"{source.name}_scale_inv", source.index))


def decode(weight: Tensor, scales: Tensor) -> Tensor:
    """float8_e4m3fn [N, K] and the scales of its blocks -> float32 [N, K]."""
    n, k = weight.shape
    rows = scales.float().repeat_interleave(BLOCK, 0)[:n]
    return weight.float() * rows.repeat_interleave(BLOCK, 1)[:, :k]
