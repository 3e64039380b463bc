"""Comparing packs with checkpoints: what is right passes to the last bit of every error, and each fault is named."""

import json
import shutil
from pathlib import Path

import encoded
import msgspec
import pytest
import torch
from rooted import reroot
from safetensors.torch import load_file, save_file

from krasis.convert import compare as comparing
from krasis.convert.compare import compare
from krasis.errors import InputError
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack


@pytest.fixture(params=[1 << 22, 1 << 12], ids=["whole", "in pieces"])
def piece(request, monkeypatch):
    """Weights compared at once: all of a matrix, or few."""
    monkeypatch.setattr(comparing, "PIECE", request.param)


@pytest.fixture
def copied(demo_pack, tmp_path):
    """A pack to spoil."""
    return Path(shutil.copytree(demo_pack(), tmp_path / "pack"))


@pytest.fixture
def hub(demo, tmp_path):
    """A checkpoint to spoil."""
    return Path(shutil.copytree(demo, tmp_path / "hub"))


def found(pack, source, jobs=2):
    return compare(Pack(pack), source, Silent(), jobs)


def restate(pack, **changes):
    """Put other values into a manifest, under a root that fits."""
    path = pack / "manifest.json"
    path.write_bytes(reroot(json.loads(path.read_bytes()) | changes))


@pytest.mark.parametrize("options", [{}, {"expert_bits": 8, "group_size": 32}, {"expert_bits": 16, "dense_bits": 16}])
def test_a_pack_is_what_its_checkpoint_gives(family, options, piece, pack_of, example):
    pack = Pack(pack_of(family, **options))
    result = found(pack.path, example(family))
    assert (result.wrong, result.changed) == ({}, [])
    segments = [segment for _, segment in pack.manifest.segments()]
    assert result.tensors == sum(len(segment.tensors) * segment.count for segment in segments)
    stated = {
        f"{segment.name}[{index}].{tensor.name}": (
            tensor.codec,
            pack.manifest.errors[f"{segment.name}.{tensor.name}"][index],
        )
        for segment in segments
        for tensor in segment.tensors
        for index in range(segment.count)
        if tensor.quantized
    }
    assert result.errors.keys() == stated.keys()
    for name, (codec, figure) in stated.items():
        assert abs(result.errors[name] - figure) <= comparing.allowed(codec, figure), name


def test_encoded_checkpoints_are_decoded_first(demo, convert, tmp_path):
    config, tensors = encoded.read(demo)
    fp8 = dict(tensors)
    for name in filter(encoded.linear, tensors):
        fp8[name], fp8[f"{name}_scale_inv"] = encoded.to_fp8(tensors[name])
    hub = encoded.write(tmp_path / "hub", config, fp8, encoded.FP8)
    result = found(convert(hub, tmp_path / "pack"), hub)
    assert (result.wrong, result.changed) == ({}, [])


def test_kept_mxfp4_is_exact(pack_of, example):
    result = found(pack_of("gpt_oss"), example("gpt_oss"))
    experts = {name: error for name, error in result.errors.items() if ".experts[" in name}
    assert len(experts) == 64
    assert set(experts.values()) == {0}


def test_the_worst_come_first(demo_pack, demo):
    result = found(demo_pack(), demo)
    worst = result.worst(5)
    assert [error for _, error in worst] == sorted(result.errors.values(), reverse=True)[:5]


def swap(pack, segment_name, layout, first, second):
    """Swap two records, as a wrong converter would: hashes and all."""
    manifest = json.loads((pack / "manifest.json").read_bytes())
    for file in manifest["files"]:
        for segment in file["segments"]:
            if (segment["name"], segment["layout"]) == (segment_name, layout):
                size = Pack(pack).segment(segment_name, layout).record_bytes
                path = pack / file["name"]
                content = bytearray(path.read_bytes())
                spans = [slice(at, at + size) for at in (segment["offset"] + i * size for i in (first, second))]
                content[spans[0]], content[spans[1]] = content[spans[1]], content[spans[0]]
                path.write_bytes(content)
                hashes = segment["sha256"]
                hashes[first], hashes[second] = hashes[second], hashes[first]
    (pack / "manifest.json").write_bytes(reroot(manifest))


