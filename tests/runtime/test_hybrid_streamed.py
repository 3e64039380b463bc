"""Dense weights that pass through the device: what lies where and when, and that nothing else of a model changes."""

import dataclasses

import pytest
import torch
from cuda_devices import on_devices
from hybrid_engines import ROOMY, Forced
from watched_lanes import Watched

from krasis.errors import KrasisError
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack
from krasis.runtime.cuda import bench, store
from krasis.runtime.cuda.dense import DenseStream
from krasis.runtime.cuda.engine import PROMPT, CudaEngine
from krasis.runtime.cuda.lanes import Lanes
from krasis.runtime.cuda.placed import stored_records
from krasis.runtime.cuda.store import HostStore
from krasis.runtime.placement.outline import outline
from krasis.runtime.placement.plan import PlacementError, Wishes, plan, with_residents
from krasis.runtime.rates import REFERENCE

CONTEXT = 96
PREFILLED, DECODED = 12, 2


@pytest.fixture(scope="module")
def ids(text_ids):
    return text_ids["dev-docs.txt"][: PREFILLED + DECODED]


def planned(pack, vram):
    return plan(outline(pack.manifest), REFERENCE, None, Wishes((vram,), CONTEXT, "bf16", PROMPT))


def least(pack):
    with pytest.raises(PlacementError) as refusal:
        planned(pack, 1)
    return refusal.value.would_fit["vram"]


def resident(pack):
    """All dense weights lie on the device, and no expert does."""
    return with_residents(planned(pack, ROOMY), outline(pack.manifest), 0.0)


def streamed(pack, layers=()):
    """The plan of the least budget, but that these layers lie on the device too: it may take more than its budget."""
    found, made = outline(pack.manifest), planned(pack, least(pack))
    (device,) = made.devices
    assert (made.mode, device.layers) == ("streamed", ())
    dense = device.dense + sum(found.layers[layer].passing for layer in layers)
    return dataclasses.replace(made, devices=(dataclasses.replace(device, layers=layers, dense=dense),))


@pytest.fixture
def logits(ids):
    """What an engine gives after each token of a prompt, which meets experts in one way, and after some more; and the
    engine, closed in the end.
    """
    engines = []

    def run(pack, placement, device, *, chunk=None, way="whole"):
        placement = dataclasses.replace(placement, chunk=chunk or placement.chunk)
        options = {"context": CONTEXT, "vram": ROOMY, "threads": 1, "placement": placement, "rates": REFERENCE}
        engines.append(engine := CudaEngine(pack, torch.device(device), **options))
        engine.runner.ways = Forced(way)
        state = engine.new_state()
        prompt = engine.logits(engine.all_hidden(ids[:PREFILLED], state))
        tokens = [engine.last_logits([token], state).cpu() for token in ids[PREFILLED:]]
        return torch.stack([*prompt, *tokens]), engine

    yield run
    for engine in engines:
        engine.close()


@on_devices
def test_logits_are_those_of_weights_that_lie_there(family, device, pack_of, logits):
    pack = Pack(pack_of(family))
    right, _ = logits(pack, resident(pack), device)
    for placement in (streamed(pack), streamed(pack, (2,))):
        found, engine = logits(pack, placement, device)
        assert torch.equal(found, right)
        away = outline(pack.manifest).dense - placement.devices[0].dense
        assert engine.traffic().dense == (1 + DECODED) * away > 0
        assert "of them pass through the GPU for each token" in engine.notes[-1]


@on_devices
@pytest.mark.parametrize("way", ["touched", "few"])
def test_every_chunk_of_a_prompt_has_them_pass_through(way, device, demo_pack, logits):
    pack = Pack(demo_pack())
    right, _ = logits(pack, resident(pack), device, chunk=4, way=way)
    found, engine = logits(pack, streamed(pack), device, chunk=4, way=way)
    assert torch.equal(found, right)
    assert engine.traffic().dense == (3 + DECODED) * sum(layer.passing for layer in outline(pack.manifest).layers)


@on_devices
def test_bench_counts_them(device, demo_pack, logits, ids):
    pack = Pack(demo_pack())
    _, engine = logits(pack, streamed(pack), device)
    run, size, cold = bench._run(engine, ids, PREFILLED, Silent()), engine.expert_bytes, 4 * 16
    away = sum(layer.passing for layer in outline(pack.manifest).layers)
    assert (run.prefill.dense, run.decode.dense) == (away, DECODED * away)
    found, read = bench.phases(engine, [run]), (run.decode.missed * size - run.decode.cpu_read)
    assert found["prefill"]["PCIe"]["bytes"] == away + cold * size
    assert found["decode"]["PCIe"]["bytes"] == away + read / DECODED


