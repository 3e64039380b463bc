"""Reading gpt-oss configurations strictly."""

import json
import math

import msgspec
import pytest

from krasis.errors import InputError
from krasis.models.blocks.rope import RopeSpec, Yarn
from krasis.models.gpt_oss import Spec, parse_config

SLIDING, FULL = "sliding_attention", "full_attention"
YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": False,
}

# gpt-oss-120b, as the hub has it.
LARGE = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": [SLIDING, FULL] * 18,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": YARN,
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}


def without(*names):
    return {key: value for key, value in LARGE.items() if key not in names}


def test_the_large_model_is_read_as_it_is():
    spec = parse_config(LARGE)
    assert (spec.hidden_size, spec.num_layers, spec.vocab_size, spec.max_positions) == (2880, 36, 201088, 131072)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (64, 8, 64)
    assert (spec.num_experts, spec.experts_per_token, spec.expert_size) == (128, 4, 2880)
    assert (spec.windows, spec.swiglu_alpha, spec.swiglu_limit) == ((128, 0) * 18, 1.702, 7.0)
    assert (spec.norm_eps, spec.tied_embeddings, spec.eos_token_ids) == (1e-5, False, (200002,))
    sharper = 0.1 * math.log(32) + 1
    yarn = Yarn(factor=32.0, original_positions=4096, truncate=False, attention_factor=sharper)
    assert spec.rope == RopeSpec(theta=150000.0, yarn=yarn)


def test_old_and_new_style_give_one_spec():
    new = without("rope_theta", "rope_scaling") | {"rope_parameters": YARN | {"rope_theta": 150000.0}}
    assert parse_config(new) == parse_config(LARGE)


def test_the_bundled_config_is_read(example):
    tree = json.loads((example("gpt_oss") / "config.json").read_text())
    spec = parse_config({key: value for key, value in tree.items() if key != "quantization_config"})
    assert (spec.windows, spec.num_experts, spec.experts_per_token, spec.expert_size) == ((64, 0, 64, 0), 8, 2, 224)


def test_defaults_are_those_of_the_format():
    names = ("layer_types", "swiglu_limit", "experts_per_token", "initial_context_length", "attention_bias")
    assert parse_config(without(*names)) == parse_config(LARGE)
    assert parse_config(without("layer_types") | {"num_hidden_layers": 3}).windows == (128, 0, 128)


@pytest.mark.parametrize(
    ("had", "has"),
    [("num_local_experts", "num_experts"), ("num_experts_per_tok", "experts_per_token")],
)
def test_a_key_goes_by_two_names(had, has):
    assert parse_config(without(had) | {has: LARGE[had]}) == parse_config(LARGE)


def test_full_layers_need_no_window():
    types = {"layer_types": [FULL] * 36}
    assert parse_config(without("sliding_window") | types).windows == (0,) * 36
    assert parse_config(LARGE | {"sliding_window": None} | types).windows == (0,) * 36


NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "num_attention_heads",
    "rope_theta",
    "num_local_experts",
    "intermediate_size",
)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_key_is_named(name):
    with pytest.raises(InputError, match=f"{name} is missing"):
        parse_config(without(name))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 2880.0},
        {"num_key_value_heads": 7},
        {"head_dim": 63},
        {"num_local_experts": 0},
        {"num_experts_per_tok": 129, "experts_per_token": 129},
        {"experts_per_token": 8},
        {"num_experts": 64},
        {"initial_context_length": 8192},
        {"sliding_window": None},
        {"sliding_window": 0},
        {"sliding_window": 128.0},
        {"layer_types": [SLIDING, FULL] * 17},
        {"layer_types": [SLIDING, "chunked_attention"] * 18},
        {"layer_types": SLIDING},
        {"swiglu_limit": 0.0},
        {"swiglu_limit": math.inf},
        {"swiglu_limit": "7"},
        {"swiglu_alpha": -1.0},
        {"attention_bias": False},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": 0.0},
        {"tie_word_embeddings": 0},
        {"rope_scaling": None},
        {"rope_scaling": YARN | {"rope_type": "linear"}},
        {"rope_scaling": YARN | {"short_factor": [1.0]}},
        {"quantization_config": {"quant_method": "mxfp4"}},
        {"norm_topk_prob": True},
        {"shared_expert_intermediate_size": 512},
    ],
    ids=str,
)
def test_a_value_that_is_wrong_or_unknown_is_named(change):
    names = {"rope_scaling": "rope_parameters|rope_type|short_factor"}
    # Where a change is of two keys, either may be the one at fault.
    with pytest.raises(InputError, match="|".join(names.get(name, name) for name in change)) as refusal:
        parse_config(LARGE | change)
    assert "config.json" in str(refusal.value)


def test_a_pack_with_too_few_windows_is_refused():
    tree = msgspec.to_builtins(parse_config(LARGE))
    assert msgspec.convert(tree, Spec) == parse_config(LARGE)
    with pytest.raises(msgspec.ValidationError, match="windows of 35 layers, expected 36"):
        msgspec.convert(tree | {"windows": [128] * 35}, Spec)
