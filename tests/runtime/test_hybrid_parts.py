"""The parts of the hybrid engine by themselves: what is copied where and when, what lies where, and what is refused."""

import dataclasses

import pytest
import torch
from cuda_devices import on_devices
from hypothesis import given
from hypothesis import strategies as st
from real_sizes import sizes
from watched_lanes import Watched

from krasis.errors import FitError, KrasisError
from krasis.models.state import Cache, Recurrent
from krasis.native.cuda.gemm import MOST_FEW
from krasis.pack.reader import Pack
from krasis.runtime.cuda.arena import Arena
from krasis.runtime.cuda.lanes import Lanes
from krasis.runtime.cuda.passes import Crossover
from krasis.runtime.cuda.placed import place_dense, stored_records
from krasis.runtime.cuda.residents import Residents, segment_of
from krasis.runtime.cuda.room import check_room
from krasis.runtime.cuda.state import DeviceState
from krasis.runtime.cuda.store import HostStore
from krasis.runtime.cuda.stream import Stream
from krasis.runtime.placement.outline import outline, passing_segments
from krasis.runtime.placement.plan import PlacementError, Wishes, plan
from krasis.runtime.rates import REFERENCE

GIB = 1 << 30
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pack(demo_pack):
    """Four layers of sixteen experts."""
    return Pack(demo_pack())


@pytest.fixture(scope="module")
def counts(pack):
    return {layer: pack.segment(segment_of(layer), "marlin").count for layer in range(4)}


def record(pack, layer, expert):
    size = pack.segment(segment_of(layer), "marlin").record_bytes
    return pack.records(segment_of(layer), "marlin")[expert * size : (expert + 1) * size]


def arena(size, device=CPU):
    return Arena("a test", size, torch.device(device))


@pytest.fixture
def streamed(pack, counts):
    """(residents, buffers, device, experts a buffer holds) -> the stream of the others."""

    def make(chosen, buffers=3, device="cpu", room=3, lanes=None):
        there, size = torch.device(device), record(pack, 0, 0).nbytes
        residents = Residents(pack, counts, chosen, arena(len(chosen) * size, device), there)
        ring = [torch.empty(room * size, dtype=torch.uint8, device=there) for _ in range(buffers)]
        return Stream(pack, HostStore(pack, there), residents, ring, lanes or Lanes(there)), residents

    return make


SOME = [(0, 3), (0, 4), (1, 0), (2, 15), (2, 1), (2, 7)]


def at(address, size, blocks):
    """The bytes at an address in one of several tensors."""
    block = next(b for b in blocks if b.data_ptr() <= address and address + size <= b.data_ptr() + b.nbytes)
    return block[address - block.data_ptr() :][:size].cpu()


@on_devices
@pytest.mark.parametrize("way", ["whole", "touched"])
@pytest.mark.parametrize("buffers", [1, 3])
def test_experts_lie_where_the_table_says_while_they_are_handed_out(way, buffers, device, streamed, pack, counts):
    stream, residents = streamed(SOME, buffers, device)
    chosen = {layer: torch.randperm(16, generator=torch.Generator().manual_seed(layer))[:9] for layer in counts}
    blocks, size, missed = [*stream._ring, residents._memory._memory], record(pack, 0, 0).nbytes, 0
    for _ in range(2):
        stream.begin(way)
        for layer in counts:
            seen = []
            for experts, table in stream.parts(layer, chosen[layer].int().to(device)):
                for expert in experts.tolist():
                    assert torch.equal(at(int(table[expert]), size, blocks), record(pack, layer, expert))
                seen += experts.tolist()
            hot = {expert for of, expert in SOME if of == layer}
            wanted = set(chosen[layer].tolist()) if way == "touched" else set(range(16))
            assert len(seen) == len(set(seen))
            assert set(seen) == hot | wanted
            missed += len(wanted - hot)
    assert stream.copied == missed * size


