"""Sequences that go on together: each computes what it computes alone, bit for bit."""

import pytest
import torch

from krasis.models.blocks.rope import TABLE, Rope, RopeSpec
from krasis.pack.record import TensorSpec
from krasis.runtime.attention import fast_attention
from krasis.runtime.backend import MOST_TOGETHER, PackedMatrix
from krasis.runtime.cpu import CpuBackend
from krasis.runtime.state import SequenceState
from krasis.runtime.together import Together

STEPS = 6


def begun(engine, starts):
    """States of sequences that were prefilled, each with ids of its own."""
    states = [engine.new_state() for _ in starts]
    for ids, state in zip(starts, states, strict=True):
        engine.all_hidden(ids, state)
    return states


def check_together(engine, ids, sequences):
    """Of different lengths, of which one leaves after every step."""
    starts = [ids[40 * i : 40 * i + 3 + i % 29] for i in range(sequences)]
    later = [ids[40 * i + 30 : 40 * i + 30 + STEPS] for i in range(sequences)]
    together, alone = begun(engine, starts), begun(engine, starts)
    for step in range(min(STEPS, sequences)):
        going = range(step, sequences)
        found = engine.next_hidden([later[i][step] for i in going], [together[i] for i in going])
        for row, i in enumerate(going):
            assert torch.equal(found[row], engine.all_hidden([later[i][step]], alone[i])[0])
    assert [state.position for state in together] == [state.position for state in alone]


@pytest.mark.parametrize("sequences", [1, 3, 40])
def test_rows_are_what_each_sequence_gives_alone(family, sequences, pack_of, open_engine, text_ids):
    check_together(open_engine(pack_of(family)), text_ids["dev-docs.txt"], sequences)


@pytest.mark.parametrize("kv", ["f32", "fp8"])
def test_whatever_caches_and_weights_are(family, kv, exact_pack, open_engine, text_ids):
    check_together(open_engine(exact_pack(family), kv=kv), text_ids["dev-code.txt"], 9)


def test_the_reference_agrees_but_for_the_order_of_sums(family, exact_pack, open_engine, text_ids):
    engine = open_engine(exact_pack(family), "reference", context=64)
    starts = [text_ids["dev-docs.txt"][20 * i : 20 * i + 5 + i] for i in range(4)]
    together, alone = begun(engine, starts), begun(engine, starts)
    found = engine.next_hidden([7, 8, 9, 10], together)
    expected = torch.cat([engine.all_hidden([7 + i], state) for i, state in enumerate(alone)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_float_weights_give_each_row_the_same_sum():
    """At sizes of which torch's own products differ."""
    weight, x = (torch.randn(n, 2048, generator=torch.Generator().manual_seed(n)) for n in (128, MOST_TOGETHER))
    spec = TensorSpec("router", tuple(weight.shape), tuple(weight.shape), "f32", 0)
    product = CpuBackend(1).linear(PackedMatrix(spec, "plain", None, None, weight))
    assert torch.equal(product(x), torch.cat([product(row) for row in x.split(1)]))


def test_angles_beyond_the_table():
    states = [SequenceState([], 2 * TABLE, 1, "f32", fast_attention) for _ in range(3)]
    for state, position in zip(states, (0, TABLE - 1, TABLE + 7), strict=True):
        state.position = position
    rope = Rope(64, RopeSpec(theta=10000.0))
    cos, sin = Together(states).angles(rope, 3)
    for i, state in enumerate(states):
        assert all(
            torch.equal(*pair) for pair in zip((cos[i], sin[i]), (x[0] for x in state.angles(rope, 1)), strict=True)
        )
