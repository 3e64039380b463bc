"""Made-up packs: whole, sane at every depth, alike for any number of threads, and as skewed as they were told to be."""

import functools
import json
import math

import msgspec
import numpy as np
import pytest
import torch

from krasis import layout as layouts
from krasis import models
from krasis.errors import InputError, UsageError
from krasis.models import deepseek_v2
from krasis.pack import manifest as manifests
from krasis.pack.manifest import FileHash, Settings
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack
from krasis.runtime.backend import PackedMatrix
from krasis.runtime.dequantize import dequantize
from krasis.runtime.tokenizer import Tokenizer
from krasis.synth import fill, popularity
from krasis.synth.pack import Recipe, Synthesis, shortened
from krasis.synth.values import CHANNEL, LEVEL, RESIDUAL

TOKENS = 512
GROUPED = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4, "norm_topk_prob": True}
GLM = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "moe_intermediate_size": 96,
    "n_routed_experts": 64,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "attention_bias": True,
    "use_qk_norm": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    "max_position_embeddings": 4096,
    "eos_token_id": [0, 5000],
    "model_type": "glm4_moe",
}


@pytest.fixture(scope="module")
def config(example):
    """Family -> a config.json of a small model with 64 experts; layers of every kind among the first four."""

    def read(family):
        if family == "glm4_moe":
            return dict(GLM)
        found = json.loads((example(family.replace("v3", "v2")) / "config.json").read_text(encoding="utf-8"))
        for key in ("num_experts", "num_local_experts", "n_routed_experts"):
            found |= {key: 64} if key in found else {}
        return found | {"num_experts_per_tok": 8, "model_type": family} | (GROUPED if family == "deepseek_v3" else {})

    return read


@pytest.fixture(scope="module")
def make(config, tmp_path_factory):
    """(family, jobs, settings, recipe) -> a pack."""

    @functools.cache
    def run(family, jobs=2, expert_bits=4, dense_bits=8, group_size=128, layouts=("marlin", "cpu"), **recipe):
        settings = Settings(expert_bits=expert_bits, dense_bits=dense_bits, group_size=group_size, layouts=layouts)
        path = tmp_path_factory.mktemp("synth") / family
        source = FileHash("config.json", 1, "0" * 64)
        Synthesis(config(family), Recipe(settings, **recipe)).run(path, source, Silent(), jobs=jobs)
        return path

    return run


@pytest.fixture(params=models.names())
def any_family(request):
    return request.param


WAYS = {
    "int4": {},
    "mxfp4": {"expert_codec": "mxfp4", "group_size": 32},
    "int8, g64": {"expert_bits": 8, "group_size": 64},
    "unquantized": {"expert_bits": 16, "dense_bits": 16},
}


# Families differ in their tensors, ways in what becomes of them.
CASES = [(family, "int4") for family in models.names()] + [
    (family, way) for family in ("gpt_oss", "qwen3_next") for way in WAYS if way != "int4"
]


@pytest.mark.parametrize(("family", "way"), CASES)
def test_every_matrix_has_its_spread_and_all_layouts_hold_the_same(family, way, make):
    pack = Pack(make(family, **WAYS[way]))
    layers = pack.manifest.model["num_layers"]
    assert all(matches for _, _, matches in pack.verify())
    for name, have in pack.layouts_of.items():
        last = pack.segment(name, have[0]).count - 1
        for spec in pack.segment(name, have[0]).tensors:
            if len(spec.shape) != 2 or spec.name in ("embed", "router"):
                continue
            found = [weight(pack, name, order, last, spec) for order in have]
            assert all(torch.equal(found[0], other) for other in found)
            spread = spec.shape[1] ** -0.5 * (0.5 * layers**-0.5 if spec.name in RESIDUAL else 1)
            # Powers of two that are drawn apart from their codes spread by a fifth more.
            close = 0.5 if min(spec.shape) < 8 else 0.25 if spec.codec == "mxfp4" else 0.15
            assert found[0][-max(len(found[0]) - 1, 1) :].square().mean().sqrt() == pytest.approx(spread, rel=close), (
                spec
            )
            assert not found[0][:, CHANNEL].any()
            assert spec.name not in RESIDUAL or not found[0][CHANNEL].any()


