"""Qwen3-Next against transformers in float32, on odd random weights of every variant."""

import pytest
import torch
from judge import DEVICES, TOLERANCE, chunked_logits, difference, judged, load, random_model, round_trip, transformers

from krasis import quant

FULL, LINEAR = "full_attention", "linear_attention"
ODD = {
    "vocab_size": 64,
    "hidden_size": 90,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "linear_conv_kernel_dim": 4,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 19,
    "linear_value_head_dim": 13,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 37,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
}
IDS = torch.randint(64, (150,), generator=torch.Generator().manual_seed(0)).tolist()
VARIANTS = {
    "odd sizes": {},
    "a value head a key head": {"linear_num_value_heads": 3},
    "three value heads a key head": {"linear_num_value_heads": 9},
    "one key head": {"linear_num_key_heads": 1, "linear_num_value_heads": 1},
    "keys narrower than values": {"linear_key_head_dim": 5, "linear_value_head_dim": 31},
    "convolution of one": {"linear_conv_kernel_dim": 1},
    "convolution of two": {"linear_conv_kernel_dim": 2},
    "convolution of seven": {"linear_conv_kernel_dim": 7},
    "attention every second layer": {"full_attention_interval": 2},
    "attention first": {"layer_types": [FULL, LINEAR, LINEAR, FULL]},
    # transformers can cache no such model.
    "all layers linear": {"layer_types": [LINEAR] * 4, "use_cache": False},
    "all layers attention": {"layer_types": [FULL] * 4},
    "listed dense layers": {"mlp_only_layers": [0, 3], "full_attention_interval": 2},
    "every second layer sparse": {"decoder_sparse_step": 2},
    "all layers dense": {"mlp_only_layers": [0, 1, 2, 3]},
    "weights not renormalized": {"norm_topk_prob": False},
    "tied embeddings": {"tie_word_embeddings": True},
    "one kv head": {"num_key_value_heads": 1},
    "all dimensions turn": {"rope_parameters": ODD["rope_parameters"] | {"partial_rotary_factor": 1.0}},
    "yarn": {
        "rope_parameters": ODD["rope_parameters"]
        | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    },
}


def made(folder, rate=-3.0, **changes):
    """A checkpoint that fades by about exp(rate) a token."""
    model = random_model(transformers.Qwen3NextForCausalLM, transformers.Qwen3NextConfig(**ODD | changes), folder)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.data += rate
        elif "norm" in name and "linear_attn" not in name:
            parameter.data -= 1  # these are stored so
    model.bfloat16().save_pretrained(folder)
    return load(folder)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_weights_match_transformers(changes, device, tmp_path, convert, open_engine):
    model = made(tmp_path / "hub", **changes)
    check(model, convert(tmp_path / "hub", tmp_path / "pack", expert_bits=16, dense_bits=16), device, open_engine)


def check(model, pack, device, open_engine):
    engine, expected = open_engine(pack, device, context=150, kv="f32"), judged(model, IDS)
    for chunk in (150, 16, 1):
        assert difference(chunked_logits(engine, IDS, chunk), expected) < TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rate", [-8.0, 0.0], ids=["long", "short"])
def test_memories_long_and_short(rate, device, tmp_path, convert, open_engine):
    # What a short memory holds for a random query is near 0, and a smaller eps would blow up its rounding.
    model = made(tmp_path / "hub", rate, rms_norm_eps=1e-3)
    check(model, convert(tmp_path / "hub", tmp_path / "pack", expert_bits=16, dense_bits=16), device, open_engine)


def test_sequences_do_not_touch_each_other(example, exact_pack, open_engine):
    engine = open_engine(exact_pack("qwen3_next"))
    alone = [chunked_logits(engine, ids, 1) for ids in (IDS[:20], IDS[20:40])]
    states = engine.new_state(), engine.new_state()
    for i in range(20):
        for ids, state, expected in zip((IDS[:20], IDS[20:40]), states, alone, strict=True):
            assert torch.equal(engine.last_logits([ids[i]], state), expected[i])


def quantize_like_krasis(model, expert_codec, group_size):
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.data = round_trip(parameter.data, expert_codec, group_size)
        elif name.endswith(("proj.weight", "qkvz.weight", "lm_head.weight")):
            parameter.data = round_trip(parameter.data, quant.get("int8"), group_size)


@pytest.mark.parametrize("layout", ["cpu", "marlin"])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_padding_changes_nothing(bits, group_size, layout, tmp_path, convert, open_engine):
    model = made(tmp_path / "hub", mlp_only_layers=[1])
    quantize_like_krasis(model, quant.get(f"int{bits}"), group_size)
    pack = convert(tmp_path / "hub", tmp_path / "pack", expert_bits=bits, group_size=group_size)
    engine = open_engine(pack, "reference", context=150, layout=layout)
    assert difference(chunked_logits(engine, IDS, 150), judged(model, IDS)) < TOLERANCE
