"""The forward against transformers in float32, on trained and on odd random weights.

Both sides compute in float32 and differ in the order of their sums alone, so logits agree to about 1e-6 of the largest;
TOLERANCE leaves room for other processors' kernels and is far below what any wrong formula would make.
"""

import pytest
import torch
from torch.nn import functional

from krasis import quant

transformers = pytest.importorskip("transformers", reason="transformers, which judges the forward, is not installed")

TOLERANCE = 3e-5
LENGTHS = (1, 7, 63, 64, 65, 700)
DEVICES = ("reference", "cpu")


def difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def judged(model, ids):
    return model(torch.tensor([ids])).logits[0]


def chunked_logits(engine, ids, chunk):
    state = engine.new_state()
    return torch.cat([engine.logits(engine.all_hidden(ids[i : i + chunk], state)) for i in range(0, len(ids), chunk)])


@pytest.fixture(scope="module")
def trained(demo):
    return load(demo)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk", [1024, 48, 1], ids=["whole", "chunked", "token by token"])
@pytest.mark.parametrize("length", LENGTHS)
def test_trained_weights_match_transformers(length, chunk, device, trained, exact_pack, open_engine, text_ids):
    ids = text_ids["dev-code.txt"][:length]
    engine = open_engine(exact_pack, device, context=1024, kv="f32")
    assert difference(chunked_logits(engine, ids, chunk), judged(trained, ids)) < TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
def test_prompts_longer_than_a_prefill_chunk_match_transformers(device, trained, exact_pack, open_engine, text_ids):
    ids = text_ids["dev-docs.txt"][:2100]
    engine = open_engine(exact_pack, device, context=2100, kv="f32")
    last = engine.last_logits(ids, engine.new_state())
    assert difference(last, judged(trained, ids)[-1]) < TOLERANCE


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


def random_model(folder, **changes):
    """Saves a checkpoint of random weights that bfloat16 holds exactly, and gives it back in float32."""
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**ODD | changes))
    for name, parameter in model.named_parameters():
        spread, mean = (0.3, 1.0) if "norm" in name else (0.2, 0.0)
        parameter.data.normal_(mean, spread)
    model.bfloat16().save_pretrained(folder)
    # Loaded anew, because a cast to bfloat16 and back also rounds the frequencies of the rotary embedding.
    return load(folder)


VARIANTS = {
    "odd sizes": {},
    "listed dense layers": {"mlp_only_layers": [0, 2]},
    "every second layer sparse": {"decoder_sparse_step": 2},
    "all layers dense": {"mlp_only_layers": [0, 1, 2, 3]},
    "weights not renormalized": {"norm_topk_prob": False},
    "tied embeddings": {"tie_word_embeddings": True},
    "one kv head": {"num_key_value_heads": 1},
    "one expert a token": {"num_experts_per_tok": 1, "norm_topk_prob": False},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_weights_match_transformers(changes, device, tmp_path, convert, open_engine):
    model = random_model(tmp_path / "hub", **changes)
    engine = open_engine(convert(tmp_path / "hub", tmp_path / "pack", 16, 16), device, context=128, kv="f32")
    for chunk in (128, 16, 1):
        assert difference(chunked_logits(engine, IDS, chunk), judged(model, IDS)) < TOLERANCE


def round_trip(weight, codec, group_size):
    """Quantize and dequantize along the last dimension, filled with zeros to whole groups."""
    k = weight.shape[-1]
    rows = functional.pad(weight.reshape(-1, k), (0, -k % group_size))
    return codec.dequantize(codec.quantize(rows, group_size))[:, :k].reshape(weight.shape)


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
    model = random_model(tmp_path / "hub", mlp_only_layers=[1])
    quantize_like_krasis(model, quant.get(f"int{bits}"), group_size)
    pack = convert(tmp_path / "hub", tmp_path / "pack", bits, 8, group_size)
    engine = open_engine(pack, "reference", context=128, layout=layout)
    assert difference(chunked_logits(engine, IDS, 128), judged(model, IDS)) < TOLERANCE
