"""Quantized checkpoints that krasis can't read, or that contradict themselves: each refused by name."""

import encoded
import pytest
import torch

from krasis.convert import encodings
from krasis.convert.pipeline import Conversion
from krasis.errors import InputError
from krasis.pack.manifest import Settings
from krasis.pack.progress import Silent

SETTINGS = Settings(expert_bits=4, dense_bits=8, group_size=32, layouts=("cpu",))
Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.experts.down_proj"


def refused_config(tree, match):
    with pytest.raises(InputError, match=match):
        encodings.of({"quantization_config": tree})


def without(tree, key):
    return {name: value for name, value in tree.items() if name != key}


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "fbgemm_fp8", "modelopt"])
def test_methods_that_are_not_read(method):
    refused_config({"quant_method": method}, f"quant_method is '{method}'.*one of compressed-tensors, fp8, mxfp4")


@pytest.mark.parametrize("tree", [[], "mxfp4", 4, True])
def test_a_quantization_that_is_no_object(tree):
    refused_config(tree, "quantization_config is .*an object")


@pytest.mark.parametrize("tree", [{}, {"quant_method": 8}, {"quant_method": None}])
def test_a_quantization_without_a_method(tree):
    refused_config(tree, "quant_method is")


@pytest.mark.parametrize(
    "tree", [encoded.FP8, encoded.MXFP4, encoded.compressed()], ids=lambda tree: tree["quant_method"]
)
def test_unknown_keys(tree):
    encodings.of({"quantization_config": tree})
    refused_config(tree | {"rotation": "hadamard"}, "unknown key 'rotation' = 'hadamard'")


FP8 = [
    ("weight_block_size", None, r"\[128, 128\]"),
    ("weight_block_size", [1, 128], r"\[128, 128\]"),
    ("weight_block_size", [64, 64], r"\[128, 128\]"),
    ("fmt", "e5m2", "'e4m3'"),
    ("activation_scheme", "static", "'dynamic'"),
    ("scale_fmt", "e4m3", "'float' or 'ue8m0'"),
    ("expert_dtype", "fp4", "'fp8'"),
]


@pytest.mark.parametrize(("key", "value", "expected"), FP8)
def test_fp8_of_another_kind(key, value, expected):
    refused_config(encoded.FP8 | {key: value}, f"{key} is .*{expected}")


def test_fp8_configs_of_the_hub():
    qwen3 = encoded.FP8 | {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]}
    for tree in (encoded.FP8, encoded.FP8 | {"scale_fmt": "ue8m0"}, qwen3):
        encodings.of({"quantization_config": tree})


COMPRESSED = [
    ("format", None, "'pack-quantized'"),
    ("format", "float-quantized", "'pack-quantized'"),
    ("format", "int-quantized", "'pack-quantized'"),
    ("format", "nvfp4-pack-quantized", "'pack-quantized'"),
    ("quantization_status", "calibration", "'compressed'"),
    ("kv_cache_scheme", {"num_bits": 8}, "no such key"),
    ("sparsity_config", {"format": "sparse-24-bitmask"}, "{}"),
    ("transform_config", {"config_groups": {"u": {}}}, "{}"),
    ("config_groups", None, "an object"),
    ("config_groups", [], "an object"),
    ("config_groups", {}, "an object"),
]


@pytest.mark.parametrize(("key", "value", "expected"), COMPRESSED)
def test_compressed_tensors_of_another_kind(key, value, expected):
    named = "group_0" if value == {} else key
    refused_config(encoded.compressed() | {key: value}, f"{named} is .*{expected}")


WEIGHTS = [
    ("num_bits", 8, "4"),
    ("num_bits", 2, "4"),
    ("num_bits", None, "4"),
    ("type", "float", "'int'"),
    ("symmetric", False, "True"),
    ("dynamic", True, "False"),
    ("actorder", "group", "'weight' or 'static'"),
    ("actorder", "dynamic", "'weight' or 'static'"),
    ("actorder", True, "'weight' or 'static'"),
    ("block_structure", "2x4", "no such key"),
    ("strategy", "tensor", "'group'"),
    ("strategy", "block", "'group'"),
    ("group_size", 16, "32 or 64 or 128"),
]


@pytest.mark.parametrize(("key", "value", "expected"), WEIGHTS)
def test_compressed_weights_of_another_kind(key, value, expected):
    refused_config(encoded.compressed(**{key: value}), f"{key} is .*{expected}")


@pytest.mark.parametrize("key", ["input_activations", "output_activations"])
def test_compressed_activations(key):
    tree = encoded.compressed()
    tree["config_groups"]["group_0"][key] = {"num_bits": 8}
    refused_config(tree, f"{key} is")


