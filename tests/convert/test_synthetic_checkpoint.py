"""Made-up checkpoints are what the hub has: converted, in every encoding, from any number of shards."""

import json
import sys
from pathlib import Path

import pytest
import torch

from krasis.convert.checkpoint import Checkpoint
from krasis.models.weight import Source
from krasis.pack.reader import Pack

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import synthetic_checkpoint as synthetic

CASES = [
    ("qwen3_moe", "bf16"),
    ("qwen3_next", "bf16"),
    ("deepseek_v2", "fp8"),
    ("gpt_oss", "mxfp4"),
    ("gpt_oss", "bf16"),
]


@pytest.fixture
def write(example, tmp_path):
    def run(family, encoding, **options):
        config = json.loads((example(family) / "config.json").read_text(encoding="utf-8"))
        config = synthetic.cut(config, num_hidden_layers=2, **synthetic.cut_experts(config, 4))
        folder = tmp_path / f"{family}-{encoding}-{len(list(tmp_path.iterdir()))}"
        total = synthetic.write(synthetic.encoded(config, encoding), folder, **options)
        return folder, total

    return run


@pytest.mark.parametrize(("family", "encoding"), CASES)
def test_every_encoding_converts(family, encoding, write, convert, tmp_path):
    folder, total = write(family, encoding, shard_bytes=1 << 20)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    assert [path.name for path in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in files)
    assert sum(path.stat().st_size for path in files) == total + headers
    pack = Pack(convert(folder, tmp_path / "pack"))
    experts = {
        t.codec for _, s in pack.manifest.segments() if s.name.endswith("experts") for t in s.tensors if t.quantized
    }
    assert experts == {"mxfp4" if encoding == "mxfp4" else "int4"}


@pytest.mark.parametrize("encoding", ["bf16", "fp8"])
def test_weights_are_normal_with_a_spread_of_one_by_the_root_of_columns(encoding, write):
    checkpoint = Checkpoint(write("qwen3_moe", encoding)[0])
    found = checkpoint.load(Source("model.layers.1.mlp.experts.3.gate_proj.weight")).float()
    assert found.std() == pytest.approx(found.shape[1] ** -0.5, rel=0.05)
    assert found.mean().abs() < 0.002
    assert (found.abs() > 2 * found.std()).float().mean() == pytest.approx(0.0455, abs=0.01)
    norm = checkpoint.load(Source("model.norm.weight")).float()
    assert norm.mean() == pytest.approx(1, abs=0.02)


def test_same_bytes_for_any_shards_and_jobs_and_others_for_another_seed(write):
    one, other, reseeded = (
        Checkpoint(write("qwen3_moe", "bf16", **options)[0])
        for options in ({"jobs": 1}, {"jobs": 3, "shard_bytes": 1 << 20}, {"seed": 1})
    )
    expert = [Source(f"model.layers.1.mlp.experts.{i}.gate_proj.weight") for i in (2, 3)]
    assert torch.equal(one.load(expert[0]), other.load(expert[0]))
    assert not torch.equal(one.load(expert[0]), one.load(expert[1]))
    assert not torch.equal(one.load(expert[0]), reseeded.load(expert[0]))
