"""The model that all systems run: Qwen3-30B-A3B's layers, fewer of them, a small vocabulary, made-up weights.

Weights are those of `bench/synthetic_checkpoint.py`, normal with a spread of 1/sqrt(columns), but for the embedding's.
That outweighs what the layers add, which is much the same for every token: with the usual spread eight experts of the
last layers would take 70% of the tokens. So the router sees the token, its logits are normal with a spread of about 1,
and which experts it chooses is nearly chance: the busiest eight of a layer take 10% of 512 tokens, and all are used.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench import synthetic_checkpoint
from bench.peers.timing import CONTEXT, VOCABULARY
from krasis.convert.assign import Choice, plan_group
from krasis.convert.pipeline import Conversion
from krasis.models.weight import Group
from krasis.pack.file_writer import SegmentPlan
from krasis.pack.manifest import Settings
from krasis.pack.progress import Silent

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rope_theta": 1000000.0,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-06,
    "vocab_size": VOCABULARY,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}
EMBEDDING, EMBEDDING_SPREAD = "model.embed_tokens.weight", 4.0
SEED = 0


@dataclass(frozen=True)
class Files:
    """Where the forms of the model lie in the work folder."""

    work: Path

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint"

    def pack(self, bits: int, group: int) -> Path:
        return self.work / f"int{bits}-g{group}"

    def gguf(self, kind: str) -> Path:
        return self.work / f"{kind}.gguf"


class UniformConversion(Conversion):
    """Attention and lm_head in as many bits as the experts: a pack may hold that, though krasis convert has no flag for
    it. Without it bytes a token would not compare with a GGUF of one type.
    """

    def _plan(self, group: Group) -> list[SegmentPlan]:
        if group.kind != "dense":
            return super()._plan(group)
        choice = Choice(f"int{self.settings.expert_bits}", self.settings.group_size)
        return plan_group(group, choice, self.settings.layouts, self.checkpoint.dtype)


def write_checkpoint(folder: Path) -> None:
    tensors = [
        replace(tensor, spread=EMBEDDING_SPREAD) if tensor.name == EMBEDDING else tensor
        for tensor in synthetic_checkpoint.tensors(CONFIG)
    ]
    folder.mkdir(parents=True)
    numbers = synthetic_checkpoint.Numbers(SEED)
    synthetic_checkpoint.write_shard(folder / "model.safetensors", tensors, numbers, SEED)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")


def write_pack(checkpoint: Path, pack: Path, bits: int, group: int, jobs: int) -> None:
    settings = Settings(expert_bits=bits, dense_bits=8, group_size=group, layouts=("marlin",))
    UniformConversion(checkpoint, settings).run(pack, Silent(), jobs=jobs)


def make(path: Path, write: Callable[[Path], None]) -> None:
    """What is there is kept; what is half made is made again."""
    if path.exists():
        return
    print(f"making {path}", flush=True)
    partial = path.with_name(f"new-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.unlink(missing_ok=True)
    write(partial)
    partial.rename(path)
