"""The cast of unquantized codecs."""

import torch
from torch import Tensor

from krasis.errors import InputError


def cast_finite(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A float tensor as `dtype`, contiguous. Raises InputError for another dtype and for values not finite in it."""
    if not tensor.is_floating_point():
        raise InputError(f"values are {tensor.dtype}", expected="a float dtype")
    cast = tensor.to(dtype).contiguous()
    if count := int(cast.isfinite().logical_not_().sum()):
        raise InputError(f"{count} of {cast.numel()} values are not finite", expected=f"finite {dtype} values")
    return cast
