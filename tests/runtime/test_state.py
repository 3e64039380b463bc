"""What a sequence's state keeps, how exactly, and for how many tokens."""

import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krasis.errors import FitError, KrasisError
from krasis.models.state import Cache, Recurrent
from krasis.runtime.attention import fast_attention, reference_attention
from krasis.runtime.state import SequenceState, state_bytes

both = pytest.mark.parametrize("attention", [reference_attention, fast_attention], ids=["reference", "fast"])
KINDS = ("f32", "bf16", "fp8")
SCALE = 0.3
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_layer(shape, capacity, *, window=0, chunk=None, kind="f32", attention=None):
    return SequenceState([Cache((shape, shape), window)], capacity, chunk or capacity, kind, attention)


def extend(state, *rows):
    """What layer 0 gives for rows, which the sequence then goes past."""
    found = [x.float() for x in state.extend(0, *rows)]
    state.position += len(rows[0])
    return found


def kept(kind, keys, values):
    return extend(one_layer(tuple(keys.shape[1:]), len(keys), kind=kind), keys, values)


def wide(seed):
    """Vectors whose magnitudes differ by six orders."""
    return normal(50, 3, 16, seed=seed) * torch.logspace(-3, 3, 50)[:, None, None]


def test_float32_keeps_every_bit():
    k, v = wide(0), wide(1)
    found = kept("f32", k, v)
    assert torch.equal(found[0], k)
    assert torch.equal(found[1], v)


def test_bfloat16_is_rounded_to_nearest():
    k, v = wide(0), wide(1)
    for found, given_ in zip(kept("bf16", k, v), (k, v), strict=True):
        # 8 bits of significand: half a step is 2^-9 of the number's power of two.
        assert ((found - given_).abs() <= given_.abs() * 2**-8).all()
        assert not torch.equal(found, given_)


def test_fp8_scales_every_token_and_head_by_itself():
    k, v = wide(0), wide(1)
    for found, given_ in zip(kept("fp8", k, v), (k, v), strict=True):
        # e4m3: half a step is 2^-4 of a normal number, 2^-10 of the scale below them; the scale is peak / 448.
        peak = given_.abs().amax(-1, keepdim=True)
        assert ((found - given_).abs() <= given_.abs() * 2**-4 + peak / 448 * 2**-10).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    found = kept(kind, torch.zeros(3, 2, 4), torch.zeros(3, 2, 4))
    assert not found[0].any()
    assert not found[1].any()


@pytest.mark.parametrize("window", [0, 2])
def test_a_sequence_past_the_capacity_is_refused(window):
    state = one_layer((1, 2), 4, window=window)
    extend(state, torch.ones(4, 1, 2), torch.ones(4, 1, 2))
    with pytest.raises(FitError, match=r"needs 5 positions.*at most 4"):
        extend(state, torch.ones(1, 1, 2), torch.ones(1, 1, 2))


def test_rewinding_forgets_what_came_after():
    state = one_layer((1, 1), 4)
    extend(state, torch.ones(3, 1, 1), torch.ones(3, 1, 1))
    state.position = 1
    two = torch.full((1, 1, 1), 2.0)
    assert extend(state, two, two)[0].flatten().tolist() == [1, 2]


def test_rewinding_to_what_a_window_dropped_is_refused():
    state, one = one_layer((1, 1), 30, window=3, chunk=2), torch.ones(1, 1, 1)
    for _ in range(9):
        extend(state, one, one)
    state.position = 4
    with pytest.raises(KrasisError, match="position 2 of the sequence is gone"):
        extend(state, one, one)


@st.composite
def splits(draw):
    """A length and the borders of chunks in it."""
    length = draw(st.integers(1, 60))
    inner = draw(st.lists(st.integers(1, length - 1), unique=True)) if length > 1 else []
    return list(pairwise([0, *sorted(inner), length]))


@given(pieces=splits(), window=st.integers(1, 20), spare=st.integers(0, 5), kind=st.sampled_from(KINDS))
def test_a_window_is_there_at_every_border(pieces, window, spare, kind):
    length, chunk = pieces[-1][1], max(end - start for start, end in pieces)
    k, v = normal(length, 2, 4), normal(length, 2, 4, seed=1)
    whole = kept(kind, k, v)
    state = one_layer((2, 4), length + spare, window=window, chunk=chunk, kind=kind)
    for start, end in pieces:
        seen = slice(max(start - window + 1, 0), end)
        for found, expected in zip(extend(state, k[start:end], v[start:end]), whole, strict=True):
            assert torch.equal(found, expected[seen])