def weight(pack, name, order, index, spec):
    """A matrix of the pack in float32."""
    arrays = pack.arrays(name, order, index)
    return dequantize(
        PackedMatrix(spec, order, *(arrays.get((spec.name, part)) for part in ("codes", "scales", "values")))
    )


def test_pads_multiply_to_zero(make):
    # gpt-oss' 224 columns are padded to 256, and its biases with its rows.
    pack = Pack(make("gpt_oss"))
    padded = 0
    for name, have in pack.layouts_of.items():
        for order in have:
            segment, arrays = pack.segment(name, order), pack.arrays(name, order)
            for spec in segment.tensors:
                if spec.padded_shape == spec.shape:
                    continue
                padded += 1
                rows = spec.shape[0] // spec.parts
                if not spec.quantized:
                    assert not arrays[spec.name, "values"].view(spec.parts, -1)[:, rows:].any()
                    continue
                whole = unpadded(spec)
                full = dequantize(
                    PackedMatrix(whole, order, arrays[spec.name, "codes"], arrays[spec.name, "scales"], None)
                )
                parts = full.view(spec.parts, -1, full.shape[1])
                assert not parts[:, rows:].any()
                assert not parts[:, :, spec.shape[1] :].any()
    assert padded >= 6


def unpadded(spec):
    """The same matrix, its pads taken for weights."""
    return msgspec.structs.replace(spec, shape=spec.padded_shape)


def test_no_two_experts_are_equal_and_nothing_depends_on_threads(make):
    first, other_seed = (Pack(make("qwen3_moe", seed=seed)) for seed in (0, 1))
    hashes = [digest for _, s in first.manifest.segments() if s.name.endswith("experts") for digest in s.sha256]
    assert len(set(hashes)) == len(hashes) == 4 * 64 * 2
    assert first.manifest.files == Pack(make("qwen3_moe", seed=0, jobs=5)).manifest.files
    theirs = {digest for _, s in other_seed.manifest.segments() for digest in s.sha256}
    assert not theirs.intersection(hashes)


def test_nothing_depends_on_the_records_written_before(make, monkeypatch):
    # gpt-oss has padding everywhere.
    whole = Pack(make("gpt_oss", seed=3)).manifest.files
    monkeypatch.setattr(fill, "TASK", 1)
    assert Pack(make("gpt_oss", seed=3, jobs=3)).manifest.files == whole


def test_every_token_has_an_embedding_of_its_own(make):
    embed = Pack(make("qwen3_moe", seed=1)).arrays("base", "plain")["embed", "values"].float()
    assert len(torch.unique(embed, dim=0)) == len(embed) == 4096
    assert embed[:, 1:].std() == pytest.approx(1, abs=0.02)


class Interrupted(Silent):
    """Progress that ends the work once most of it is done."""

    def start(self, task, total_bytes):
        self.left = 0.7 * total_bytes

    def advance(self, done_bytes):
        self.left -= done_bytes
        if self.left < 0:
            raise KeyboardInterrupt


def test_a_partial_pack_is_continued(config, make, tmp_path):
    whole = make("qwen3_moe", seed=1)
    source = FileHash("config.json", 1, "0" * 64)
    synthesis = Synthesis(config("qwen3_moe"), Recipe(Pack(whole).manifest.settings, seed=1))
    with pytest.raises(KeyboardInterrupt):
        synthesis.run(tmp_path / "pack", source, Interrupted(), jobs=2)
    assert not (tmp_path / "pack").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "pack.partial").glob("layer-*.bin")}
    assert kept
    manifest = synthesis.run(tmp_path / "pack", source, Silent(), jobs=2)
    assert manifest.root == Pack(whole).manifest.root
    assert all((tmp_path / "pack" / path.name).stat().st_mtime_ns == time for path, time in kept.items())


