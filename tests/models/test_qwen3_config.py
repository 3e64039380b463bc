"""Reading config.json strictly: both styles give one spec, and what is not understood is refused by name."""

import json
import math

import pytest

from krasis.errors import InputError
from krasis.models.blocks.rope import RopeSpec, Yarn
from krasis.models.qwen3_moe import parse_config

# Qwen3-235B-A22B, as the hub has it.
LARGE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-06,
    "vocab_size": 151936,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "torch_dtype": "bfloat16",
}


def without(*names):
    return {key: value for key, value in LARGE.items() if key not in names}


def test_the_large_model_is_read_as_it_is():
    spec = parse_config(LARGE)
    assert (spec.hidden_size, spec.num_layers, spec.vocab_size, spec.max_positions) == (4096, 94, 151936, 40960)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (64, 4, 128)
    assert (spec.num_experts, spec.experts_per_token, spec.expert_size) == (128, 8, 1536)
    assert (spec.rope, spec.norm_eps, spec.norm_topk_prob) == (RopeSpec(theta=1e6), 1e-6, True)
    assert (spec.dense_layers, spec.tied_embeddings, spec.eos_token_ids) == ((), False, (151645,))


def test_old_and_new_style_give_one_spec():
    new = without("rope_theta", "rope_scaling", "num_experts", "torch_dtype") | {
        "num_local_experts": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "dtype": "bfloat16",
    }
    assert parse_config(new) == parse_config(LARGE)


def test_whole_numbers_will_do_for_fractions():
    assert parse_config(LARGE | {"rope_theta": 1000000}) == parse_config(LARGE)


def test_the_bundled_config_is_read(demo):
    spec = parse_config(json.loads((demo / "config.json").read_text()))
    assert (spec.num_experts, spec.rope.theta, spec.intermediate_size) == (16, 10000.0, 512)


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({"mlp_only_layers": [1, 3]}, (1, 3)),
        ({"decoder_sparse_step": 2}, (0, 2, 4)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, (0, 1, 2, 4)),
    ],
    ids=str,
)
def test_dense_layers_follow_both_keys(changes, dense):
    assert parse_config(LARGE | {"num_hidden_layers": 6} | changes).dense_layers == dense


def test_defaults_are_those_of_the_format():
    spec = parse_config(without("num_key_value_heads", "head_dim", "decoder_sparse_step", "mlp_only_layers"))
    assert (spec.num_kv_heads, spec.head_dim, spec.dense_layers) == (64, 64, ())


NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "num_attention_heads",
    "rope_theta",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_key_is_named(name):
    with pytest.raises(InputError, match=f"{name} is missing"):
        parse_config(without(name))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "4096"},
        {"hidden_size": 4096.0},
        {"hidden_size": 0},
        {"hidden_size": -4096},
        {"hidden_size": 1 << 31},
        {"num_hidden_layers": True},
        {"num_hidden_layers": 0},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"head_dim": 127},
        {"num_experts": [128]},
        {"num_local_experts": 64},
        {"experts_per_token": 4},
        {"num_experts_per_tok": 129},
        {"decoder_sparse_step": 0},
        {"mlp_only_layers": "all"},
        {"mlp_only_layers": [1.5]},
        {"mlp_only_layers": [0], "intermediate_size": None},
        {"norm_topk_prob": 1},
        {"norm_topk_prob": "true"},
        {"rms_norm_eps": "1e-6"},
        {"rms_norm_eps": 0.0},
        {"rms_norm_eps": math.nan},
        {"rope_theta": math.inf},
        {"rope_theta": -1},
        {"rope_theta": 10**400},
        {"eos_token_id": "151645"},
        {"eos_token_id": [-1]},
        {"attention_bias": True},
        {"attention_bias": "false"},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"tie_word_embeddings": 0},
        {"quantization_config": {"bits": 4}},
        {"shared_expert_intermediate_size": 512},
    ],
    ids=str,
)
def test_a_value_that_is_wrong_or_unknown_is_named(change):
    # Where a change is of two keys, either may be the one at fault.
    with pytest.raises(InputError, match="|".join(change)) as refusal:
        parse_config(LARGE | change)
    assert "config.json" in str(refusal.value)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": YARN},
        {"rope_scaling": {"type" if key == "rope_type" else key: value for key, value in YARN.items()}},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 1e6} | YARN},
    ],
    ids=["old", "older", "new"],
)
def test_yarn_is_read_in_every_style(rope):
    yarn = Yarn(factor=4.0, original_positions=32768, attention_factor=0.1 * math.log(4) + 1)
    assert parse_config(LARGE | rope).rope == RopeSpec(theta=1e6, yarn=yarn)


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "original_max_position_embeddings is missing"),
        ({"rope_scaling": YARN | {"type": "linear"}}, "type is 'linear'"),
        ({"rope_scaling": YARN | {"truncate": 0}}, "truncate is 0"),
        ({"rope_scaling": YARN | {"short_factor": [1.0]}}, "unknown key 'short_factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "type is 'linear'"),
        ({"rope_parameters": {"rope_theta": 1e6, "factor": 2.0}}, "unknown key 'factor'"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 1000000.0.*10000.0, as nested"),
        ({"rope_parameters": [1e4]}, "rope_parameters is"),
    ],
    ids=str,
)
def test_rope_of_another_kind_is_refused(rope, named):
    with pytest.raises(InputError, match=named):
        parse_config(LARGE | rope)


@pytest.mark.parametrize("name", ["_name_or_path", "transformers_version", "use_cache", "router_aux_loss_coef"])
def test_keys_that_change_nothing_pass(name):
    assert parse_config(LARGE | {name: 1}) == parse_config(LARGE)