@pytest.mark.parametrize("way", ["whole", "touched"])
@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_buffers_are_copied_to_once_they_are_read_and_read_once_they_are_filled(way, buffers, streamed, counts):
    lanes = Watched()
    stream, _ = streamed(SOME, buffers, lanes=lanes)
    stream.begin(way)
    for layer in counts:
        for _ in stream.parts(layer, torch.arange(16)):
            lanes.events.append(("kernel", None))
    copies = [i for i, (kind, _) in enumerate(lanes.events) if kind == "copy"]
    waits = [i for i, (kind, _) in enumerate(lanes.events) if kind == "wait"]
    reads = [i for i, (kind, _) in enumerate(lanes.events) if kind == "read"]
    assert len(copies) == len(waits) == len(reads) == sum(-(-(16 - hot) // 3) for hot in (2, 1, 3, 0))
    for turn, (copy, wait, read) in enumerate(zip(copies, waits, reads, strict=True)):
        assert lanes.events[copy + 1] == ("filled", copy + 1)
        assert lanes.events[wait] == ("wait", copy + 1)
        assert lanes.events[wait + 1] == ("kernel", None)
        assert copy < wait < read
        assert lanes.events[copy][1] == (reads[turn - buffers] if turn >= buffers else None)
    # All buffers but the one that is read are under way.
    ahead = [sum(copy < wait for copy in copies) - turn for turn, wait in enumerate(waits)]
    if way == "whole":
        assert ahead == [min(buffers, len(waits) - turn) for turn in range(len(waits))]


def test_neighbours_are_copied_at_once(streamed):
    stream, _ = streamed(SOME)
    first = stream._whole[0][0]
    assert first.experts.tolist() == [0, 1, 2]
    assert len(first.runs) == 1
    assert stream._whole[0][1].experts.tolist() == [5, 6, 7]


def test_a_pass_may_end_early(streamed, counts):
    """A sequence that is refused leaves copies behind; the next pass begins anew."""
    stream, _ = streamed(SOME)
    stream.begin("whole")
    next(stream.parts(3, torch.arange(16)))
    stream.begin("whole")
    assert [len(list(stream.parts(layer, torch.arange(16)))) for layer in counts] == [6, 6, 6, 6]


@on_devices
def test_residents_lie_in_their_arena(device, pack, counts):
    size = record(pack, 0, 0).nbytes
    memory = arena(len(SOME) * size, device)
    found = Residents(pack, counts, SOME, memory, torch.device(device))
    for layer, expert in SOME:
        stored = at(int(found.table[layer][expert]), size, [memory._memory])
        assert torch.equal(stored, record(pack, layer, expert))
    for layer in counts:
        cold = [expert for expert in range(16) if (layer, expert) not in SOME]
        assert found.cold[layer] == cold
        assert (found.where[layer] < 0).nonzero().flatten().tolist() == cold
        assert (found.table[layer] == 0).nonzero().flatten().tolist() == cold


def test_arenas_give_no_more_than_was_planned():
    memory = arena(1000)
    first, second = memory.take(300), memory.take(400)
    assert (first.nbytes, second.nbytes) == (300, 400)
    assert second.data_ptr() - first.data_ptr() == 512
    with pytest.raises(FitError, match=r"a test takes 1025 bytes \(VRAM\): 1000 bytes were planned"):
        memory.take(1)


@on_devices
def test_dense_weights_are_placed_as_planned(device, pack):
    """Those of two layers lie on the device, and so does what always does; the others have places elsewhere."""
    found, away = outline(pack.manifest), {}
    memory = arena(found.kept + found.layers[0].passing + found.layers[2].passing, device)
    for name in (name for layer in (1, 3) for name in passing_segments(layer) if name in pack.layouts_of):
        away[name] = stored_records(pack, name).to(device)
    placed = place_dense(pack, away, memory)
    with pytest.raises(FitError):
        memory.take(1)
    for name, layouts in pack.layouts_of.items():
        for layout in set(layouts) & {"marlin", "plain"}:
            there = {key for key, array in placed.arrays(name, layout).items() if array.device.type == device}
            for key, array in pack.arrays(name, layout).items():
                moved = placed.arrays(name, layout)[key]
                assert torch.equal(moved.cpu(), array)
                inside = 0 <= moved.data_ptr() - memory._memory.data_ptr() < memory._memory.nbytes
                on_host = key[0] == "embed" or name.endswith("experts")
                assert inside == (name not in away and not on_host)
                assert on_host or key in there


bytes_of = st.floats(1e6, 1e11)


@given(st.integers(2, 5000), bytes_of, bytes_of, bytes_of, st.integers(1, 90))
def test_the_way_that_takes_least_is_taken(tokens, whole, dense, passing, layers):
    """`missed` saturates, as more tokens touch fewer new experts."""
    ways = Crossover(lambda n: whole * (1 - 0.98**n), whole, layers, dense, passing, REFERENCE)
    found = ways.seconds(tokens)
    assert found[ways.best(tokens)] == min(found.values())
    assert ways.best(1) == "few"
    more = ways.seconds(tokens + MOST_FEW)
    assert all(more[way] >= found[way] for way in found)
    assert more["whole"] == found["whole"]
    assert ways.best(10**6) == "whole"


def test_short_prompts_touch_and_long_ones_take_all():
    found = sizes("qwen3-coder-next")
    whole = 0.9 * found.experts
    ways = Crossover(lambda n: whole * (1 - 0.98**n), whole, 48, found.dense, 0, REFERENCE)
    order = ["few", "touched", "whole"]
    chosen = [order.index(ways.best(tokens)) for tokens in (1, 4, 8, 16, 64, 256, 1024, 10_000)]
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0, 2)


def test_what_a_window_let_go_is_gone():
    """A window of 64 tokens and chunks of 8: 71 rows, so that 88 tokens leave those from 17 on."""
    layers = [Cache(rows=((1, 8),), window=64), Cache(rows=((1, 8),))]
    state = DeviceState(layers, 96, 8, "bf16", torch.zeros(1, dtype=torch.int32))
    state.advance(88)
    state.position = 80
    with pytest.raises(KrasisError, match="position 16 of the sequence is gone: 17 or later"):
        state.position = 79
    assert state.position == 80
    state.reset()
    state.advance(71)
    state.position = 0
    assert int(state._place) == 0


def test_resetting_clears_what_is_recurrent():
    state = DeviceState([Recurrent(((2, 3), (4,)))], 8, 8, "bf16", torch.zeros(1, dtype=torch.int32))
    for tensor in state.recurrent(0):
        tensor.fill_(1)
    state.advance(3)
    state.reset()
    assert state.position == 0
    assert not any(tensor.any() for tensor in state.recurrent(0))


def replanned(model, context=16_384):
    wishes = Wishes((16 * GIB,), context, "fp8", 10_000)
    return lambda vram: plan(sizes(model), REFERENCE, None, dataclasses.replace(wishes, vram=(vram,)))


def test_a_plan_for_more_than_is_free_is_refused_with_what_fits():
    planned = replanned("qwen3-coder-next")
    check_room(planned(16 * GIB), 16 * GIB, planned)
    with pytest.raises(FitError, match=rf"15.2\d GiB \(VRAM\): 10.00 GiB are free; --vram {10 * GIB} would fit") as no:
        check_room(planned(16 * GIB), 10 * GIB, planned)
    assert no.value.exit_code == 4
    check_room(planned(10 * GIB), 10 * GIB, planned)


def test_what_fits_may_be_a_shorter_context_or_nothing():
    planned, few = replanned("qwen3-235b-a22b"), 5 * GIB // 2
    with pytest.raises(PlacementError) as least:
        planned(few)
    most = least.value.would_fit["context"]
    with pytest.raises(FitError, match=f"--vram {few} --context {most} would fit"):
        check_room(planned(16 * GIB), few, planned)
    with pytest.raises(FitError, match="free memory of the GPU that others hold"):
        check_room(planned(16 * GIB), GIB, planned)


def test_a_plan_that_needs_less_than_its_budget_fits_in_less():
    planned = replanned("deepseek-v2-lite")
    roomy = planned(70 * GIB)
    check_room(roomy, 30 * GIB, planned)