def test_the_pack_says_that_it_is_made_up(make):
    manifest = Pack(make("qwen3_moe", seed=1)).manifest
    assert "made-up weights, skew 0.9, seed 1" in manifest.tool
    assert [origin.name for origin in manifest.source] == ["config.json"]


class Routing:
    """What each layer chose, token by token."""

    def __init__(self, engine):
        self.ids = {}
        engine.tracer.record = lambda layer, ids, weights: self.ids.setdefault(layer, []).append(ids)

    def layers(self):
        return {layer: torch.cat(ids) for layer, ids in self.ids.items()}


@pytest.fixture
def routed(make, open_engine):
    """(family, skew) -> the engine's hidden states at each depth, and its routing, for tokens drawn evenly."""

    def run(family, skew):
        engine = open_engine(make(family, skew=skew), trace=True)
        routing, hidden = Routing(engine), []
        engine.model.observe = lambda layer, x: hidden.append(x)
        ids = torch.randint(4096, (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
        engine.all_hidden(ids, engine.new_state())
        return engine.spec, hidden, routing.layers()

    return run


def hottest(shares, part=0.2):
    return float(shares.sort(descending=True).values[: round(part * len(shares))].sum() / shares.sum())


def test_the_skew_holds_in_every_layer(any_family, routed):
    spec, hidden, routing = routed(any_family, 0.9)
    shares = popularity.Popularity(spec, 0.9, 0).shares
    alike = float(shares.square().sum() / shares.sum())
    for ids in routing.values():
        found = torch.bincount(ids.flatten(), minlength=spec.num_experts) / TOKENS
        assert hottest(found) == pytest.approx(hottest(shares), abs=0.04)
        assert (found.sort().values - shares.sort().values.float()).abs().sum() < 0.1 * shares.sum()
        # Neighbours have as many experts in common as the law alone makes them have.
        common = (ids[1:, :, None] == ids[:-1, None, :]).sum() / ids[1:].numel()
        assert common == pytest.approx(alike, abs=0.05)
    check_sane(hidden)


def check_sane(hidden):
    """Hidden states stay finite, of one size, each token's its own, and their constant component as it was."""
    for x in hidden:
        assert torch.equal(x[:, CHANNEL], torch.full((TOKENS,), LEVEL))
        assert x[:, 1:].square().mean() == pytest.approx(1.2, abs=0.25)
        assert x[:, 1:].mean(0).square().mean() < 0.03
    assert (hidden[-1] - hidden[0])[:, 1:].square().mean() > 0.003


def test_no_skew_is_even(routed):
    spec, _, routing = routed("qwen3_moe", 0.0)
    for ids in routing.values():
        found = torch.bincount(ids.flatten(), minlength=spec.num_experts) / TOKENS
        # 64 counts of 64 tokens each, spread as chance has it.
        assert hottest(found) < 0.27
        assert found.max() < 1.6 * found.mean()


@pytest.mark.parametrize("shape", [(512, 10), (128, 8), (128, 4), (64, 6), (20, 4)], ids=str)
@pytest.mark.parametrize("skew", [0.0, 0.5, 0.9, 1.5])
def test_law(shape, skew):
    experts, chosen = shape
    shares = popularity.law(experts, chosen, skew)
    assert float(shares.sum()) == pytest.approx(chosen)
    assert float(shares.max()) <= popularity.MOST + 1e-12
    free = shares[shares < popularity.MOST - 1e-9]
    ratios = free / free[0]
    first = experts - len(free) + 1
    expected = (torch.arange(first, experts + 1, dtype=torch.float64) / first) ** -skew
    assert torch.allclose(ratios, expected)


@pytest.mark.parametrize("shape", [(512, 10), (128, 8), (128, 4)], ids=str)
def test_a_skew_of_0_9_is_that_of_real_models(shape):
    assert 0.6 <= hottest(popularity.law(*shape, 0.9)) <= 0.7


def test_all_experts_chosen_is_a_law_too():
    assert torch.equal(popularity.law(4, 4, 1.0), torch.ones(4, dtype=torch.float64))


def test_calibration_holds_on_fresh_logits():
    shares = popularity.law(128, 8, 0.9)
    draw = lambda seed, tokens: torch.randn(tokens, 128, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    choose = lambda logits: logits.topk(8).indices  # noqa: E731
    offsets = popularity.calibrate(shares, choose, draw(0, 4096))
    found = torch.bincount(choose(draw(1, 20_000) + offsets).flatten(), minlength=128) / 20_000
    assert (found - shares).abs().max() < 0.02
    assert hottest(found) == pytest.approx(hottest(shares), abs=0.01)


def test_groups_stay_together(config):
    spec = Synthesis(config("deepseek_v3"), Recipe(Settings(4, 8, 128, ("cpu",)))).spec
    assert isinstance(spec, deepseek_v2.MoeSpec)
    order = popularity.Popularity(spec, 0.9, 0).order(np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(64))
    assert all(len(set((group // 8).tolist())) == 1 for group in order.view(8, 8))


@pytest.mark.parametrize("text", ["def f(x):\n    return x", "naïve → 漢字 🙂", "a\tb\r\nc  d", ""])
@pytest.mark.parametrize("vocab", [256, 300, 4096, 151_936])
def test_tokenizer_loses_nothing_and_stays_below_the_vocabulary(text, vocab, tmp_path):
    found = Tokenizer(Stub(tmp_path, vocab))
    ids = found.encode(text)
    assert found.decode(ids) == text
    assert all(0 <= token < vocab for token in ids)


class Stub:
    """A pack of nothing but a tokenizer."""

    def __init__(self, path, vocab):
        from krasis.synth import tokenizer

        self.path, self._files = path, tokenizer.files(vocab)

    def extra(self, name):
        return self._files.get(name)


def test_end_tokens_are_those_that_the_vocabulary_has(make):
    assert Pack(make("glm4_moe")).manifest.model["eos_token_ids"] == [0]


def test_shortened(config):
    found = shortened(config("gpt_oss"), 2, 512)
    assert (found["num_hidden_layers"], found["layer_types"], found["vocab_size"]) == (
        2,
        ["sliding_attention", "full_attention"],
        512,
    )
    for layers in (0, 5):
        with pytest.raises(UsageError, match=rf"--layers is {layers}.*1 to 4"):
            shortened(config("gpt_oss"), layers, None)


def test_a_vocabulary_too_small_for_bytes_is_refused(config):
    with pytest.raises(InputError, match=r"vocab_size is 255.*256 or more"):
        Synthesis(shortened(config("qwen3_moe"), None, 255), Recipe(Settings(4, 8, 128, ("cpu",))))


def test_every_layout_has_an_axis_of_columns():
    # What the filling rests on: 64 columns lie together in one dimension of packed codes.
    for name in layouts.names():
        order = layouts.get(name)
        for bits in (4, 8):
            shapes = [order.packed_shape(128, n, bits) for n in (128, 256)]
            assert math.prod(shapes[1]) == 2 * math.prod(shapes[0])
            assert sum(a != b for a, b in zip(*shapes, strict=True)) == 1


def test_the_manifest_is_known_before_any_weight_is_made(config, make):
    pack = Pack(make("qwen3_next"))
    settings = Settings(expert_bits=4, dense_bits=8, group_size=128, layouts=("marlin", "cpu"))
    manifest = Synthesis(config("qwen3_next"), Recipe(settings)).manifest()
    planned, written = manifests.decode(manifests.encode(manifest), ""), pack.manifest
    assert (planned.tool, planned.settings, planned.model) == (written.tool, written.settings, written.model)
    assert planned.errors.keys() == written.errors.keys()
    hashes = {(s.name, s.layout): s.sha256 for _, s in written.segments()}
    files = [
        msgspec.structs.replace(
            file,
            segments=tuple(msgspec.structs.replace(s, sha256=hashes[s.name, s.layout]) for s in file.segments),
        )
        for file in planned.files
    ]
    assert files == list(written.files)