def test_two_groups_of_compressed_weights():
    tree = encoded.compressed()
    tree["config_groups"]["group_1"] = tree["config_groups"]["group_0"]
    refused_config(tree, "unknown key 'group_1'")


def test_a_compressed_config_of_the_hub():
    tree = encoded.compressed(actorder=None, block_structure=None, observer="minmax", observer_kwargs={})
    extras = {"sparsity_config": {}, "transform_config": {}, "global_compression_ratio": None, "version": "0.12.2"}
    tree["config_groups"]["group_0"]["format"] = "pack-quantized"
    encodings.of({"quantization_config": tree | extras})


@pytest.fixture(scope="module")
def fp8(demo):
    """(config, tensors, quantization) of a checkpoint with one FP8 matrix."""
    config, tensors = encoded.read(demo)
    codes, scales = encoded.to_fp8(tensors[Q])
    return config, tensors | {Q: codes, f"{Q}_scale_inv": scales}, encoded.FP8


@pytest.fixture(scope="module")
def int4(demo):
    """The same with one matrix in compressed INT4."""
    config, tensors = encoded.read(demo)
    numbers, scales = encoded.to_int4(tensors[Q], 32)
    parts = {"packed": encoded.packed(numbers), "scale": scales, "shape": torch.tensor(tensors[Q].shape)}
    return config, without(tensors, Q) | {f"{Q}_{part}": found for part, found in parts.items()}, encoded.compressed()


@pytest.fixture(scope="module")
def mxfp4(example):
    return *encoded.read(example("gpt_oss")), encoded.MXFP4


@pytest.fixture
def refused(tmp_path):
    """Expect a refusal of a checkpoint with changed tensors, while planning or, where told, while converting."""

    def run(checkpoint, changes, match, *, reading=False, quantization="its own"):
        config, tensors, own = checkpoint
        changed = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        hub = encoded.write(tmp_path / "hub", config, changed, own if quantization == "its own" else quantization)
        if not reading:
            with pytest.raises(InputError, match=match):
                Conversion(hub, SETTINGS)
            return
        conversion = Conversion(hub, SETTINGS)
        with pytest.raises(InputError, match=match):
            conversion.run(tmp_path / "pack", Silent())
        assert not (tmp_path / "pack").exists()

    return run


@pytest.mark.parametrize("part", ["", "_scale_inv"])
def test_fp8_without_its_partner(part, fp8, refused):
    refused(fp8, {f"{Q}{part}": None}, f"{Q}{part} is missing")


