"""Unquantized: values as bfloat16."""

import torch
from torch import Tensor

from krasis.quant.cast import cast_finite

NAME = "bf16"
BITS = 16
QUANTIZED = False
DTYPE = torch.bfloat16


def encode(tensor: Tensor) -> Tensor:
    """Float of any shape -> bfloat16. Raises InputError for another dtype and for values that are not finite in it."""
    return cast_finite(tensor, DTYPE)


def decode(tensor: Tensor) -> Tensor:
    """bfloat16 -> float32 of the same shape."""
    return tensor.float()
