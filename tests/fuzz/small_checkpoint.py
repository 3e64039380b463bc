"""The smallest checkpoint of a family, as bytes to be spoilt."""

import json
import struct

import torch
from safetensors.torch import save

from krasis.models import qwen3_moe

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": 32,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": 64,
    "eos_token_id": 0,
}


def tensors():
    spec = qwen3_moe.parse_config(CONFIG)
    records = (record for _, groups in qwen3_moe.files(spec) for group in groups for record in group.records)
    return {
        source.name: torch.ones(weight.shape, dtype=torch.bfloat16)
        for record in records
        for weight in record
        for source in weight.sources
    }


def split(shard):
    """(header tree, the data after it) of a safetensors file."""
    (length,) = struct.unpack("<Q", shard[:8])
    return json.loads(shard[8 : 8 + length]), shard[8 + length :]


def joined(header, data):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def write(folder, shard=None, index=None, **files):
    """A checkpoint whose files are these, bytes or trees; None takes one away."""
    found = {"config.json": CONFIG, SINGLE: SHARD if shard is None else shard, INDEX: index} | files
    for name, content in found.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


SHARD = save(tensors(), {"format": "pt"})
HEADER, DATA = split(SHARD)
WEIGHT_MAP = {"metadata": {"total_size": len(DATA)}, "weight_map": dict.fromkeys(tensors(), SINGLE)}
