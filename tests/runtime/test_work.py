"""The bytes and products that a token takes."""

import pytest

from krasis.pack.record import RECORD_ALIGN, align
from krasis.runtime.work import bytes_per_token, products_per_token


@pytest.fixture
def engine(family, pack_of, open_engine):
    return open_engine(pack_of(family))


def test_all_is_read_but_experts_not_chosen_and_rows_not_embedded(engine):
    spec, records = engine.spec, 0
    unread = 2 * (spec.vocab_size - 1) * spec.hidden_size
    for segment in engine.segments:
        records += segment.count
        if segment.name.endswith(".experts"):
            unread += (segment.count - spec.experts_per_token) * segment.record_bytes
    found = bytes_per_token(spec, engine.segments, [], engine.kv, 0)
    zeros = engine.plan.weights - unread - found
    assert 0 <= zeros < records * RECORD_ALIGN


def test_a_state_is_read_as_far_as_it_reaches(engine):
    def state(position):
        with_state, without = (
            bytes_per_token(engine.spec, engine.segments, layers, engine.kv, position) for layers in (engine.layers, [])
        )
        return with_state - without

    short, planned = state(0), state(engine.plan.context - 1)
    assert 0 < short < planned <= engine.plan.kv


def test_products_of_a_token(pack_of, open_engine):
    engine = open_engine(pack_of("qwen3_moe"))
    spec = engine.spec
    heads = 2 * (spec.num_heads + spec.num_kv_heads) * spec.head_dim
    experts = 3 * spec.experts_per_token * align(spec.expert_size, 128)
    expected = spec.num_layers * spec.hidden_size * (heads + experts + spec.num_experts)
    assert products_per_token(spec, engine.segments) == expected
