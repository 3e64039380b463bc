"""Encode a checkpoint's matrices as hubs store them, and decode them again, the obvious way."""

import json

import torch
from safetensors.torch import load_file, save_file

BLOCK = 128
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def compressed(**weights):
    """The quantization_config of a compressed-tensors checkpoint: symmetric INT4 in groups of 32, but for `weights`."""
    standard = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
        "dynamic": False,
    }
    group = {
        "weights": standard | weights,
        "input_activations": None,
        "output_activations": None,
        "targets": ["Linear"],
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "config_groups": {"group_0": group},
    }


def read(folder):
    """(config, name -> tensor) of a checkpoint."""
    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    return json.loads((folder / "config.json").read_text()), tensors


def write(folder, config, tensors, quantization=None):
    """A checkpoint of one shard. Returns its folder."""
    folder.mkdir(parents=True)
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    config |= {"quantization_config": quantization} if quantization else {}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def linear(name):
    """Whether hubs quantize a tensor of this name."""
    return name.endswith("_proj.weight")


def to_fp8(weight, dtype=torch.float32):
    """[N, K] -> float8_e4m3fn [N, K] and a scale for each block."""
    n, k = (-(-size // BLOCK) for size in weight.shape)
    scales = torch.empty(n, k, dtype=dtype)
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for row, column in ((row, column) for row in range(n) for column in range(k)):
        block = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
        scales[row, column] = weight[block].float().abs().max() / 448
        codes[block] = (weight[block].float() / scales[row, column].float()).to(torch.float8_e4m3fn)
    return codes, scales


def from_fp8(codes, scales):
    n, k = codes.shape
    return codes.float() * torch.kron(scales.float(), torch.ones(BLOCK, BLOCK))[:n, :k]


def to_int4(weight, group_size, dtype=torch.bfloat16):
    """[N, K] -> numbers int64 [N, K] from -8 to 7 and scales [N, K/g]."""
    groups = weight.float().view(len(weight), -1, group_size)
    scales = (groups.abs().amax(-1) / 7).to(dtype)
    numbers = (groups / scales.float().unsqueeze(-1)).nan_to_num().round().clamp(-8, 7)
    return numbers.view(weight.shape).long(), scales


def packed(numbers):
    """int64 [N, K] -> int32 [N, K/8], eight numbers + 8 a word, the first lowest."""
    words = sum((numbers[:, place::8] + 8) << 4 * place for place in range(8))
    return torch.where(words < 1 << 31, words, words - (1 << 32)).to(torch.int32)


def from_int4(numbers, scales):
    return numbers.float() * scales.float().repeat_interleave(numbers.shape[1] // scales.shape[1], 1)


def from_mxfp4(blocks, scales):
    """uint8 [..., K/32, 16] and [..., K/32] -> float32 [..., K]."""
    table = torch.tensor([sign * value for sign in (1, -1) for value in E2M1])
    pairs = torch.stack((table[(blocks % 16).long()], table[(blocks // 16).long()]), -1).flatten(-2)
    return (pairs * torch.exp2(scales.float() - 127).unsqueeze(-1)).flatten(-2)
