"""A kill at any instant leaves no pack that could be taken for a whole one, and the next run finishes it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from crash import SETTINGS, Silent
from safetensors.torch import save_file

from krasis.convert.pipeline import Conversion
from krasis.errors import InputError
from krasis.models import qwen3_moe
from krasis.pack.reader import Pack

CONFIG = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 2,
    "rope_theta": 1e4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}


def save_random(folder, layers=2):
    """A small checkpoint of random weights, and the tokenizer files a pack carries along."""
    torch.manual_seed(0)
    config = CONFIG | {"num_hidden_layers": layers}
    groups = [group for _, groups in qwen3_moe.files(qwen3_moe.parse_config(config)) for group in groups]
    weights = [weight for group in groups for record in group.records for weight in record]
    tensors = {source.name: torch.randn(weight.shape).bfloat16() for weight in weights for source in weight.sources}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def root_at(path):
    """The root hash of a pack that passes every check, or None where nothing would open."""
    try:
        pack = Pack(path)
    except InputError:
        return None
    assert all(matches for _, _, matches in pack.verify())
    return pack.manifest.root


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("small") / "hub")


@pytest.fixture(scope="module")
def root(small, tmp_path_factory):
    return Conversion(small, SETTINGS).run(tmp_path_factory.mktemp("small") / "pack", Silent()).root


@pytest.fixture(scope="module")
def crashed(small, tmp_path_factory):
    """old -> the folders that runs killed at every change to the file system left behind."""

    def run(*old):
        folder = tmp_path_factory.mktemp("crashed")
        subprocess.run([sys.executable, Path(__file__).with_name("crash.py"), small, folder, *old], check=True)
        return sorted(folder.iterdir(), key=lambda path: int(path.name))

    return run


def test_a_kill_before_any_change_leaves_no_half_pack(small, root, crashed):
    folders = crashed()
    # At least: the folder, a journal, three files and a journal entry each, an extra, the manifest, the last rename.
    assert len(folders) > 12
    for folder in folders:
        assert root_at(folder / "pack.partial") is None
        if (found := root_at(folder / "pack")) is None:
            found = Conversion(small, SETTINGS).run(folder / "pack", Silent()).root
        assert found == root_at(folder / "pack") == root
        assert [path.name for path in folder.iterdir()] == ["pack"]


def test_a_kill_while_replacing_leaves_the_old_the_new_or_none(small, root, crashed, convert, tmp_path):
    old = convert(small, tmp_path / "old", expert_bits=16, dense_bits=16)
    for folder in crashed(old):
        assert root_at(folder / "pack.partial") is None
        assert root_at(folder / "pack") in (None, root_at(old), root)
        Conversion(small, SETTINGS).run(folder / "pack", Silent(), force=True)
        assert root_at(folder / "pack") == root
        assert [path.name for path in folder.iterdir()] == ["pack"]


def test_a_kill_at_any_moment_is_continued(demo, tmp_path):
    """Fifty of them: the pack is that of a run left alone, and nothing that was finished is written again."""
    script = Path(__file__).with_name("crash_anytime.py")
    output = subprocess.run([sys.executable, script, demo, tmp_path, "50"], check=True, stdout=subprocess.PIPE).stdout
    found = [json.loads(line) for line in output.splitlines()]
    root = Conversion(demo, SETTINGS).run(tmp_path / "pack", Silent()).root
    assert {run["root"] for run in found} == {root}
    assert not [run for run in found if run["redone"]]
    # The moments met every stage.
    assert len({run["finished"] for run in found}) > 2
