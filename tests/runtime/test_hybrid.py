"""The hybrid engine against the reference, and against itself wherever experts lie and however a prompt meets them."""

import dataclasses

import pytest
import torch
from cuda_devices import DEVICES, on_devices
from hybrid_engines import apart, hybrid_engine, prefilled
from msgspec.structs import replace

from krasis.errors import FitError, KrasisError
from krasis.pack.reader import Pack
from krasis.runtime.cuda import refit, store
from krasis.runtime.cuda.engine import CudaEngine
from krasis.runtime.cuda.room import free_bytes
from krasis.runtime.rates import REFERENCE

CONTEXT = 96
PREFILLED, DECODED = 16, 2
HOT, HALF, COLD = 1.0, 0.5, 0.0

BY_GPU = replace(REFERENCE, host_read=1e7, together=1e9)
"""Of these small experts the GPU reads all that a token misses itself."""
BY_CPU = replace(REFERENCE, pcie=1.0)
BY_BOTH = replace(REFERENCE, hand_off_s=20e-6, pcie=1e9, host_read=1e9, together=2e9)
"""Half of each by the GPU, but for padding."""

NEAR = {"bf16": 0.03, "fp8": 0.08}
"""Of the logits' norm. Each kernel rounds to bfloat16, 2^-9, and the CPU's experts take activations in 8 bits: 0.2% to
0.8% after four layers, and up to 2% where a router was all but undecided and chose another expert. An e4m3 cache, of 3
bits of fraction, gives 1.5% to 4.5%."""


@pytest.fixture(scope="module")
def ids(text_ids):
    return text_ids["dev-docs.txt"][:CONTEXT]


