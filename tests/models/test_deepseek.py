"""DeepSeek-V2 and V3 against transformers in float32, on odd random weights of every variant."""

import pytest
import torch
from judge import DEVICES, TOLERANCE, chunked_logits, difference, judged, random_model, transformers

from krasis.models.blocks import latent_attention
from krasis.models.deepseek_v2 import router
from krasis.models.deepseek_v3 import parse_config
from krasis.models.ops import TorchOps

ODD = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "q_lora_rank": None,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 6,
    "v_head_dim": 10,
    "moe_intermediate_size": 40,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "norm_topk_prob": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
GROUPED = {"n_group": 4, "topk_group": 2}
IDS = torch.randint(64, (70,), generator=torch.Generator().manual_seed(0)).tolist()

V2 = {
    "odd sizes": {},
    "query latent": {"q_lora_rank": 28},
    "all layers sparse": {"first_k_dense_replace": 0},
    "all layers dense": {"first_k_dense_replace": 3},
    "one shared expert": {"n_shared_experts": 1},
    "scaled routes": {"routed_scaling_factor": 2.5},
    "best groups": {"topk_method": "group_limited_greedy", "routed_scaling_factor": 4.0} | GROUPED,
    "values wider than keys": {"v_head_dim": 26},
    "yarn": {"rope_parameters": YARN},
    "yarn that sharpens the softmax": {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.1}},
    "tied embeddings": {"tie_word_embeddings": True},
}
V3 = {
    "odd sizes": {"n_group": 1, "topk_group": 1},
    "best groups, normalized": GROUPED | {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "q_lora_rank": 28},
    "one group of many": {"n_group": 3, "topk_group": 1, "rope_parameters": YARN | {"mscale_all_dim": 1.0}},
}
CASES = [("DeepseekV2", V2[name], name) for name in V2] + [("DeepseekV3", V3[name], name) for name in V3]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "changes"), [c[:2] for c in CASES], ids=[f"{c[0]}, {c[2]}" for c in CASES])
def test_random_weights_match_transformers(kind, changes, device, tmp_path, convert, open_engine):
    config = getattr(transformers, f"{kind}Config")(**ODD | changes)
    model = random_model(getattr(transformers, f"{kind}ForCausalLM"), config, tmp_path / "hub")
    engine = open_engine(
        convert(tmp_path / "hub", tmp_path / "pack", expert_bits=16, dense_bits=16), device, context=128, kv="f32"
    )
    for chunk in (128, 16, 1):
        assert difference(chunked_logits(engine, IDS, chunk), judged(model, IDS)) < TOLERANCE


class Recorder:
    """Notes which form of attention ran."""

    def __init__(self, monkeypatch):
        self.seen = []
        for form in ("absorbed", "expanded"):
            monkeypatch.setattr(latent_attention.LatentAttention, form, self._noted(form))

    def _noted(self, form):
        method = getattr(latent_attention.LatentAttention, form)

        def run(attention, *args):
            self.seen.append(form)
            return method(attention, *args)

        return run


def test_both_forms_of_attention_run_and_agree(exact_pack, open_engine, text_ids, monkeypatch):
    recorder = Recorder(monkeypatch)
    engine = open_engine(exact_pack("deepseek_v2"), "reference", context=300, kv="f32")
    ids = text_ids["dev-docs.txt"][:300]
    whole = engine.last_logits(ids, engine.new_state())
    assert set(recorder.seen) == {"expanded"}
    recorder.seen.clear()
    alone = chunked_logits(engine, ids, 1)[-1]
    assert set(recorder.seen) == {"absorbed"}
    assert difference(alone, whole) < TOLERANCE


def written_out(logits, bias, groups, kept, k):
    """One token's DeepSeek-V3 routing in plain Python: expert -> weight before normalization."""
    scores = [1 / (1 + torch.tensor(-logit).exp().item()) for logit in logits]
    choice = [score + extra for score, extra in zip(scores, bias, strict=True)]
    size = len(logits) // groups
    merit = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    best = sorted(range(groups), key=lambda g: -merit[g])[:kept]
    open_to = [e for e in range(len(logits)) if e // size in best]
    return {e: scores[e] for e in sorted(open_to, key=lambda e: -choice[e])[:k]}


def test_the_bias_chooses_and_does_not_weigh():
    spec = parse_config(CONFIG)
    generator = torch.Generator().manual_seed(1)
    logits, bias = torch.randn(50, 12, generator=generator), torch.randn(12, generator=generator)
    ids, shares = router(spec, TorchOps(), bias)(logits)
    for row, chosen, found in zip(logits.tolist(), ids.tolist(), shares.tolist(), strict=True):
        expected = written_out(row, bias.tolist(), 4, 2, 3)
        total = sum(expected.values())
        assert set(chosen) == set(expected)
        for expert, share in zip(chosen, found, strict=True):
            assert share == pytest.approx(2.5 * expected[expert] / total, rel=1e-5)


CONFIG = ODD | {
    "model_type": "deepseek_v3",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