@on_devices
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v2"])
def test_a_pack_that_can_not_be_registered_passes_through_pinned_buffers(family, device, pack_of, logits, monkeypatch):
    def refuse(*_, **__):
        raise KrasisError("the system refuses")

    monkeypatch.setattr(store, "Registered", refuse)
    pack = Pack(pack_of(family))
    right, _ = logits(pack, resident(pack), device)
    assert torch.equal(logits(pack, streamed(pack), device)[0], right)


@on_devices
def test_the_least_budget_runs_and_a_byte_less_is_refused(family, device, pack_of, ids):
    pack = Pack(pack_of(family))
    vram = least(pack)
    options = {"context": CONTEXT, "threads": 1, "rates": REFERENCE}
    with pytest.raises(PlacementError, match=f"--vram {vram} would fit"):
        CudaEngine(pack, torch.device(device), vram=vram - 1, **options)
    engine = CudaEngine(pack, torch.device(device), vram=vram, **options)
    assert engine.placement.devices[0].free == 0
    assert engine.last_logits(ids, engine.new_state()).isfinite().all()
    engine.close()


LAYERS = [(), (2,), (0, 3), (0, 1, 3), (0, 1, 2, 3)]


@pytest.fixture
def dense(demo_pack):
    """(layers, device, lanes) -> a pack and the stream of those."""

    def make(layers, device="cpu", lanes=None):
        pack, there = Pack(demo_pack()), torch.device(device)
        size = max(layer.passing for layer in outline(pack.manifest).layers)
        buffers = [torch.zeros(size, dtype=torch.uint8, device=there) for _ in range(2)]
        return pack, DenseStream(pack, HostStore(pack, there), layers, buffers, lanes or Lanes(there))

    return make


def lies_there(pack, stream, layer):
    name = f"layers.{layer}.dense"
    return torch.equal(stream.places[name].cpu(), stored_records(pack, name))


@on_devices
@pytest.mark.parametrize("layers", LAYERS)
def test_weights_are_there_while_their_layer_runs(layers, device, dense):
    pack, stream = dense(layers, device)
    places = {name: place.data_ptr() for name, place in stream.places.items()}
    for _ in range(3):
        stream.begin()
        for turn, layer in enumerate(layers):
            with stream.there(turn):
                assert lies_there(pack, stream, layer)
    assert places == {name: place.data_ptr() for name, place in stream.places.items()}
    assert all(stream.passes(place) for place in stream.places.values())
    assert not stream.passes(torch.zeros(1, device=device))
    assert stream.copied == 3 * sum(outline(pack.manifest).layers[layer].passing for layer in layers)


def test_a_pass_that_ended_early_is_made_up_for(dense):
    pack, stream = dense((0, 1, 3))
    stream.begin()
    with stream.there(0):
        pass
    with pytest.raises(KrasisError), stream.there(1):
        raise KrasisError("no answer came in time")
    stream.begin()
    with stream.there(0):
        assert lies_there(pack, stream, 0)


@pytest.mark.parametrize("layers", LAYERS[1:])
def test_buffers_are_copied_to_once_they_are_read_and_read_once_they_are_filled(layers, dense):
    lanes = Watched()
    _, stream = dense(layers, lanes=lanes)
    for _ in range(2):
        stream.begin()
        for turn in range(len(layers)):
            with stream.there(turn):
                lanes.events.append(("kernel", turn % 2))
    filled = {}
    buffers = iter([*range(min(2, len(layers))), *(buffer for kind, buffer in lanes.events if kind == "kernel")])
    for i, (kind, what) in enumerate(lanes.events):
        if kind == "copy":
            assert lanes.events[what][0] == "read"
            assert all(at < what for at, (earlier, _) in enumerate(lanes.events[:i]) if earlier == "kernel")
            filled[next(buffers)] = i + 1
        if kind == "kernel":
            assert lanes.events[i - 1] == ("wait", filled[what])
            assert lanes.events[filled[what]][0] == "filled"


@pytest.mark.parametrize("layers", LAYERS[1:])
def test_a_captured_step_waits_for_nothing_outside_of_it_and_leaves_nothing_under_way(layers, dense):
    lanes = Watched()
    pack, stream = dense(layers, lanes=lanes)
    stream.begin()
    stream.settle()
    first = len(lanes.events)
    for turn in range(len(layers)):
        with stream.there(turn):
            pass
    stream.settle()
    captured = list(enumerate(lanes.events))[first:]
    waited = {event for _, (kind, event) in captured if kind == "wait" and event is not None}
    assert all(event >= first for event in waited)
    assert {i for i, (kind, _) in captured if kind == "filled"} == waited
    end = len(lanes.events)
    stream.begin()
    assert len(lanes.events) == end
    assert all(lies_there(pack, stream, layer) for layer in layers[:2])
