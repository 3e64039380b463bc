"""GLM-4.5 against transformers in float32, on odd random weights of every variant, and its configuration."""

import pytest
import torch
from judge import DEVICES, TOLERANCE, chunked_logits, difference, judged, random_model, transformers

from krasis.errors import InputError
from krasis.models.blocks.rope import RopeSpec
from krasis.models.glm4_moe import ignored, parse_config

ODD = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "moe_intermediate_size": 40,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "attention_bias": True,
    "use_qk_norm": True,
    "num_mtp_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    "max_position_embeddings": 256,
}
IDS = torch.randint(64, (70,), generator=torch.Generator().manual_seed(0)).tolist()

VARIANTS = {
    "odd sizes": {},
    "no biases": {"attention_bias": False},
    "no head norms": {"use_qk_norm": False},
    "one group": {"n_group": 1, "topk_group": 1},
    "weights not normalized": {"norm_topk_prob": False},
    "two shared experts": {"n_shared_experts": 2},
    "all layers sparse": {"first_k_dense_replace": 0},
    "all layers dense": {"first_k_dense_replace": 3},
    "all of a head turns": {"rope_parameters": ODD["rope_parameters"] | {"partial_rotary_factor": 1.0}},
    "yarn": {
        "rope_parameters": ODD["rope_parameters"]
        | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    },
    "tied embeddings": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_weights_match_transformers(changes, device, tmp_path, convert, open_engine):
    config = transformers.Glm4MoeConfig(**ODD | changes)
    model = random_model(transformers.Glm4MoeForCausalLM, config, tmp_path / "hub")
    engine = open_engine(
        convert(tmp_path / "hub", tmp_path / "pack", expert_bits=16, dense_bits=16), device, context=128, kv="f32"
    )
    for chunk in (128, 16, 1):
        assert difference(chunked_logits(engine, IDS, chunk), judged(model, IDS)) < TOLERANCE


# GLM-4.5-Air's sizes.
AIR = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": False,
    "vocab_size": 151552,
}


def test_the_real_model_is_read_as_it_is():
    spec = parse_config(AIR)
    assert spec.rope == RopeSpec(theta=1e6, partial=0.5)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.biased, spec.normed) == (96, 8, 128, True, False)
    assert (spec.num_experts, spec.experts_per_token, spec.expert_size, spec.shared_size) == (128, 8, 1408, 1408)
    assert (spec.scores, spec.corrected, spec.norm_topk_prob, spec.first_moe_layer) == ("sigmoid", True, True, 1)
    assert len(spec.eos_token_ids) == 3


def test_half_of_a_head_turns_unless_told():
    assert parse_config(AIR | {"partial_rotary_factor": None}).rope.partial == 0.5
    assert parse_config(AIR | {"partial_rotary_factor": 1.0}).rope.partial == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": 1},
        {"hidden_act": "gelu"},
        {"head_dim": None},
        {"head_dim": 130},
        {"partial_rotary_factor": 1.5},
        {"n_group": 3},
        {"topk_group": 2},
        {"num_experts_per_tok": 129},
        {"sliding_window": 128},
    ],
    ids=str,
)
def test_a_value_that_is_wrong_or_unknown_is_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        parse_config(AIR | change)


def test_layers_that_predict_further_tokens_are_left_out():
    assert ignored("model.layers.46.eh_proj.weight", parse_config(AIR))
    assert not ignored("model.layers.45.mlp.gate.weight", parse_config(AIR))
