"""The promises about quality, on trained weights, held against transformers in float32 (see tests/reference)."""

import json
from pathlib import Path

import pytest
import torch

from krasis.runtime.eval import Loss, text_loss

WINDOW = 512
RECORDED = json.loads((Path(__file__).parents[1] / "reference/losses.json").read_text(encoding="utf-8"))["models"]

# Settings of a pack and the nats a token it may lose. Dense matrices have 8 bits. gpt_oss is trained in MXFP4, which
# its default keeps.
WAYS = {
    "deepseek_v2": {"int8": ({"expert_bits": 8}, 0.003), "int4": ({}, 0.016)},
    "gpt_oss": {"int8": ({"expert_bits": 8}, 0.003), "mxfp4": ({}, 0.004)},
    "qwen3_moe": {"int8": ({"expert_bits": 8}, 0.003), "int4": ({}, 0.015)},
    "qwen3_next": {"int8": ({"expert_bits": 8}, 0.003), "int4": ({}, 0.016)},
}
every_way = pytest.mark.parametrize(("family", "way"), [(family, way) for family in WAYS for way in WAYS[family]])

# Decode runs token by token, so it is held to the first tokens of each file to keep the suite short.
DECODE_TOKENS = 512


def losses(engine, text_ids, path="prefill", limit=None):
    return {name: text_loss(engine, ids[:limit], WINDOW, path, lambda tokens: None) for name, ids in text_ids.items()}


def total(found):
    return sum(found.values(), Loss(0.0, 0)).nll


@pytest.fixture
def open_way(pack_of, open_engine):
    """(family, way) -> an engine on a pack made that way."""
    return lambda family, way, **options: open_engine(pack_of(family, **WAYS[family][way][0]), **options)


@every_way
def test_the_loss_stays_near_the_reference(family, way, open_way, text_ids):
    found, recorded, allowed = losses(open_way(family, way), text_ids), RECORDED[family], WAYS[family][way][1]
    assert total(found) == pytest.approx(recorded["nll"], abs=allowed)
    for name, loss in found.items():
        assert loss.tokens == recorded["files"][name]["tokens"]
        assert loss.nll == pytest.approx(recorded["files"][name]["nll"], abs=allowed), name


@every_way
def test_both_layouts_give_the_same_logits(family, way, open_way, text_ids):
    engines = [open_way(family, way, layout=layout) for layout in ("cpu", "marlin")]
    for ids in text_ids.values():
        first, second = (engine.logits(engine.all_hidden(ids[:WINDOW], engine.new_state())) for engine in engines)
        assert torch.equal(first, second)


@every_way
def test_prefill_and_decode_agree(family, way, open_way, text_ids):
    engine = open_way(family, way)
    prefill, decode = (losses(engine, text_ids, path, DECODE_TOKENS) for path in ("prefill", "decode"))
    assert total(decode) == pytest.approx(total(prefill), abs=0.002)
