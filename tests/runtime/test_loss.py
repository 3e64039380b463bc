"""The promises about quality, on trained weights, held against transformers in float32 (see tests/reference)."""

import json
from pathlib import Path

import pytest
import torch

from krasis.runtime.eval import Loss, text_loss

WINDOW = 512
RECORDED = json.loads((Path(__file__).parents[1] / "reference/losses.json").read_text(encoding="utf-8"))

# Nats a token that a pack may lose, by the bits of its experts. Dense matrices have 8.
MAY_LOSE = {8: 0.003, 4: 0.015}
every_precision = pytest.mark.parametrize("bits", MAY_LOSE)

# Decode runs token by token, so it is held to the first tokens of each file to keep the suite short.
DECODE_TOKENS = 1024


def losses(engine, text_ids, path="prefill", limit=None):
    return {name: text_loss(engine, ids[:limit], WINDOW, path, lambda tokens: None) for name, ids in text_ids.items()}


def total(found):
    return sum(found.values(), Loss(0.0, 0)).nll


@pytest.fixture(scope="session")
def prefill_losses(demo_pack, open_engine, text_ids):
    return {bits: losses(open_engine(demo_pack(expert_bits=bits), layout="cpu"), text_ids) for bits in MAY_LOSE}


@every_precision
def test_the_loss_stays_near_the_reference(bits, prefill_losses):
    found = prefill_losses[bits]
    assert total(found) == pytest.approx(RECORDED["nll"], abs=MAY_LOSE[bits])
    for name, loss in found.items():
        assert loss.tokens == RECORDED["files"][name]["tokens"]
        assert loss.nll == pytest.approx(RECORDED["files"][name]["nll"], abs=MAY_LOSE[bits]), name


@every_precision
def test_both_layouts_give_the_same_logits(bits, demo_pack, open_engine, text_ids):
    for ids in text_ids.values():
        engines = [open_engine(demo_pack(expert_bits=bits), layout=layout) for layout in ("cpu", "marlin")]
        first, second = (engine.logits(engine.all_hidden(ids[:WINDOW], engine.new_state())) for engine in engines)
        assert torch.equal(first, second)


@every_precision
def test_both_layouts_give_the_same_loss(bits, demo_pack, open_engine, text_ids, prefill_losses):
    found = losses(open_engine(demo_pack(expert_bits=bits), layout="marlin"), text_ids)
    for name, loss in found.items():
        assert loss.nll == pytest.approx(prefill_losses[bits][name].nll, abs=1e-9)


@every_precision
def test_prefill_and_decode_agree(bits, demo_pack, open_engine, text_ids):
    engine = open_engine(demo_pack(expert_bits=bits))
    prefill, decode = (losses(engine, text_ids, path, DECODE_TOKENS) for path in ("prefill", "decode"))
    assert total(decode) == pytest.approx(total(prefill), abs=0.002)
