"""krasis' reference path against the losses that transformers gives in float32."""

import json
from pathlib import Path

import pytest

from krasis.runtime.eval import text_loss

RECORDED = json.loads((Path(__file__).parent / "losses.json").read_text(encoding="utf-8"))


def test_the_reference_backend_agrees_with_transformers(family, exact_pack, open_engine, text_ids):
    engine = open_engine(exact_pack(family), "reference", context=RECORDED["window"], kv="f32")
    assert {len(ids) for ids in text_ids.values()} == {RECORDED["tokens_per_file"]}
    for name, expected in RECORDED["models"][family]["files"].items():
        loss = text_loss(engine, text_ids[name], RECORDED["window"], "prefill", lambda tokens: None)
        assert loss.tokens == expected["tokens"]
        assert loss.nll == pytest.approx(expected["nll"], abs=1e-4)
