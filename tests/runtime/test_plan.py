"""Memory is planned: the bytes stated, and what a refusal promises."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krasis.errors import FitError, InputError
from krasis.models.conform import read_spec
from krasis.pack.reader import Pack
from krasis.runtime import engine as engines
from krasis.runtime.plan import check, plan

CONTEXTS = st.integers(1, 4096)
KINDS = st.sampled_from(["f32", "bf16", "fp8"])
LOADS = st.sampled_from(["mapped", "copied"])


@pytest.fixture(scope="module")
def planned(demo_pack):
    """(context, kv, layouts) -> the plan of the bundled model."""
    pack = Pack(demo_pack())

    def run(context, kv="bf16", layouts=("cpu",), load="mapped", sequences=1):
        return plan(read_spec(pack), pack.manifest, context, kv, layouts, load, sequences)

    return run


@given(CONTEXTS, KINDS, LOADS, st.floats(0.0, 1.0))
def test_what_a_refusal_says_would_fit_fits_and_no_more(planned, context, kv, load, share):
    wanted = planned(context, kv, load=load)
    available = int(wanted.allocated * share)
    if available >= wanted.allocated:
        assert isinstance(check(wanted, available), list)
        return
    with pytest.raises(FitError) as refusal:
        check(wanted, available)
    stated = re.search(r"(\d+) tokens would fit$", str(refusal.value))
    most = int(stated[1]) if stated else 0
    assert not most or check(planned(most, kv, load=load), available) is not None
    with pytest.raises(FitError):
        check(planned(most + 1, kv, load=load), available)


@given(CONTEXTS, st.integers(2, 64), st.floats(0.0, 1.0))
def test_as_many_sequences_as_a_refusal_says_fit(planned, context, sequences, share):
    wanted = planned(context, sequences=sequences)
    assert wanted.kv == sequences * planned(context).kv
    available = int(wanted.allocated * share)
    if available >= wanted.allocated:
        return
    with pytest.raises(FitError, match=f"{sequences} sequences of {context} tokens need") as refusal:
        check(wanted, available)
    stated = re.search(r"--sequences (\d+) would fit$", str(refusal.value))
    most = int(stated[1]) if stated else 0
    assert not most or check(planned(context, sequences=most), available) is not None
    with pytest.raises(FitError):
        check(planned(context, sequences=most + 1), available)
    if one := re.search(r"one sequence of (\d+) tokens would fit$", str(refusal.value)):
        assert check(planned(int(one[1])), available) is not None


@given(CONTEXTS, KINDS)
def test_a_longer_context_never_needs_less(planned, context, kv):
    assert planned(context, kv).allocated == planned(4096, kv).needs(context, 1)
    assert planned(4096, kv).needs(context, 1) <= planned(4096, kv).needs(context + 1, 1)


def test_weights_are_counted_in_the_layout_that_is_read(demo_pack, planned):
    manifest = Pack(demo_pack()).manifest
    sizes = {"cpu": 0, "marlin": 0, "plain": 0}
    for _, segment in manifest.segments():
        sizes[segment.layout] += segment.bytes
    for layout in ("cpu", "marlin"):
        assert planned(1, layouts=(layout,)).weights == sizes[layout] + sizes["plain"]
    assert sum(sizes.values()) == manifest.weight_bytes


def test_weights_beyond_memory_are_noted_not_refused(planned):
    wanted = planned(16)
    assert check(wanted, wanted.resident) == []
    assert "read from disk" in check(wanted, wanted.resident - 1)[0]


def test_copied_weights_are_allocated(planned):
    mapped, copied = planned(64), planned(64, load="copied")
    assert copied.allocated == mapped.allocated + mapped.weights
    assert copied.resident == mapped.resident


def test_a_copy_without_room_is_refused_with_what_the_mapping_needs(planned):
    copied = planned(64, load="copied")
    with pytest.raises(FitError, match=r"copy of \d+\.\d+ GiB of weights needs .* --load mapped needs \d+\.\d+ GiB$"):
        check(copied, copied.weights)


def test_a_context_beyond_the_model_is_refused(planned):
    with pytest.raises(InputError, match=r"4097 tokens \(--context\): at most the model's 4096"):
        planned(4097)


def test_an_engine_that_does_not_fit_allocates_nothing(demo_pack, open_engine, monkeypatch):
    monkeypatch.setattr(engines, "available_ram", lambda: 1 << 20)
    with pytest.raises(FitError, match="tokens would fit"):
        open_engine(demo_pack(), "reference", context=4096)


def test_prefill_allocates_no_more_than_planned(family, pack_of, open_engine):
    engine = open_engine(pack_of(family), "cpu", context=3000)
    ids = torch.arange(3000).tolist()
    state = engine.new_state()
    engine.last_logits(ids[:1500], state)
    with torch.profiler.profile(profile_memory=True) as profile:
        engine.last_logits(ids[1500:], state)
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak <= engine.plan.workspace
