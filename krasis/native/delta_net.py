"""What the kernels of gated DeltaNet are told, on the CPU and on the GPU."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class DeltaNet:
    """Heads and dimensions, `rate` and `dt_bias` [value_heads] and `norm` [value_dim], float32."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    rate: Tensor
    dt_bias: Tensor
    norm: Tensor
    norm_eps: float
