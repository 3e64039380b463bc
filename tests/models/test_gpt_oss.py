"""gpt-oss against transformers in float32, on odd random weights of every variant."""

import math

import pytest
import torch
from judge import DEVICES, TOLERANCE, chunked_logits, difference, judged, random_model, round_trip, transformers

from krasis import quant
from krasis.models.blocks.mlp import ClampedSwiglu
from krasis.runtime import plan

ODD = {
    "vocab_size": 64,
    "hidden_size": 90,
    "intermediate_size": 37,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 22,
    "num_local_experts": 7,
    "num_experts_per_tok": 3,
    "sliding_window": 5,
    "swiglu_limit": 1.5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 500.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "truncate": False,
    },
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
IDS = torch.randint(64, (70,), generator=torch.Generator().manual_seed(0)).tolist()
VARIANTS = {
    "odd sizes": {},
    "each token sees itself": {"sliding_window": 1},
    "window of a chunk": {"sliding_window": 16},
    "window longer than the prompt": {"sliding_window": 100},
    "all layers full": {"layer_types": ["full_attention"] * 4},
    "all layers sliding": {"layer_types": ["sliding_attention"] * 4},
    "full before sliding": {"layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]},
    "one kv head": {"num_key_value_heads": 1},
    "one expert a token": {"num_experts_per_tok": 1},
    "all experts": {"num_experts_per_tok": 7},
    "limits that hardly act": {"swiglu_limit": 7.0},
    "another slope": {"swiglu_alpha": 0.6},
    "rounded ramp": {"rope_parameters": ODD["rope_parameters"] | {"truncate": True}},
    "no yarn": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "tied embeddings": {"tie_word_embeddings": True},
}


def made(folder, **changes):
    return random_model(transformers.GptOssForCausalLM, transformers.GptOssConfig(**ODD | changes), folder)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_weights_match_transformers(changes, device, tmp_path, convert, open_engine):
    model = made(tmp_path / "hub", **changes)
    engine = open_engine(
        convert(tmp_path / "hub", tmp_path / "pack", expert_bits=16, dense_bits=16), device, context=128, kv="f32"
    )
    for chunk in (128, 16, 1):
        assert difference(chunked_logits(engine, IDS, chunk), judged(model, IDS)) < TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", [1, 5, 6])
def test_what_a_window_no_longer_needs_is_dropped(window, device, tmp_path, convert, open_engine, monkeypatch):
    monkeypatch.setattr(plan, "PREFILL_CHUNK", 4)
    model = made(tmp_path / "hub", sliding_window=window)
    engine = open_engine(
        convert(tmp_path / "hub", tmp_path / "pack", expert_bits=16, dense_bits=16), device, context=128, kv="f32"
    )
    for chunk in (70, 3, 1):
        assert difference(chunked_logits(engine, IDS, chunk), judged(model, IDS)) < TOLERANCE


def quantize_like_krasis(model, expert_codec, group_size):
    for name, parameter in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            parameter.data = round_trip(parameter.data.mT, expert_codec, group_size).mT
        elif name.endswith("proj.weight") or "lm_head" in name:
            parameter.data = round_trip(parameter.data, quant.get("int8"), group_size)


@pytest.mark.parametrize("layout", ["cpu", "marlin"])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_padding_changes_nothing(bits, group_size, layout, tmp_path, convert, open_engine):
    model = made(tmp_path / "hub")
    quantize_like_krasis(model, quant.get(f"int{bits}"), group_size)
    pack = convert(tmp_path / "hub", tmp_path / "pack", expert_bits=bits, group_size=group_size)
    engine = open_engine(pack, "reference", context=128, layout=layout)
    assert difference(chunked_logits(engine, IDS, 128), judged(model, IDS)) < TOLERANCE


def test_random_weights_reach_every_clamp(tmp_path, monkeypatch):
    """Else the variants above would not judge them."""
    seen = []
    experts = transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts
    monkeypatch.setattr(experts, "_apply_gate", noted(experts._apply_gate, seen))
    judged(made(tmp_path), IDS)
    gate, up = torch.cat(seen)[:, ::2], torch.cat(seen)[:, 1::2]
    limit = ODD["swiglu_limit"]
    for beyond in (gate > limit, gate < -limit, up > limit, up < -limit):
        assert 0.02 < beyond.float().mean() < 0.5


def noted(method, seen):
    def run(self, gate_up):
        seen.append(gate_up)
        return method(self, gate_up)

    return run


def test_the_activation_is_the_formula_on_both_sides_of_the_limits():
    values = [-9.0, -2.5, -2.0, -1.9, 0.0, 1.9, 2.0, 2.5, 9.0]
    for gate in values:
        for up in values:
            found = ClampedSwiglu(alpha=1.702, limit=2.0)(torch.tensor(gate), torch.tensor(up))
            g, u = min(gate, 2.0), min(max(up, -2.0), 2.0)
            assert found.item() == pytest.approx((u + 1) * g / (1 + math.exp(-1.702 * g)), rel=1e-5, abs=1e-7)
