"""Every family's forward against transformers in float32, on trained weights."""

import pytest
from judge import DEVICES, TOLERANCE, chunked_logits, difference, judged, load

LENGTHS = (1, 7, 63, 64, 65, 700)


@pytest.fixture(scope="module")
def trained(family, example):
    return load(example(family))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk", [1024, 48, 1], ids=["whole", "chunked", "token by token"])
@pytest.mark.parametrize("length", LENGTHS)
def test_logits_match_transformers(length, chunk, device, family, trained, exact_pack, open_engine, text_ids):
    ids = text_ids["dev-code.txt"][:length]
    engine = open_engine(exact_pack(family), device, context=1024, kv="f32")
    assert difference(chunked_logits(engine, ids, chunk), judged(trained, ids)) < TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
def test_prompts_longer_than_a_prefill_chunk_match(device, family, trained, exact_pack, open_engine, text_ids):
    ids = text_ids["dev-docs.txt"][:2100]
    engine = open_engine(exact_pack(family), device, context=2100, kv="f32")
    last = engine.last_logits(ids, engine.new_state())
    assert difference(last, judged(trained, ids)[-1]) < TOLERANCE