FP8_TENSORS = {
    "scales of another size": {f"{Q}_scale_inv": torch.ones(2, 3)},
    "scales of a dtype that is none": {f"{Q}_scale_inv": torch.ones(2, 2).half()},
    "a scale for all": {f"{Q}_scale_inv": torch.ones(1)},
    "weights of another dtype": {Q: torch.ones(256, 256).to(torch.float8_e5m2)},
    "weights in floats": {Q: torch.ones(256, 256)},
    "weights in three dimensions": {Q: torch.ones(1, 256, 256).to(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("changes", FP8_TENSORS.values(), ids=FP8_TENSORS)
def test_fp8_tensors_that_do_not_fit(changes, fp8, refused):
    refused(fp8, changes, rf"{Q} is F.*{Q}_scale_inv [FB].*: F8_E4M3 \[N, K\] and F32 or BF16")


def test_fp8_of_another_shape(fp8, refused):
    refused(fp8, {Q: torch.ones(200, 256).to(torch.float8_e4m3fn)}, rf"{Q} gives \[200, 256\].*\[256, 256\]")


@pytest.mark.parametrize("name", [Q, f"{Q}_scale_inv"])
def test_fp8_without_a_number(name, fp8, refused):
    broken = fp8[1][name].float()
    broken[1, 1] = float("nan")
    refused(fp8, {name: broken.to(fp8[1][name].dtype)}, f"{Q}: .* weights are NaN", reading=True)


def test_fp8_that_config_does_not_announce(fp8, refused):
    refused(fp8, {}, f"{Q} is F8_E4M3", quantization=None)


def test_scales_that_config_does_not_announce(fp8, refused):
    refused(fp8, {Q: torch.ones(256, 256)}, f"{Q}_scale_inv is unexpected", quantization=None)


@pytest.mark.parametrize("name", [f"{Q}_zero_point", f"{Q}_g_idx", Q.replace("weight", "input_scale")])
def test_tensors_that_nothing_uses(name, int4, refused):
    refused(int4, {name: torch.ones(1)}, f"{name} is unexpected")


def test_a_scale_of_a_tensor_in_floats(int4, refused):
    name = "model.embed_tokens.weight"
    refused(int4, {f"{name}_scale": torch.ones(1)}, f"{name}_packed is missing .and 1 more")


@pytest.mark.parametrize("part", ["packed", "scale", "shape"])
def test_compressed_int4_without_its_partners(part, int4, refused):
    refused(int4, {f"{Q}_{part}": None}, f"{Q}_{part} is missing")


INT4_TENSORS = {
    "codes of another dtype": {f"{Q}_packed": torch.zeros(256, 32, dtype=torch.int64)},
    "codes in one dimension": {f"{Q}_packed": torch.zeros(256, dtype=torch.int32)},
    "scales of larger groups": {f"{Q}_scale": torch.ones(256, 4).bfloat16()},
    "scales of fewer rows": {f"{Q}_scale": torch.ones(255, 8).bfloat16()},
    "scales of a dtype that is none": {f"{Q}_scale": torch.ones(256, 8, dtype=torch.uint8)},
}


@pytest.mark.parametrize("changes", INT4_TENSORS.values(), ids=INT4_TENSORS)
def test_compressed_tensors_that_do_not_fit(changes, int4, refused):
    refused(int4, changes, rf"{Q}_packed is I.*{Q}_scale [BFU].*: I32 \[N, K/8\] and .* \[N, K/32\]")


def test_sizes_that_are_none(int4, refused):
    refused(int4, {f"{Q}_shape": torch.ones(2)}, rf"{Q}_shape is F32 \[2\]")


def test_compressed_int4_of_another_shape(int4, refused):
    fewer = {f"{Q}_packed": int4[1][f"{Q}_packed"][:64], f"{Q}_scale": int4[1][f"{Q}_scale"][:64]}
    refused(int4, fewer, rf"{Q} gives \[64, 256\].*\[256, 256\]")


def test_compressed_int4_that_says_another_shape(int4, refused):
    refused(int4, {f"{Q}_shape": torch.tensor([256, 250])}, rf"{Q}: weight_shape is \[256, 250\]", reading=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-39, 2.0**125])
def test_compressed_scales_that_are_unusable(value, int4, refused):
    scales = int4[1][f"{Q}_scale"].clone()
    scales[3, 3] = value
    refused(int4, {f"{Q}_scale": scales}, f"{Q}: 1 of 2048 scales are", reading=True)


@pytest.mark.parametrize("part", ["blocks", "scales"])
def test_mxfp4_without_its_partner(part, mxfp4, refused):
    refused(mxfp4, {f"{DOWN}_{part}": None}, f"{DOWN}_{part} is missing")


MXFP4_TENSORS = {
    "blocks of another dtype": {f"{DOWN}_blocks": torch.zeros(8, 224, 7, 16, dtype=torch.int32)},
    "blocks of another size": {f"{DOWN}_blocks": torch.zeros(8, 224, 7, 8, dtype=torch.uint8)},
    "blocks that are joined": {f"{DOWN}_blocks": torch.zeros(8, 224, 112, dtype=torch.uint8)},
    "scales of another dtype": {f"{DOWN}_scales": torch.zeros(8, 224, 7, dtype=torch.int8)},
    "scales of fewer groups": {f"{DOWN}_scales": torch.zeros(8, 224, 6, dtype=torch.uint8)},
}


@pytest.mark.parametrize("changes", MXFP4_TENSORS.values(), ids=MXFP4_TENSORS)
def test_mxfp4_tensors_that_do_not_fit(changes, mxfp4, refused):
    refused(mxfp4, changes, rf"{DOWN}_blocks is .*{DOWN}_scales .*: U8 \[N, K/32, 16\] and U8 \[N, K/32\]")


@pytest.mark.parametrize("count", [7, 9])
def test_more_or_fewer_experts_than_config_says(count, mxfp4, refused):
    changes = {f"{DOWN}_{part}": mxfp4[1][f"{DOWN}_{part}"][[*range(8), 0][:count]] for part in ("blocks", "scales")}
    refused(mxfp4, changes, rf"{DOWN}_blocks is U8 \[{count}, 224, 7, 16\].*8 experts")


@pytest.mark.parametrize("value", [0, 254, 255])
def test_mxfp4_scales_that_are_unusable(value, mxfp4, refused):
    changes = {f"{DOWN}_{part}": mxfp4[1][f"{DOWN}_{part}"].clone() for part in ("blocks", "scales")}
    changes[f"{DOWN}_blocks"][5, 6, 4] = 0x77
    changes[f"{DOWN}_scales"][5, 6, 4] = value
    refused(mxfp4, changes, f"{DOWN}: 1 of 1568 mxfp4 scales", reading=True)


def test_mxfp4_that_config_does_not_announce(mxfp4, refused):
    refused(mxfp4, {}, "gate_up_proj is missing|down_proj is missing", quantization=None)
