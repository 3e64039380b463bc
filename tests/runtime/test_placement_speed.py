"""What a plan predicts: the ceilings that bytes and rates set."""

import msgspec
import numpy as np
import pytest
from real_sizes import MODELS, manifest, sizes, skewed

from krasis.errors import FitError
from krasis.runtime.placement.host import plan_host
from krasis.runtime.placement.plan import Wishes, plan
from krasis.runtime.placement.residents import HOST, candidates
from krasis.runtime.placement.speed import LAUNCHES, Traffic, attention_products, decode_seconds, prefill_seconds
from krasis.runtime.plan import chosen
from krasis.runtime.rates import REFERENCE
from krasis.runtime.state import state_bytes
from krasis.runtime.work import bytes_per_token, products_per_token

GIB, PROMPT = 1 << 30, 10_000

# Tokens a second of a prompt of 10,000 at 52 GB/s with nothing resident, and GB of routed experts that a token reads.
# Pads of gpt-oss count: they make it 61.4 GB of experts, and 122.8 GB in 8 bits.
CEILINGS = {
    ("deepseek-v2-lite", 4): (70_000, 0.70),
    ("deepseek-v2-lite", 8): (35_600, 1.37),
    ("qwen3-coder-next", 4): (13_000, 0.78),
    ("qwen3-coder-next", 8): (6_600, 1.53),
    ("gpt-oss-120b", 4): (8_470, 1.92),
    ("gpt-oss-120b", 8): (4_235, 3.84),
    ("qwen3-235b-a22b", 4): (4_400, 7.32),
    ("qwen3-235b-a22b", 8): (2_300, 14.4),
}


def nothing_resident(model, bits=4, devices=1, prompt=PROMPT, chunk=PROMPT):
    found = sizes(model, bits)
    experts = candidates(found, None)
    placed = np.full(len(experts.bytes), HOST)
    return Traffic(found, experts, placed, devices, found.dense, 0, "fp8", prompt, chunk)


@pytest.mark.parametrize(("model", "bits"), CEILINGS)
def test_ceilings_with_nothing_resident(model, bits):
    traffic, (prefill, routed) = nothing_resident(model, bits), CEILINGS[model, bits]
    assert PROMPT / prefill_seconds(traffic, REFERENCE)["pcie"] == pytest.approx(prefill, rel=0.02)
    read = decode_seconds(traffic, REFERENCE)["missed experts"] * REFERENCE.together
    assert read / 1e9 == pytest.approx(routed, rel=0.02)


