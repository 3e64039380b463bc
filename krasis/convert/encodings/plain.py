"""Unquantized tensors: bfloat16, float16 or float32."""

import torch
from torch import Tensor

from krasis.convert.encodings.stored import Headers, Read
from krasis.errors import InputError
from krasis.models.weight import Source

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Plain:
    kept_as = None

    def names(self, name: str, have: Headers) -> tuple[str, ...]:
        return (name,) if name in have else ()

    def shape(self, source: Source, have: Headers) -> tuple[int, ...]:
        found = have[source.name].pick(source)
        if found.dtype not in DTYPES:
            raise InputError(f"{source.name} is {found.dtype}", expected=f"one of {', '.join(DTYPES)}")
        return found.shape[::-1] if source.columns else found.shape

    def read(self, read: Read, source: Source) -> Tensor:
        tensor = read(source.name, source.index)
        return tensor.T if source.columns else tensor
