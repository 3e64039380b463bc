"""Tokens that are replayed: they are what the layers give one by one, bit for bit, whatever is run between them."""

import gc
import json

import pytest
import torch

from krasis.errors import FitError
from krasis.native.tape import Tape
from krasis.pack.manifest import FileHash, Settings
from krasis.pack.progress import Silent
from krasis.runtime.recorded import Recorded
from krasis.runtime.state import SequenceState
from krasis.synth.pack import Recipe, Synthesis


class Pair:
    """An engine that replays, one that does not, and a sequence of each. Every operation is done to both."""

    def __init__(self, open_engine, pack, *, chunk=None, capacity=512, **options):
        self.engines = [open_engine(pack, context=capacity, **options) for _ in range(2)]
        (self.recorded,) = self.engines[0].model.blocks
        self.engines[1].model.blocks = self.recorded.blocks
        self._size = (capacity, chunk or capacity)
        self.states = self.new_states()

    def new_states(self):
        """Of caches that keep `chunk` rows more than a window."""
        return [
            SequenceState(engine.layers, *self._size, engine.kv, engine.backend.attention, engine.backend.store)
            for engine in self.engines
        ]

    def same(self, run, states=None):
        found = [run(*pair) for pair in zip(self.engines, states or self.states, strict=True)]
        assert torch.equal(*found)
        return found[0]

    def prompt(self, ids, states=None):
        return self.same(lambda engine, state: engine.all_hidden(ids, state), states)

    def step(self, *ids, states=None):
        return self.same(lambda engine, state: engine.step(ids, state), states)

    def settle(self, position):
        for engine, state in zip(self.engines, self.states, strict=True):
            engine.settle(state, position)


@pytest.fixture
def replays(monkeypatch):
    """How many tokens later than what was recorded each replayed one is."""
    found, replay = [], Tape.replay

    def count(tape, later):
        found.append(later)
        replay(tape, later)

    monkeypatch.setattr(Tape, "replay", count)
    return found


@pytest.fixture
def ids(text_ids):
    return text_ids["dev-docs.txt"]


@pytest.mark.parametrize(("kv", "threads"), [("f32", 1), ("bf16", 2), ("fp8", 1)])
def test_every_position(family, kv, threads, pack_of, open_engine, ids, replays):
    """To the capacity's end: windows fill, and runs of attention and tables of angles grow."""
    pair = Pair(open_engine, pack_of(family), kv=kv, threads=threads, capacity=160)
    pair.prompt(ids[:5])
    for token in ids[5:160]:
        pair.step(token)
    assert replays == list(range(1, 155))
    for engine, state in zip(pair.engines, pair.states, strict=True):
        with pytest.raises(FitError, match="161 positions"):
            engine.step([1], state)


SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "n_group": 1, "topk_group": 1}
GROUPED = SIGMOID | {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
ROUTED = ("scoring_func", "topk_method", "mlp_bias")
UNTRAINED = {
    "deepseek_v3": SIGMOID | {"model_type": "deepseek_v3", "q_lora_rank": 96},
    "glm4_moe": dict.fromkeys(LATENT + ROUTED)
    | {
        "model_type": "glm4_moe",
        "head_dim": 32,
        "attention_bias": True,
        "use_qk_norm": True,
        "norm_topk_prob": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    },
}


@pytest.fixture
def synthetic(example, tmp_path):
    """Changes of the bundled DeepSeek-V2's configuration -> a pack with made-up weights."""

    def make(changes):
        found = json.loads((example("deepseek_v2") / "config.json").read_text(encoding="utf-8")) | changes
        settings = Settings(expert_bits=4, dense_bits=8, group_size=32, layouts=("cpu",))
        made = Synthesis(found, Recipe(settings))
        made.run(tmp_path / "pack", FileHash("config.json", 1, "0" * 64), Silent(), jobs=1)
        return tmp_path / "pack"

    return make


@pytest.mark.parametrize("family", UNTRAINED)
def test_families_that_no_checkpoint_is_bundled_of(family, synthetic, open_engine, ids, replays):
    pair = Pair(open_engine, synthetic(UNTRAINED[family]))
    pair.prompt(ids[:5])
    for token in ids[5:25]:
        pair.step(token)
    assert len(replays) == 19


def test_routes_limited_to_groups_are_torch_s(synthetic, open_engine, ids, replays):
    pair = Pair(open_engine, synthetic(UNTRAINED["deepseek_v3"] | GROUPED))
    for token in ids[:5]:
        pair.step(token)
    assert not replays
    assert pair.recorded.unrecorded is not None


def test_windows_that_move_on(pack_of, open_engine, ids, replays):
    """Rows of which there is no more room go, and what was recorded with them."""
    pair = Pair(open_engine, pack_of("gpt_oss"), chunk=20, capacity=400)
    window = max(layer.window for layer in pair.engines[0].layers)
    for token in ids[:400]:
        pair.step(token)
    moves = -(-(400 - (window - 1 + 20)) // 20)
    assert len(replays) == 400 - 1 - 2 * moves  # the token that moves rows, and the next one, which is recorded
    assert moves > 3


def test_passes_between(family, pack_of, open_engine, ids, replays):
    """Drafts that are right in part or not at all, prompts, and sequences that go on together."""
    pair = Pair(open_engine, pack_of(family), chunk=40)
    pair.prompt(ids[:40])
    for round_ in range(40):
        pair.step(ids[50 + round_])
        if round_ % 2:
            begin = pair.states[0].position
            pair.step(*ids[100 + round_ : 104 + round_])
            for state in pair.states:
                state.take_back(begin + 1 + round_ % 4)
        if round_ % 7 == 3:
            pair.prompt(ids[200 : 200 + round_])
        if round_ % 5 == 4:
            pair.same(lambda engine, state: engine.next_hidden([9], [state]))
    assert len(replays) > 20


def test_a_sequence_that_goes_back(pack_of, open_engine, ids, replays):
    pair = Pair(open_engine, pack_of("deepseek_v2"))
    pair.prompt(ids[:40])
    for position in (40, 60, 30, 1, 45):
        pair.settle(min(position, pair.states[0].position))
        for token in ids[60:75]:
            pair.step(token)
    assert len(replays) == 5 * 15 - 3  # it was recorded at 40, 30 and 1


def test_sequences_side_by_side(family, pack_of, open_engine, ids):
    pair = Pair(open_engine, pack_of(family))
    several = [pair.new_states() for _ in range(3)]
    for i, states in enumerate(several):
        pair.prompt(ids[30 * i : 30 * i + 4 + i], states)
    for token in ids[100:120]:
        for states in several:
            pair.step(token, states=states)
    pair.same(lambda engine, _: engine.next_hidden([1, 2, 3], [s[engine is pair.engines[1]] for s in several]))
    for states in several:
        pair.step(7, states=states)


def test_what_is_recorded_goes_with_its_sequence(pack_of, open_engine):
    pair = Pair(open_engine, pack_of("qwen3_next"))
    pair.step(1)
    assert len(pair.recorded._steps) == 1
    pair.states = None
    gc.collect()
    assert not pair.recorded._steps


def test_what_torch_computes_is_not_left_out(family, exact_pack, open_engine, ids, replays):
    """Experts of 16 bits have no kernel. It is said once."""
    pair = Pair(open_engine, exact_pack(family))
    pair.prompt(ids[:5])
    for token in ids[5:10]:
        pair.step(token)
    assert not replays
    engine = pair.engines[0]
    assert [note for note in engine.notes if "torch" in note] == [
        f"tokens run layer by layer, since not all is native on the CPU: {pair.recorded.unrecorded} is torch's"
    ]


def test_who_watches_sees_every_token(demo_pack, open_engine, ids):
    engine = open_engine(demo_pack(), trace=True)
    assert not any(isinstance(block, Recorded) for block in engine.model.blocks)
