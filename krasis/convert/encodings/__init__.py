"""How checkpoints store weights, one encoding a file. `quantization_config` of config.json says which apply."""

from collections.abc import Callable, Mapping
from typing import Any

from krasis.convert.encodings import compressed_tensors, fp8_block, mxfp4
from krasis.convert.encodings.plain import Plain
from krasis.convert.encodings.stored import Encoding
from krasis.errors import InputError
from krasis.models.config import Config

KEY = "quantization_config"

_METHODS: dict[str, Callable[[Config], Encoding]] = {
    "compressed-tensors": compressed_tensors.of,
    "fp8": fp8_block.of,
    "mxfp4": mxfp4.of,
}


def of(config: Mapping[str, Any]) -> tuple[Encoding, ...]:
    """The encodings of a checkpoint with this config.json, the first that holds a tensor being the one to read.

    Raises InputError for a quantization krasis can't read, and for keys it can't tell the meaning of.
    """
    if config.get(KEY) is None:
        return (Plain(),)
    found = Config(config).object(KEY)
    method = found.take(str, "quant_method")
    if method not in _METHODS:
        raise InputError(f"quant_method is {method!r}", where="config.json", expected=f"one of {', '.join(_METHODS)}")
    encoding = _METHODS[method](found)
    found.finish()
    return (encoding, Plain())
