"""Reading Qwen3-Next configurations strictly."""

import json
from pathlib import Path

import msgspec
import pytest

from krasis.errors import InputError
from krasis.models.blocks.rope import RopeSpec, Yarn
from krasis.models.qwen3_next import Spec, ignored, moe_layers, parse_config, states
from krasis.models.state import Cache, Recurrent

FULL, LINEAR = "full_attention", "linear_attention"
LARGE = json.loads((Path(__file__).parent / "configs/qwen3-coder-next.json").read_text(encoding="utf-8"))


def without(*names):
    return {key: value for key, value in LARGE.items() if key not in names}


def test_the_large_model_is_read_as_it_is():
    spec = parse_config(LARGE)
    assert (spec.hidden_size, spec.num_layers, spec.vocab_size, spec.max_positions) == (2048, 48, 151936, 262144)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (16, 2, 256)
    assert spec.attention_layers == tuple(range(3, 48, 4))
    assert (spec.linear_key_heads, spec.linear_value_heads, spec.shared_heads) == (16, 32, 2)
    assert (spec.linear_key_dim, spec.linear_value_dim, spec.conv_width, spec.channels) == (128, 128, 4, 8192)
    assert (spec.num_experts, spec.experts_per_token, spec.expert_size, spec.shared_size) == (512, 10, 512, 512)
    assert (spec.rope, spec.norm_eps, spec.norm_topk_prob) == (RopeSpec(theta=5e6, partial=0.25), 1e-6, True)
    assert (spec.dense_layers, spec.tied_embeddings, spec.eos_token_ids) == ((), False, (151645,))


def test_old_and_new_style_give_one_spec():
    new = without("rope_theta", "rope_scaling", "partial_rotary_factor", "full_attention_interval", "torch_dtype") | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.25},
        "layer_types": [LINEAR, LINEAR, LINEAR, FULL] * 12,
        "eos_token_id": [151645],
        "dtype": "bfloat16",
    }
    assert parse_config(new) == parse_config(LARGE)


def test_the_bundled_config_is_read(example):
    spec = parse_config(json.loads((example("qwen3_next") / "config.json").read_text()))
    assert (spec.attention_layers, spec.linear_value_heads, spec.num_experts, spec.shared_size) == ((3,), 8, 24, 64)
    assert spec.rope == RopeSpec(theta=1e4, partial=0.25)


def test_defaults_are_those_of_the_format():
    names = ("full_attention_interval", "partial_rotary_factor", "decoder_sparse_step", "mlp_only_layers")
    assert parse_config(without(*names)) == parse_config(LARGE)


def test_layers_follow_the_interval():
    assert parse_config(LARGE | {"full_attention_interval": 1, "num_hidden_layers": 3}).attention_layers == (0, 1, 2)
    assert parse_config(LARGE | {"full_attention_interval": 5, "num_hidden_layers": 4}).attention_layers == ()


def test_dense_layers_follow_both_keys():
    spec = parse_config(LARGE | {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [1]})
    assert spec.dense_layers == (0, 1, 2, 4)
    assert moe_layers(spec) == {3: 512, 5: 512}


def test_each_layer_remembers_what_it_needs():
    linear = Recurrent(((3, 8192), (32, 128, 128)))
    assert states(parse_config(LARGE)) == [linear, linear, linear, Cache(((2, 256), (2, 256)))] * 12


def test_yarn_is_read():
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144, "attention_factor": 1.0}
    yarn = Yarn(factor=4.0, original_positions=262144)
    assert parse_config(LARGE | {"rope_scaling": rope}).rope == RopeSpec(theta=5e6, partial=0.25, yarn=yarn)


def test_layers_that_predict_further_tokens_are_left_out():
    spec = parse_config(LARGE)
    assert ignored("mtp.layers.0.mlp.experts.0.up_proj.weight", spec)
    assert not ignored("model.layers.0.mlp.experts.512.up_proj.weight", spec)


NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "num_attention_heads",
    "head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "rope_theta",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "norm_topk_prob",
)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_key_is_named(name):
    with pytest.raises(InputError, match=f"{name} is missing"):
        parse_config(without(name))


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 3},
        {"head_dim": 252},
        {"head_dim": 2, "partial_rotary_factor": 0.25},
        {"partial_rotary_factor": 0.255},
        {"partial_rotary_factor": 1.5},
        {"partial_rotary_factor": 0},
        {"full_attention_interval": 0},
        {"layer_types": [FULL] * 47},
        {"layer_types": ["sliding_attention"] * 48},
        {"linear_num_value_heads": 24},
        {"linear_num_value_heads": 0},
        {"linear_conv_kernel_dim": 4.0},
        {"num_experts": 0},
        {"num_experts_per_tok": 513},
        {"mlp_only_layers": [0], "intermediate_size": None},
        {"shared_expert_intermediate_size": 0},
        {"norm_topk_prob": 1},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"eos_token_id": "151645"},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"n_shared_experts": 1},
        {"linear_attention_bias": False},
    ],
    ids=str,
)
def test_a_value_that_is_wrong_or_unknown_is_named(change):
    # A share of dimensions is wrong for a head of some size, the type of a rope for its name.
    with pytest.raises(InputError, match="|".join([*change, "head_dim", "rope_type"])) as refusal:
        parse_config(LARGE | change)
    assert "config.json" in str(refusal.value)


def test_a_spec_that_contradicts_itself_is_refused():
    tree = msgspec.to_builtins(parse_config(LARGE)) | {"linear_value_heads": 33}
    with pytest.raises(msgspec.ValidationError, match="33 value heads"):
        msgspec.convert(tree, Spec)
