"""Gated DeltaNet on the GPU: the convolution before it, the delta rule, and the gated norm after it."""

import torch
from torch import Tensor

from krasis.native.cuda.library import FLOAT, INT, LONG, POINTER, TYPES, Function
from krasis.native.delta_net import DeltaNet

_conv = Function("krasis_cuda_conv", POINTER, LONG, LONG, INT, POINTER, INT, POINTER, POINTER)
_delta = Function("krasis_cuda_delta", POINTER, LONG, POINTER, INT, LONG, LONG, *[INT] * 4, *[POINTER] * 4)
_gated_norm = Function("krasis_cuda_gated_norm", POINTER, POINTER, LONG, LONG, INT, INT, POINTER, FLOAT, POINTER)


def conv_silu(x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
    """x bfloat16 [tokens, channels], weight float32 [width, channels] -> silu of `causal_conv`, bfloat16.

    `state` float32 [width - 1, channels] is overwritten with the last inputs. Widths are 2 to 4.
    """
    tokens, channels = x.shape
    out = torch.empty(tokens, channels, dtype=torch.bfloat16, device=x.device)
    _conv(x.device, x, tokens, x.stride(0), channels, weight, len(weight), state, out)
    return out


def delta_net(qkv: Tensor, z: Tensor, beta_step: Tensor, net: DeltaNet, memory: Tensor) -> Tensor:
    """norm(o) silu(z), bfloat16 [tokens, value heads * value dim], o being the gated delta rule; see `Ops.delta_net`.

    qkv and z are bfloat16, beta_step is float32 or bfloat16; `memory` float32 [value heads, key dim, value dim] is
    overwritten.
    """
    tokens, values = qkv.shape[0], net.value_heads * net.value_dim
    shape = (net.key_heads, net.value_heads, net.key_dim, net.value_dim)
    told = torch.empty(tokens, values, dtype=torch.float32, device=qkv.device)
    betas = (beta_step, TYPES[beta_step.dtype], beta_step.stride(0))
    _delta(qkv.device, qkv, qkv.stride(0), *betas, tokens, *shape, net.rate, net.dt_bias, memory, told)
    out = torch.empty(tokens, values, dtype=torch.bfloat16, device=qkv.device)
    heads = (tokens, net.value_heads, net.value_dim)
    _gated_norm(qkv.device, told, z, z.stride(0), *heads, net.norm, net.norm_eps, out)
    return out
