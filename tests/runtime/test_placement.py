"""The plan for GPUs: it keeps to its budgets, gains with them, and refuses with numbers that fit."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_sizes import MODELS, sizes, skewed

from krasis.errors import FitError, InputError
from krasis.heat.routing import Routing
from krasis.pack.reader import Pack
from krasis.runtime.placement.outline import outline
from krasis.runtime.placement.plan import PlacementError, Wishes, plan
from krasis.runtime.placement.residents import HOST, Candidates, assign
from krasis.runtime.rates import REFERENCE
from krasis.runtime.state import state_bytes

GIB = 1 << 30
BUDGETS = st.integers(GIB, 96 * GIB)


def wishes(*vram, context=16_384, kv="fp8", prompt=10_000, ram=None):
    return Wishes(tuple(vram), context, kv, prompt, ram)


def planned(model, *vram, routing=None, **options):
    return plan(sizes(model), REFERENCE, routing, wishes(*vram, **options))


# INT4 experts of skew 0.9, INT8 dense, FP8 cache of 16,384 tokens: hit rate on one GPU and on two, for each GiB a GPU.
# "dense" is a plan whose dense weights are streamed.
GOLDEN = {
    "deepseek-v2-lite": {8: (0.88, 1.0), 16: (1.0, 1.0), 24: (1.0, 1.0), 48: (1.0, 1.0), 80: (1.0, 1.0)},
    "gpt-oss-120b": {8: (0.45, 0.58), 16: (0.65, 0.79), 24: (0.76, 0.91), 48: (0.94, 1.0), 80: (1.0, 1.0)},
    "qwen3-235b-a22b": {8: ("dense", "dense"), 16: (0.33, 0.45), 24: (0.52, 0.66), 48: (0.74, 0.90), 80: (0.89, 1.0)},
    "qwen3-coder-next": {8: (0.57, 0.69), 16: (0.77, 0.90), 24: (0.87, 1.0), 48: (1.0, 1.0), 80: (1.0, 1.0)},
}
CASES = [(model, gib, count) for model, row in GOLDEN.items() for gib in row for count in (1, 2)]


@pytest.mark.parametrize(("model", "gib", "count"), CASES)
def test_the_four_models_at_real_size(model, gib, count):
    found = planned(model, *[gib * GIB] * count, routing=skewed(model))
    expected = GOLDEN[model][gib][count - 1]
    if expected == "dense":
        assert (found.mode, found.hit_rate) == ("streamed", 0)
        assert found.decode_parts["dense over pcie"] > 0
    else:
        assert found.mode == "resident"
        assert found.hit_rate == pytest.approx(expected, abs=0.02)
        assert not found.decode_parts["dense over pcie"]
    assert len(found.layer_hit_rates) == sum(layer.experts is not None for layer in sizes(model).layers)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gib", [1, 1.5])
def test_too_little_is_refused_with_numbers_that_fit_exactly(model, gib):
    few, options = int(gib * GIB), {"context": 32_768, "kv": "bf16"}
    with pytest.raises(PlacementError, match="--vram") as refusal:
        planned(model, few, **options)
    least, most = refusal.value.would_fit["vram"], refusal.value.would_fit.get("context", 0)
    assert f"--vram {least} would fit" in str(refusal.value)
    assert planned(model, least, **options).devices[0].free == 0
    with pytest.raises(PlacementError, match=f"--vram {least},{least} would fit"):
        planned(model, least - 1, least, **options)
    assert (f"or --context {most}" in str(refusal.value)) == (most > 0)
    assert not most or planned(model, few, **options | {"context": most})
    with pytest.raises(PlacementError):
        planned(model, few, **options | {"context": most + 1})


def test_a_shorter_context_fits_where_a_long_one_does_not():
    with pytest.raises(PlacementError) as refusal:
        planned("qwen3-235b-a22b", 5 * GIB // 2)
    assert 1024 < refusal.value.would_fit["context"] < 16_384


def test_the_smallest_gpu_is_the_one_that_is_short():
    with pytest.raises(PlacementError) as refusal:
        planned("qwen3-coder-next", 16 * GIB, GIB)
    least = refusal.value.would_fit["vram"]
    assert planned("qwen3-coder-next", 16 * GIB, least)


def test_host_memory_is_refused_with_the_number_that_fits():
    with pytest.raises(PlacementError, match="--ram") as refusal:
        planned("qwen3-235b-a22b", 16 * GIB, ram=64 * GIB)
    least = refusal.value.would_fit["ram"]
    assert planned("qwen3-235b-a22b", 16 * GIB, ram=least).ram == least
    with pytest.raises(PlacementError):
        planned("qwen3-235b-a22b", 16 * GIB, ram=least - 1)


@settings(max_examples=60)
@given(
    st.sampled_from(MODELS),
    st.lists(BUDGETS, min_size=1, max_size=2),
    st.integers(1, 40_960),
    st.integers(1, 50_000),
    st.sampled_from(["bf16", "fp8"]),
    st.booleans(),
)
def test_every_byte_has_a_purpose_and_no_budget_is_exceeded(model, budgets, context, prompt, kv, hot):
    routing, options = skewed(model) if hot else None, {"context": context, "prompt": prompt, "kv": kv}
    try:
        found = planned(model, *budgets, routing=routing, **options)
    except PlacementError as refusal:
        budgets = [refusal.would_fit["vram"]] * len(budgets)
        found = planned(model, *budgets, routing=routing, **options)
    assert found == planned(model, *budgets, routing=routing, **options)
    layers, seen = sizes(model).layers, set()
    for device, budget in zip(found.devices, budgets, strict=True):
        parts = dataclasses.asdict(device.workspace).values()
        assert min(device.dense, device.kv, device.experts, device.free, *parts) >= 0
        assert device.dense + device.kv + sum(parts) + device.experts + device.free == device.budget == budget
        away = sum(layer.passing for i, layer in enumerate(layers) if i not in device.layers)
        assert device.dense == sizes(model).dense - away
        assert device.experts == sum(layers[layer].experts.bytes for layer, _ in device.residents)
        assert list(device.residents) == sorted(device.residents)
        assert seen.isdisjoint(device.residents)
        seen |= set(device.residents)
        assert device.kv >= state_bytes(sizes(model).states, context, found.chunk, kv)
    assert all(0 <= expert < layers[layer].experts.count for layer, expert in seen)
    assert 0 <= found.hit_rate <= 1
    assert 1 <= found.chunk <= min(prompt, context)


@settings(max_examples=30)
@given(st.sampled_from(MODELS), BUDGETS, st.integers(1, 4 * GIB), st.integers(1, 2), st.integers(1, 50_000))
def test_more_vram_never_lowers_the_hit_rate(model, budget, more, count, prompt):
    def hit_rate(size):
        try:
            return planned(model, *[size] * count, routing=skewed(model), prompt=prompt).hit_rate
        except FitError:
            return -1.0

    for added in (1, more):
        assert hit_rate(budget) <= hit_rate(budget + added)


def ragged(pairs):
    sizes_, probabilities = (np.array(column) for column in zip(*pairs, strict=True))
    places = np.arange(len(pairs), dtype=np.int64)
    return Candidates(places // 3, places % 3, sizes_.astype(np.int64), probabilities.astype(np.float64))


PAIRS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])), min_size=1, max_size=40)


@settings(max_examples=300)
@given(PAIRS, st.integers(0, 600), st.integers(0, 50))
def test_experts_of_all_sizes_fill_what_they_can(pairs, room, more):
    found = ragged(pairs)
    placed = assign(found, [room])
    left = room - found.bytes[placed == 0].sum()
    assert left >= 0
    assert not (found.bytes[placed == HOST] <= left).any()
    assert found.hit_rate(placed != HOST) <= found.hit_rate(assign(found, [room + more]) != HOST) + 1e-12


@settings(max_examples=200)
@given(PAIRS, st.lists(st.integers(0, 400), min_size=2, max_size=3))
def test_several_devices_keep_to_their_rooms(pairs, rooms):
    found = ragged(pairs)
    placed = assign(found, rooms)
    for device, room in enumerate(rooms):
        left = room - found.bytes[placed == device].sum()
        assert left >= 0
        assert not (found.bytes[placed == HOST] <= left).any()


def test_the_hottest_are_resident_and_ties_go_by_layer_and_number():
    found = ragged([(10, 0.5), (10, 1.0), (10, 0.5), (10, 0.5)])
    assert assign(found, [30]).tolist() == [0, 0, 0, HOST]


@pytest.mark.parametrize("model", MODELS)
def test_two_gpus_serve_as_long(model):
    found, routing = planned(model, 16 * GIB, 16 * GIB, routing=skewed(model)), skewed(model)
    first, second = (
        sum(routing.counts[layer][expert] for layer, expert in device.residents) for device in found.devices
    )
    assert first == pytest.approx(second, rel=0.01)


def test_a_profile_of_another_model_is_bad_input():
    with pytest.raises(InputError, match="other layers or experts"):
        planned("qwen3-coder-next", 16 * GIB, routing=skewed("gpt-oss-120b"))
    nothing = Routing.nothing(dict.fromkeys(range(48), 512))
    with pytest.raises(InputError, match="no tokens"):
        planned("qwen3-coder-next", 16 * GIB, routing=nothing)


def test_a_context_beyond_the_model_is_bad_input():
    with pytest.raises(InputError, match="at most the model's 40960"):
        planned("qwen3-235b-a22b", 80 * GIB, context=40_961)


def test_a_pack_without_the_layout_of_gpus_is_bad_input(demo_pack):
    with pytest.raises(InputError, match="not in layout marlin"):
        outline(Pack(demo_pack(layouts=("cpu",))).manifest)
