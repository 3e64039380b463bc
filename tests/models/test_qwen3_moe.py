"""The forward against transformers in float32, on odd random weights of every variant."""

import pytest
import torch
from judge import DEVICES, TOLERANCE, chunked_logits, difference, judged, random_model, round_trip, transformers

from krasis import quant

ODD = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "moe_intermediate_size": 40,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
}
IDS = torch.randint(64, (70,), generator=torch.Generator().manual_seed(0)).tolist()


def made(folder, **changes):
    return random_model(transformers.Qwen3MoeForCausalLM, transformers.Qwen3MoeConfig(**ODD | changes), folder)


VARIANTS = {
    "odd sizes": {},
    "listed dense layers": {"mlp_only_layers": [0, 2]},
    "every second layer sparse": {"decoder_sparse_step": 2},
    "all layers dense": {"mlp_only_layers": [0, 1, 2, 3]},
    "weights not renormalized": {"norm_topk_prob": False},
    "tied embeddings": {"tie_word_embeddings": True},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "one kv head": {"num_key_value_heads": 1},
    "one expert a token": {"num_experts_per_tok": 1, "norm_topk_prob": False},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_weights_match_transformers(changes, device, tmp_path, convert, open_engine):
    model = made(tmp_path / "hub", **changes)
    engine = open_engine(
        convert(tmp_path / "hub", tmp_path / "pack", expert_bits=16, dense_bits=16), device, context=128, kv="f32"
    )
    for chunk in (128, 16, 1):
        assert difference(chunked_logits(engine, IDS, chunk), judged(model, IDS)) < TOLERANCE


def quantize_like_krasis(model, expert_codec, group_size):
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.data = round_trip(parameter.data, expert_codec, group_size)
        elif "proj" in name or "lm_head" in name:
            parameter.data = round_trip(parameter.data, quant.get("int8"), group_size)


@pytest.mark.parametrize("layout", ["cpu", "marlin"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_padding_changes_nothing(bits, group_size, layout, tmp_path, convert, open_engine):
    model = made(tmp_path / "hub", mlp_only_layers=[1])
    quantize_like_krasis(model, quant.get(f"int{bits}"), group_size)
    pack = convert(tmp_path / "hub", tmp_path / "pack", expert_bits=bits, group_size=group_size)
    engine = open_engine(pack, "reference", context=128, layout=layout)
    assert difference(chunked_logits(engine, IDS, 128), judged(model, IDS)) < TOLERANCE
