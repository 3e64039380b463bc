"""DeltaNet on the GPU, held against the reference over the same bfloat16 inputs.

Everything within is float32; only results are rounded to bfloat16.
"""

import pytest
import torch
from cuda_devices import on_devices
from test_cuda_ops import random

from krasis.models.ops import DeltaForm, DeltaShape, TorchOps
from krasis.native.cuda.delta import conv_silu, delta_net
from krasis.native.delta_net import DeltaNet

REFERENCE = TorchOps()
ROUNDED = {"rtol": 2**-8, "atol": 1e-4}


@on_devices
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 3, 40])
def test_conv_silu(tokens, width, device):
    x, weight = random(tokens, 76)[:, :70], random(width, 70).float()
    state = random(width - 1, 70, dtype=torch.float32)
    kept = state.clone().to(device)
    found = conv_silu(x.to(device), weight.to(device), kept)
    torch.testing.assert_close(found.cpu().float(), REFERENCE.conv_silu(x.float(), weight, state), **ROUNDED)
    assert torch.equal(kept.cpu(), state)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "shape"),
    [
        (1, DeltaShape(1, 2, 32, 32)),
        (37, DeltaShape(2, 4, 32, 48)),
        (17, DeltaShape(1, 1, 128, 128)),
        (6, DeltaShape(2, 2, 96, 64)),
    ],
)
def test_delta_net(tokens, shape, dtype, device):
    values = shape.value_heads * shape.value_dim
    qkv, z = random(tokens, 2 * shape.key_heads * shape.key_dim + values), random(tokens, values + 8)[:, :values]
    beta_step = random(tokens, 2 * shape.value_heads, dtype=dtype)
    rate, dt_bias = -random(shape.value_heads).float().exp(), random(shape.value_heads, seed=1).float()
    norm, memory = random(shape.value_dim).float(), random(shape.value_heads, shape.key_dim, shape.value_dim).float()
    kept = memory.clone().to(device)
    expected = REFERENCE.delta_net(
        qkv.float(), z.float(), beta_step.float(), DeltaForm(shape, rate, dt_bias, norm, 1e-6), memory
    )
    dims = (shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim)
    net = DeltaNet(*dims, *(x.to(device) for x in (rate, dt_bias, norm)), 1e-6)
    found = delta_net(*(x.to(device) for x in (qkv, z, beta_step)), net, kept)
    torch.testing.assert_close(found.cpu().float(), expected, **ROUNDED)
    torch.testing.assert_close(kept.cpu(), memory, rtol=1e-4, atol=1e-5)
