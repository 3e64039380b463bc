"""Products with something added."""

import torch
from torch import Tensor

from krasis.models.family import Linear, TakesBias


def biased(linear: Linear, *biases: Tensor) -> Linear:
    """linear(x) plus biases that lie side by side, in float32."""
    added = torch.cat([bias.float() for bias in biases])
    if isinstance(linear, TakesBias):
        return linear.biased(added)
    return lambda x: linear(x).add_(added)