def test_a_prompt_in_two_passes_streams_twice():
    once, twice = (
        prefill_seconds(nothing_resident("qwen3-coder-next", chunk=chunk), REFERENCE) for chunk in (PROMPT, PROMPT // 2)
    )
    for part in ("pcie", "launches"):
        assert twice[part] == pytest.approx(2 * once[part], rel=1e-3)
    assert once["launches"] == 48 * LAUNCHES * REFERENCE.launch_s
    assert twice["arithmetic"] == once["arithmetic"]


def test_a_short_prompt_streams_what_it_touches():
    one, many = (
        prefill_seconds(nothing_resident("qwen3-coder-next", prompt=n, chunk=n), REFERENCE)["pcie"] for n in (1, 10_000)
    )
    assert one * 512 == pytest.approx(10 * many, rel=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_decode_is_the_sum_of_its_parts(model):
    found, routing = sizes(model), skewed(model)
    made = plan(found, REFERENCE, routing, Wishes((16 * GIB,), 16_384, "fp8", PROMPT))
    resident, missed, hit, cold = set(made.devices[0].residents), 0.0, 0.0, set()
    for layer, counts in routing.counts.items():
        for expert, count in enumerate(counts):
            size = count / routing.tokens * found.layers[layer].experts.bytes
            if (layer, expert) in resident:
                hit += size
            else:
                missed += size
                cold.add(layer)
    state = state_bytes(found.states, PROMPT + 1, 1, "fp8")
    seconds = missed / 104e9 + (hit + found.dense + state) / 2990e9 + 17e-6 * len(cold) + 11e-6 * len(found.layers)
    assert 1 / made.decode_tok_s == pytest.approx(seconds, rel=1e-9)
    assert made.hit_rate == pytest.approx(hit / (hit + missed), rel=1e-9)
    assert made.limits["memory"] == ("vram" if cold else "none")


def test_two_gpus_stream_and_compute_side_by_side():
    one, two = (prefill_seconds(nothing_resident("gpt-oss-120b", devices=n), REFERENCE) for n in (1, 2))
    assert two["pcie"] == pytest.approx(one["pcie"] / 2)
    assert one["arithmetic"] / 2 < two["arithmetic"] < one["arithmetic"]
    slow = msgspec.structs.replace(REFERENCE, together=60e9)
    assert prefill_seconds(nothing_resident("gpt-oss-120b", devices=2), slow)["pcie"] > two["pcie"]


def test_what_is_resident_is_loaded_once_and_what_is_not_is_registered():
    found = sizes("qwen3-coder-next")
    made = plan(found, REFERENCE, None, Wishes((16 * GIB,), 16_384, "fp8", PROMPT))
    device = made.devices[0]
    load = (device.dense + device.experts) / 52e9 + 0.05 * found.experts / GIB
    # Ties go by layer, so that whole layers are resident and need not be registered.
    assert 0.7 * load < made.load_s < load
    assert found.embedding < made.ram < found.embedding + found.experts


@pytest.mark.parametrize("model", MODELS)
def test_the_largest_plans_stream_dense_weights_in_8_gib(model):
    made = plan(sizes(model), REFERENCE, skewed(model), Wishes((8 * GIB,), 16_384, "fp8", PROMPT))
    assert (made.mode == "streamed") == (model == "qwen3-235b-a22b")
    if made.mode == "streamed":
        layers, device = sizes(model).layers, made.devices[0]
        away = sum(layer.passing for i, layer in enumerate(layers) if i not in device.layers)
        assert device.workspace.dense_ring == 2 * max(layer.passing for layer in layers)
        missed = 8 * sum(layer.experts.bytes for layer in layers)
        assert 1 / made.decode_tok_s == pytest.approx((away + missed) / 104e9)
        # Evenly spread: never two on the device side by side while two that pass through are.
        apart = np.diff([layer for layer in range(len(layers)) if layer not in device.layers])
        assert apart.max() - apart.min() <= 1
        slow = msgspec.structs.replace(REFERENCE, pcie=1e9)
        copied = plan(sizes(model), slow, skewed(model), made.wishes)
        assert 1 / copied.decode_tok_s == pytest.approx(away / 1e9)


@pytest.mark.parametrize("model", MODELS)
def test_without_a_gpu_host_memory_and_the_processor_bound_it(model):
    made = plan_host(manifest(model), REFERENCE, 16_384, "bf16", PROMPT, 256 * GIB)
    found, segments = sizes(model), chosen(manifest(model), ("cpu", "marlin"))
    read = bytes_per_token(found.spec, segments, found.states, "bf16", PROMPT)
    assert made.decode_parts == {"host memory": read / 95e9}
    products = PROMPT * products_per_token(found.spec, segments)
    attention = attention_products(found.spec, found.states, PROMPT)
    assert made.prefill_parts["arithmetic"] == pytest.approx((products + attention) / 1e12)
    assert not made.notes
    assert plan_host(manifest(model), REFERENCE, 16_384, "bf16", PROMPT, 8 * GIB).notes
    with pytest.raises(FitError, match="tokens would fit"):
        plan_host(manifest(model), REFERENCE, 16_384, "bf16", PROMPT, GIB // 4)


def test_attention_of_a_window_grows_no_further():
    full, sliding = (attention_products(sizes("gpt-oss-120b").spec, [state], 1000) for state in sizes_of_both())
    heads, width = 64, 128
    assert full == heads * width * 1000 * 1001 // 2
    assert sliding == heads * width * (128 * 129 // 2 + 872 * 128)


def sizes_of_both():
    sliding, full = sizes("gpt-oss-120b").states[:2]
    return full, sliding