@both
@given(pieces=splits(), window=st.integers(0, 20), sunk=st.booleans())
def test_chunks_give_what_the_whole_gives(attention, pieces, window, sunk):
    length, chunk = pieces[-1][1], max(end - start for start, end in pieces)
    q, k, v = normal(length, 4, 6), normal(length, 2, 6, seed=1), normal(length, 2, 6, seed=2)
    sinks = normal(4, seed=3) if sunk else None
    state, found = one_layer((2, 6), length, window=window, chunk=chunk, attention=attention), []
    for start, end in pieces:
        found.append(state.attend(0, q[start:end], k[start:end], v[start:end], SCALE, sinks))
        state.position = end
    torch.testing.assert_close(torch.cat(found), reference_attention(q, k, v, SCALE, window, sinks), **CLOSE)


@both
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_tokens_past_the_window(attention, kind):
    length, window, chunk = 3000, 37, 64
    q, k, v, sinks = normal(length, 4, 8), normal(length, 2, 8, seed=1), normal(length, 2, 8, seed=2), normal(4, seed=3)
    state, found = one_layer((2, 8), length, window=window, chunk=chunk, kind=kind, attention=attention), []
    sizes = [chunk] + [1] * (length - chunk)
    for parts in zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        found.append(state.attend(0, *parts, SCALE, sinks))
        state.position += len(parts[0])
    expected = reference_attention(q, *kept(kind, k, v), SCALE, window, sinks)
    torch.testing.assert_close(torch.cat(found), expected, **CLOSE)


def test_layers_keep_their_own_and_a_window_takes_less():
    layers = [Cache(((1, 2),), 3), Cache(((1, 2),))]
    state, found = SequenceState(layers, 100, 2, "f32", reference_attention), {}
    for token in range(50):
        for layer in (0, 1):
            (found[layer],) = state.extend(layer, torch.full((1, 1, 2), float(token)))
        state.position += 1
    assert found[0].values[:, 0, 0].tolist() == [47, 48, 49]
    assert found[1].values[:, 0, 0].tolist() == list(range(50))
    assert state_bytes(layers[:1], 100, 2, "f32") == (3 - 1 + 2) * 2 * 4
    assert state_bytes(layers[1:], 100, 2, "f32") == 100 * 2 * 4


def test_recurrent_tensors_are_zeros_that_stay_as_they_are_left():
    state = SequenceState([Recurrent(((2, 3), (4,)))], 10, 10, "bf16", reference_attention)
    first, second = state.recurrent(0)
    assert (first.shape, second.shape, first.dtype) == ((2, 3), (4,), torch.float32)
    assert not first.any()
    assert not second.any()
    first += 1
    assert state.recurrent(0)[0].sum() == 6


SHAPE = st.tuples(st.integers(1, 5), st.integers(1, 9))
CACHE = st.builds(Cache, st.lists(SHAPE, min_size=1, max_size=3).map(tuple), st.integers(0, 60))
RECURRENT = st.builds(Recurrent, st.lists(SHAPE, min_size=1, max_size=2).map(tuple))


def test_rows_outlive_their_layer_only_where_they_may_be_run_again():
    """Those of a prompt are large."""
    state = SequenceState([Recurrent(((2, 3),))], 8, 8, "f32", None)

    def given():
        rows = torch.zeros(4, 3)
        state.each(lambda sequence, x: sequence.recurrent(0)[0] + x.sum(), rows)
        return weakref.ref(rows)

    assert given()() is None
    state.attempt()
    assert given()() is not None


def tensors(found):
    """Every tensor in the attributes and lists of an object."""
    if isinstance(found, torch.Tensor):
        return [found]
    inner = found if isinstance(found, list | tuple) else vars(found).values() if hasattr(found, "__dict__") else ()
    return [tensor for item in inner for tensor in tensors(item)]


@given(
    layers=st.lists(CACHE | RECURRENT, min_size=1, max_size=4),
    capacity=st.integers(1, 50),
    chunk=st.integers(1, 50),
    kind=st.sampled_from(KINDS),
)
def test_planned_bytes_are_those_allocated(layers, capacity, chunk, kind):
    state = SequenceState(layers, capacity, chunk, kind, reference_attention)
    allocated = sum(tensor.untyped_storage().nbytes() for tensor in tensors(vars(state)["_rows"]))
    allocated += sum(tensor.untyped_storage().nbytes() for tensor in tensors(vars(state)["_recurrent"]))
    assert allocated == state_bytes(layers, capacity, chunk, kind)
