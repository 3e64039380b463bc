"""Causal depthwise convolution: every channel by its own few weights, over the tokens up to its own."""

import torch
from torch import Tensor


def causal_conv(x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
    """y[t] = sum over i of weight[i] * x[t - width + 1 + i], all float32, x and y [tokens, channels].

    `weight` is [width, channels]; `state` [width - 1, channels] holds the inputs before x, zeros at first, and is
    overwritten with the last ones.
    """
    width, tokens = len(weight), len(x)
    window = torch.cat((state, x))
    state.copy_(window[tokens:])
    if tokens == 1:
        return (window * weight).sum(0, keepdim=True)
    y = window[:tokens] * weight[0]
    for i in range(1, width):
        y.addcmul_(window[i : i + tokens], weight[i])
    return y
