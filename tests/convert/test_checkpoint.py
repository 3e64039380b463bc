"""Checkpoints that are not what they should be: each refused by name, before anything is written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from krasis.errors import InputError, KrasisError

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def hub(demo, tmp_path):
    """A copy of the bundled checkpoint to break."""
    return shutil.copytree(demo, tmp_path / "hub")


@pytest.fixture
def refused(hub, convert, tmp_path):
    """Expect a refusal that matches, and nothing at the destination."""

    def run(match, error=InputError):
        with pytest.raises(error, match=match):
            convert(hub, tmp_path / "pack")
        assert not (tmp_path / "pack").exists()

    return run


def edit(path, **changes):
    """Set keys of a JSON file; None removes one."""
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def first_tensor(hub, ending=""):
    return min(name for name in load_file(hub / SHARD) if name.endswith(ending))


def replace(hub, name, tensor):
    save_file(load_file(hub / SHARD) | {name: tensor}, hub / SHARD)


def test_an_index_without_a_tensor(hub, refused):
    path = hub / "model.safetensors.index.json"
    listed = json.loads(path.read_text())["weight_map"]
    del listed["model.norm.weight"]
    edit(path, weight_map=listed)
    refused("model.norm.weight is missing")


def test_an_index_with_a_tensor_the_shard_lacks(hub, refused):
    tensors = load_file(hub / SHARD)
    name = first_tensor(hub, "mlp.gate.weight")
    del tensors[name]
    save_file(tensors, hub / SHARD)
    refused(f"can't read {name}")


def test_an_unexpected_tensor(hub, refused):
    path = hub / "model.safetensors.index.json"
    listed = json.loads(path.read_text())["weight_map"]
    replace(hub, "model.layers.0.mlp.extra.weight", torch.ones(3))
    edit(path, weight_map=listed | {"model.layers.0.mlp.extra.weight": SHARD})
    refused("model.layers.0.mlp.extra.weight is unexpected")


@pytest.mark.parametrize("place", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "x.bin", ".safetensors", 3])
def test_an_index_that_leaves_the_folder(place, hub, refused):
    edit(hub / "model.safetensors.index.json", weight_map={"model.norm.weight": place})
    refused("no valid weight_map")


def test_a_missing_shard(hub, refused):
    (hub / SHARD).unlink()
    refused("a weight file is missing")


@pytest.mark.parametrize("size", [0, 4, 100, 5000, -1])
def test_a_truncated_shard(size, hub, refused):
    content = (hub / SHARD).read_bytes()
    (hub / SHARD).write_bytes(content[:size])
    refused("not a safetensors file")


def test_a_tensor_of_another_shape(hub, refused):
    name = first_tensor(hub, "k_norm.weight")
    replace(hub, name, torch.ones(33))
    refused(rf"{name} gives \[33\].*\[32\]")


def test_a_tensor_of_another_type(hub, refused):
    name = first_tensor(hub, "q_proj.weight")
    replace(hub, name, load_file(hub / SHARD)[name].to(torch.int8))
    refused(f"{name} is I8.*BF16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number(value, hub, refused):
    name = first_tensor(hub, "experts.0.down_proj.weight")
    broken = load_file(hub / SHARD)[name]
    broken[3, 5] = value
    replace(hub, name, broken)
    refused(name, KrasisError)


@pytest.mark.parametrize("model_type", ["llama", "../qwen3_moe", "blocks", None])
def test_an_unknown_family(model_type, hub, refused):
    edit(hub / "config.json", model_type=model_type)
    refused("unknown model family")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000], ids=["empty", "cut", "a list", "too deep"])
def test_a_config_that_is_no_object(text, hub, refused):
    (hub / "config.json").write_text(text)
    refused(r"not JSON|not a JSON object")


def test_a_folder_without_a_config(hub, refused):
    (hub / "config.json").unlink()
    refused("no config.json")


@pytest.mark.parametrize("ids", [-1, "0", [1, -2], [True], {}])
def test_end_tokens_that_are_none(ids, hub, refused):
    edit(hub / "generation_config.json", eos_token_id=ids)
    refused("eos_token_id is")


def test_end_tokens_of_both_configs_count(hub, convert, tmp_path):
    edit(hub / "generation_config.json", eos_token_id=[0, 7])
    manifest = json.loads(
        (convert(hub, tmp_path / "pack", expert_bits=16, dense_bits=16) / "manifest.json").read_text()
    )
    assert manifest["model"]["eos_token_ids"] == [0, 7]