@pytest.mark.parametrize("layout", ["marlin", "cpu"])
def test_experts_in_wrong_order_are_found(layout, piece, copied, demo):
    swap(copied, "layers.2.experts", layout, 3, 7)
    assert all(matches for _, _, matches in Pack(copied).verify())
    result = found(copied, demo)
    assert result.wrong.keys() == {f"layers.2.experts[{i}].{name}@{layout}" for i in (3, 7) for name in ("w13", "w2")}
    assert all(fault.startswith("its error is 1.") for fault in result.wrong.values())


def test_an_error_that_is_stated_wrong_is_found(copied, demo):
    errors = {key: list(figures) for key, figures in Pack(copied).manifest.errors.items()}
    errors["layers.1.dense.o"][0] *= 1 + 1e-5
    restate(copied, errors=errors)
    assert found(copied, demo).wrong.keys() == {"layers.1.dense[0].o@marlin", "layers.1.dense[0].o@cpu"}


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("ending", "wrong"),
    [
        ("0.input_layernorm.weight", {"layers.0[0].input_norm@plain"}),
        ("0.self_attn.q_proj.weight", {"layers.0.dense[0].q@marlin", "layers.0.dense[0].q@cpu"}),
    ],
)
def test_one_weight_that_differs_is_found_and_its_file_named(ending, wrong, hub, demo_pack):
    tensors = load_file(hub / SHARD)
    weight = tensors[f"model.layers.{ending}"].flatten()
    weight[-1] += 0.5
    save_file(tensors, hub / SHARD, {"format": "pt"})
    result = found(demo_pack(), hub)
    assert result.wrong.keys() == wrong
    assert result.changed == [SHARD]


def test_other_files_with_the_same_weights_are_named(hub, demo_pack):
    tensors = {name: tensor for shard in hub.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    for path in hub.glob("model*"):
        path.unlink()
    save_file(tensors, hub / "model.safetensors")
    result = found(demo_pack(), hub)
    assert result.wrong == {}
    assert result.changed == sorted([SHARD, SHARD.replace("1-of", "2-of"), "model.safetensors"])


def test_another_setting_of_the_model_is_named(hub, demo_pack):
    path = hub / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-5}))
    assert found(demo_pack(), hub).wrong == {"model.norm_eps": "is 1e-06, of the checkpoint 1e-05"}


def test_another_family_is_refused(demo_pack, example):
    with pytest.raises(InputError, match="of family 'gpt_oss'"):
        found(demo_pack(), example("gpt_oss"))


def test_another_number_of_layers_is_named_or_refused(hub, demo, demo_pack, convert, tmp_path):
    path = hub / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    assert found(demo_pack(), hub).wrong == {"model.num_layers": "is 4, of the checkpoint 3"}
    with pytest.raises(InputError, match=r"the pack lacks layers\.3"):
        found(convert(hub, tmp_path / "shorter"), demo)


def test_nan_scales_are_wrong(copied, demo):
    pack = Pack(copied)
    arrays = pack.arrays("layers.0.experts", "cpu", 0)
    scales = arrays["w2", "scales"]
    file = pack.path / "layer-000.bin"
    content = bytearray(file.read_bytes())
    at = scales.storage_offset() * 2
    content[at : at + 2] = torch.tensor([float("nan")]).bfloat16().view(torch.uint8).numpy().tobytes()
    file.write_bytes(content)
    assert "its error is nan" in found(copied, demo).wrong["layers.0.experts[0].w2@cpu"]


def test_specs_are_compared_field_by_field(copied, demo):
    restate(copied, model=msgspec.to_builtins(Pack(copied).manifest.model) | {"norm_topk_prob": False})
    assert found(copied, demo).wrong.keys() == {"model.norm_topk_prob"}
