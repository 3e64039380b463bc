"""Reading DeepSeek configurations strictly."""

import math

import pytest

from krasis.errors import InputError
from krasis.models import deepseek_v2, deepseek_v3
from krasis.models.blocks.rope import RopeSpec, Yarn

# DeepSeek-V2-Lite, as the hub has it.
LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 102400,
}
LARGE = LITE | {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "n_routed_experts": 160}
V3 = LITE | {
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 8,
    "topk_group": 4,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "q_lora_rank": 1536,
    "num_nextn_predict_layers": 1,
    "ep_size": 1,
}


def test_the_lite_model_is_read_as_it_is():
    spec = deepseek_v2.parse_config(LITE)
    sharper = (0.1 * 0.707 * math.log(40) + 1) ** 2
    assert spec.rope == RopeSpec(
        theta=1e4, yarn=Yarn(factor=40.0, original_positions=4096, softmax_factor=pytest.approx(sharper))
    )
    assert (spec.q_lora_rank, spec.kv_lora_rank, spec.nope_dim, spec.rope_dim, spec.v_dim) == (0, 512, 128, 64, 128)
    assert (spec.shared_size, spec.first_moe_layer, spec.intermediate_size) == (2816, 1, 10944)
    assert (spec.scores, spec.corrected, spec.groups, spec.kept_groups) == ("softmax", False, 1, 1)
    assert (spec.experts_per_token, spec.norm_topk_prob, spec.routed_scale) == (6, False, 1.0)


def test_groups_count_where_routing_is_limited_to_them():
    spec = deepseek_v2.parse_config(LARGE)
    assert (spec.groups, spec.kept_groups, spec.group_votes) == (8, 3, 1)
    assert deepseek_v2.parse_config(LARGE | {"topk_method": "greedy"}).groups == 1


def test_version_3_is_read_as_it_is():
    spec = deepseek_v3.parse_config(V3)
    assert (spec.scores, spec.corrected, spec.groups, spec.kept_groups, spec.group_votes) == ("sigmoid", True, 8, 4, 2)
    assert (spec.q_lora_rank, spec.norm_topk_prob) == (1536, True)


@pytest.mark.parametrize(
    "change",
    [
        {"scoring_func": "sigmoid"},
        {"topk_method": "noaux_tc"},
        {"norm_topk_prob": True},
        {"moe_layer_freq": 2},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_interleave": False},
        {"qk_rope_head_dim": 63},
        {"n_group": 7},
        {"topk_group": 9},
        {"topk_group": None},
        {"num_experts_per_tok": 61},
        {"kv_lora_rank": None},
        {"intermediate_size": None},
        {"router_jitter": 0.1},
        {"quantization_config": {"quant_method": "awq"}},
    ],
    ids=str,
)
def test_a_value_that_is_wrong_or_unknown_is_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        deepseek_v2.parse_config(LARGE | change)


@pytest.mark.parametrize(
    "change", [{"scoring_func": "softmax"}, {"topk_method": "greedy"}, {"n_group": 256, "topk_group": 8}], ids=str
)
def test_version_3_routes_in_one_way(change):
    with pytest.raises(InputError, match=next(iter(change))):
        deepseek_v3.parse_config(V3 | change)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("model.layers.27.embed_tokens.weight", True),
        ("model.layers.3.self_attn.rotary_emb.inv_freq", True),
        ("model.layers.26.mlp.gate.weight", False),
        ("lm_head.weight", False),
        ("model.layers.x.weight", False),
    ],
)
def test_layers_that_predict_further_tokens_are_left_out(name, left_out):
    assert deepseek_v2.ignored(name, deepseek_v2.parse_config(LITE)) == left_out
