"""krasis' reference path against the losses that transformers gives in float32."""

import json
from pathlib import Path

import pytest

from krasis.runtime.eval import text_loss


@pytest.fixture(scope="session")
def recorded():
    return json.loads((Path(__file__).parent / "losses.json").read_text(encoding="utf-8"))


def test_the_reference_backend_agrees_with_transformers(recorded, exact_pack, open_engine, text_ids):
    engine = open_engine(exact_pack, "reference", context=recorded["window"], kv="f32")
    assert {len(ids) for ids in text_ids.values()} == {recorded["tokens_per_file"]}
    for name, ids in text_ids.items():
        loss = text_loss(engine, ids, recorded["window"], "prefill", lambda tokens: None)
        assert loss.tokens == recorded["files"][name]["tokens"]
        assert loss.nll == pytest.approx(recorded["files"][name]["nll"], abs=1e-4)
