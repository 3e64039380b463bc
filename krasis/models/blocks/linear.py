"""Products with something added."""

from torch import Tensor

from krasis.models.family import Linear


def biased(linear: Linear, bias: Tensor) -> Linear:
    """linear(x) + bias, in float32."""
    added = bias.float()
    return lambda x: linear(x) + added