@pytest.fixture
def hybrid():
    """(pack, device, share of experts that are resident) -> an engine, closed in the end."""
    engines = []

    def make(path, device, share, **options):
        engines.append(hybrid_engine(path, device, share, CONTEXT, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def decoded(engine, ids, state):
    return torch.stack([engine.last_logits([token], state).cpu() for token in ids])


@pytest.fixture(scope="module")
def expected(open_engine, ids):
    """pack -> the reference's logits after each token."""

    def run(pack):
        engine = open_engine(pack, "reference", context=CONTEXT)
        return engine.logits(engine.all_hidden(ids, engine.new_state()))

    return run


@on_devices
@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_logits_are_the_reference_s_wherever_experts_lie(family, kv, device, pack_of, hybrid, expected, ids):
    """Of gpt_oss in MXFP4, of the others in INT4."""
    pack, end = pack_of(family), PREFILLED + DECODED
    right, passed = expected(pack), []
    for share in (HOT, HALF, COLD):
        engine = hybrid(pack, device, share, kv=kv)
        found, state = prefilled(engine, ids[:PREFILLED])
        passed.append(found)
        assert apart(found, right[:PREFILLED]) < NEAR[kv]
        assert apart(decoded(engine, ids[PREFILLED:end], state), right[PREFILLED:end]) < NEAR[kv]
        assert state.position == end
    # Kernels for many tokens read the same bytes and sum in one order, from wherever they come.
    assert all(torch.equal(found, passed[0]) for found in passed)


@on_devices
@pytest.mark.parametrize(
    ("family", "settings"),
    [("qwen3_moe", {"expert_bits": 8}), ("gpt_oss", {"expert_codec": "int4"}), ("deepseek_v2", {"dense_bits": 16})],
)
def test_other_codecs(family, settings, device, pack_of, hybrid, expected, ids):
    pack = pack_of(family, **settings)
    engine, right = hybrid(pack, device, HALF), expected(pack)
    for way in ("touched", "few"):
        assert apart(prefilled(engine, ids[:PREFILLED], way)[0], right[:PREFILLED]) < NEAR["bf16"]


@on_devices
def test_ways_through_a_prompt_agree(family, device, pack_of, hybrid, ids):
    engine = hybrid(pack_of(family), device, HALF)
    whole, _ = prefilled(engine, ids[:PREFILLED], "whole")
    copied = engine.stream.copied
    touched, _ = prefilled(engine, ids[:PREFILLED], "touched")
    assert torch.equal(touched, whole)
    assert copied < engine.stream.copied <= 2 * copied
    copied, posts = engine.stream.copied, engine._colleague.work.all.posts
    few, _ = prefilled(engine, ids[:PREFILLED], "few")
    assert apart(few, whole) < NEAR["bf16"]
    assert engine.stream.copied == copied
    assert engine._colleague.work.all.posts > posts


@on_devices
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("rates", [BY_GPU, BY_BOTH, BY_CPU], ids=["gpu", "both", "cpu"])
def test_missed_experts_of_a_token_are_computed_by_whom_rates_say(
    family, rates, device, pack_of, hybrid, expected, ids
):
    engine, right = hybrid(pack_of(family), device, COLD, rates=rates), expected(pack_of(family))
    _, state = prefilled(engine, ids[:PREFILLED])
    before = engine.traffic()
    found = decoded(engine, ids[PREFILLED : PREFILLED + DECODED], state)
    assert apart(found, right[PREFILLED : PREFILLED + DECODED]) < NEAR["bf16"]
    part, size = {"qwen3_moe": (64, 96), "gpt_oss": (128, 224)}[family]
    features = {BY_GPU: 0, BY_BOTH: part, BY_CPU: size}[rates]
    moved = engine.traffic() - before
    assert moved.missed == DECODED * len(engine.experts_of) * engine.chosen
    assert moved.cpu_read == moved.missed * (engine.expert_bytes * features // size)


@on_devices
def test_between_sequences_the_split_follows_what_the_cpu_did(device, pack_of, hybrid, ids, monkeypatch):
    """As it would where the CPU took no time at all; what results is as near as ever."""
    monkeypatch.setattr(refit, "LEAST", 1)
    engine = hybrid(pack_of("gpt_oss"), device, COLD, rates=BY_BOTH)

    def cuts():
        return torch.stack([split.cut.cpu() for split in engine._splits.of.values()])

    _, state = prefilled(engine, ids[:PREFILLED])
    before = cuts()
    first = decoded(engine, ids[PREFILLED : PREFILLED + DECODED], state)
    assert torch.equal(cuts(), before)
    done = engine._colleague.work
    engine._splits.adapt(dataclasses.replace(done, part=dataclasses.replace(done.part, seconds=0.0)))
    assert (cuts() >= before).all()
    assert (cuts()[:, -1] > before[:, -1]).all()
    state.position = PREFILLED
    assert apart(decoded(engine, ids[PREFILLED : PREFILLED + DECODED], state), first) < NEAR["bf16"]


@on_devices
def test_what_passes_through_is_every_cold_expert_once_a_pass(device, demo_pack, hybrid, ids):
    engine = hybrid(demo_pack(), device, HALF, chunk=8)
    pack = Pack(demo_pack())
    size = {layer: pack.segment(f"layers.{layer}.experts", "marlin").record_bytes for layer in engine.experts_of}
    cold = sum(size[layer] * len(experts) for layer, experts in engine.residents.cold.items())
    prefilled(engine, ids[:PREFILLED], "whole")
    assert engine.stream.copied == 2 * cold > 0
    chosen = hybrid(demo_pack(), device, HALF, trace=True)
    prefilled(chosen, ids[:PREFILLED], "touched")
    choices, _ = chosen.tracer.take()
    touched = {layer: set(found.ravel().tolist()) for layer, found in choices.items()}
    missed = sum(size[layer] * len(touched[layer] & set(cold)) for layer, cold in chosen.residents.cold.items())
    assert chosen.stream.copied == missed > 0


@on_devices
@pytest.mark.parametrize(("family", "tokens"), [("deepseek_v2", 24), ("qwen3_next", 24), ("gpt_oss", 90)])
def test_chunks_change_next_to_nothing(family, tokens, device, pack_of, hybrid, ids):
    """Also over what a sliding window has let go: that of gpt_oss sees 64 tokens."""
    at_once, state = prefilled(hybrid(pack_of(family), device, HALF), ids[:tokens])
    cut, cut_state = prefilled(hybrid(pack_of(family), device, HALF, chunk=16), ids[:tokens])
    assert apart(cut, at_once) < NEAR["bf16"]
    assert state.position == cut_state.position == tokens


@on_devices
def test_sequences_past_the_capacity_are_refused(device, demo_pack, hybrid, ids):
    engine = hybrid(demo_pack(), device, HOT, context=PREFILLED + 1)
    _, state = prefilled(engine, ids[:PREFILLED])
    with pytest.raises(FitError, match=f"needs {PREFILLED + 2} positions: at most {PREFILLED + 1} were planned"):
        engine.all_hidden(ids[:2], state)
    engine.last_logits(ids[:1], state)
    with pytest.raises(FitError, match=f"needs {PREFILLED + 2} positions"):
        engine.last_logits(ids[:1], state)


@on_devices
@pytest.mark.parametrize("family", ["qwen3_next", "gpt_oss"])
def test_a_new_state_forgets(family, device, pack_of, hybrid, ids):
    engine = hybrid(pack_of(family), device, HALF)
    first, _ = prefilled(engine, ids[:PREFILLED])
    prefilled(engine, ids[20 : 20 + PREFILLED])
    again, _ = prefilled(engine, ids[:PREFILLED])
    assert torch.equal(first, again)


@on_devices
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v2", "gpt_oss"])
def test_a_sequence_goes_on_from_an_earlier_position(family, device, pack_of, hybrid, ids):
    engine = hybrid(pack_of(family), device, HALF)
    _, state = prefilled(engine, ids[:PREFILLED])
    first = decoded(engine, ids[PREFILLED : PREFILLED + 2], state)
    state.position = PREFILLED
    assert torch.equal(decoded(engine, ids[PREFILLED : PREFILLED + 2], state), first)


@on_devices
def test_a_cpu_that_does_not_answer_is_told_and_the_next_engine_works(device, demo_pack, hybrid, ids):
    engine = hybrid(demo_pack(), device, COLD, timeout=0.2, rates=BY_CPU)
    _, state = prefilled(engine, ids[:PREFILLED])
    engine._colleague._server.freeze()
    for _ in range(2):
        with pytest.raises(KrasisError, match="no answer came in time"):
            engine.last_logits(ids[:1], state)
    engine._colleague._server.freeze(frozen=False)
    engine.close()
    following = hybrid(demo_pack(), device, COLD)
    _, state = prefilled(following, ids[:PREFILLED])
    assert following.last_logits(ids[:1], state).isfinite().all()


@on_devices
def test_memory_that_can_not_be_registered_is_noted(device, demo_pack, hybrid, ids, monkeypatch):
    right, _ = prefilled(hybrid(demo_pack(), device, COLD), ids[:PREFILLED])

    def refuse(*_, **__):
        raise KrasisError("the system refuses")

    monkeypatch.setattr(store, "Registered", refuse)
    engine = hybrid(demo_pack(), device, COLD)
    assert len(engine.notes) == 1
    assert "can't be registered" in engine.notes[0]
    assert "the system refuses" in engine.notes[0]
    assert torch.equal(prefilled(engine, ids[:PREFILLED])[0], right)


@on_devices
def test_starting_is_timed_by_step(device, demo_pack, hybrid):
    engine = hybrid(demo_pack(), device, HALF)
    assert list(engine.started.steps) == ["plan", "register", "load", "capture"]
    assert all(seconds >= 0 for seconds in engine.started.steps.values())


@pytest.mark.parametrize("device", DEVICES[1:])
def test_takes_no_more_of_the_device_than_its_budget(device, demo_pack, ids):
    before, vram = free_bytes(torch.device(device)), 2 << 30
    engine = CudaEngine(Pack(demo_pack()), torch.device(device, 0), context=CONTEXT, vram=vram, threads=1)
    _, state = prefilled(engine, ids[:PREFILLED])
    decoded(engine, ids[PREFILLED : PREFILLED + DECODED], state)
    taken = before - torch.cuda.mem_get_info()[0]
    engine.close()
    assert 0 < taken <= vram
