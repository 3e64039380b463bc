"""Products with something added."""

import torch
from torch import Tensor

from krasis.models.family import Linear


def biased(linear: Linear, *biases: Tensor) -> Linear:
    """linear(x) plus biases that lie side by side, in float32."""
    added = torch.cat([bias.float() for bias in biases])
    return lambda x: linear(x).add_(added)
