"""A GGUF of a Qwen3-MoE checkpoint, all its matrices in one type: python -m bench.peers.gguf_file FOLDER GGUF Q4_0

Runs in the peers' environment, on NumPy alone. Names and metadata are those of llama.cpp's architecture `qwen3moe`.
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

ARCHITECTURE = "qwen3moe"
BASE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
}
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}


class Checkpoint:
    """The bfloat16 tensors of a folder of safetensors files, as float32."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._places: dict[str, tuple[Path, int, list[int]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                self._places[name] = path, 8 + length + entry["data_offsets"][0], entry["shape"]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._places[name][2])

    def tensor(self, name: str) -> np.ndarray:
        path, offset, shape = self._places[name]
        bits = np.fromfile(path, np.uint16, int(np.prod(shape)), offset=offset).reshape(shape)
        return (bits.astype(np.uint32) << 16).view(np.float32)


def tensors(config: dict) -> Iterator[tuple[str, list[str]]]:
    """(name in the GGUF, names in the checkpoint: those of all experts where they are stacked)."""
    for name, source in BASE.items():
        yield f"{name}.weight", [f"{source}.weight"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, source in LAYER.items():
            yield f"blk.{layer}.{name}.weight", [f"{prefix}{source}.weight"]
        for name, source in EXPERTS.items():
            experts = range(config["num_experts"])
            yield f"blk.{layer}.{name}.weight", [f"{prefix}mlp.experts.{e}.{source}.weight" for e in experts]


def kind(name: str, matrices: GGMLQuantizationType) -> GGMLQuantizationType:
    """Norms and routers stay float32, as llama.cpp has them in any file."""
    plain = "norm" in name or "ffn_gate_inp" in name
    return GGMLQuantizationType.F32 if plain else matrices


def write(checkpoint: Checkpoint, path: Path, matrices: GGMLQuantizationType, jobs: int) -> None:
    writer = GGUFWriter(path, ARCHITECTURE)
    describe(writer, checkpoint.config)
    found = list(tensors(checkpoint.config))
    for name, sources in found:
        shape, own = checkpoint.shape(sources[0]), kind(name, matrices)
        shape = (len(sources), *shape) if len(sources) > 1 else shape
        if own is GGMLQuantizationType.F32:
            size = 4 * int(np.prod(shape))
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, own)
        else:
            shape = quants.quant_shape_to_byte_shape(shape, own)
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with ThreadPoolExecutor(jobs) as pool:
        for name, sources in found:
            own = kind(name, matrices)
            parts = pool.map(lambda source, own=own: quants.quantize(checkpoint.tensor(source), own), sources)
            writer.write_tensor_data(np.concatenate(list(parts)))
    writer.close()


def describe(writer: GGUFWriter, config: dict) -> None:
    """The hyperparameters; there is no tokenizer."""
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_tokenizer_model("no_vocab")


def bytes_per_token(path: Path) -> int:
    """Bytes of weights that a decoded token reads: its row of the embedding, its experts, all of the rest."""
    reader = GGUFReader(path)
    used = int(reader.fields[f"{ARCHITECTURE}.expert_used_count"].contents())
    total = 0
    for tensor in reader.tensors:
        # GGUF states the outermost dimension last.
        outermost = int(tensor.shape[-1])
        if "_exps." in tensor.name:
            total += tensor.n_bytes * used // outermost
        else:
            total += tensor.n_bytes // (outermost if tensor.name.startswith("token_embd") else 1)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("type", choices=("Q4_0", "Q8_0"))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    write(Checkpoint(options.checkpoint), options.gguf, GGMLQuantizationType[options.type], options.jobs)


if __name__ == "__main__":
    main()
