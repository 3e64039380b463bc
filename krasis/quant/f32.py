"""Unquantized: values as float32."""

import torch
from torch import Tensor

from krasis.quant.cast import cast_finite

NAME = "f32"
BITS = 32
QUANTIZED = False
DTYPE = torch.float32


def encode(tensor: Tensor) -> Tensor:
    """Float of any shape -> float32. Raises InputError for another dtype and for values that are not finite in it."""
    return cast_finite(tensor, DTYPE)


def decode(tensor: Tensor) -> Tensor:
    """float32 -> float32 of the same shape."""
    return tensor.float()
