"""krasis bench: what it states and how it hangs together. Never how fast anything is."""

import shutil

import pytest
import torch

from krasis.pack.reader import Pack
from krasis.runtime import engine as engines
from krasis.runtime import limits
from krasis.runtime import reference as references

SPREADS = ("prefill_tok_s", "ttft_s", "decode_tok_s", "ms_per_token", "read_gb_s")
FIGURES = ("bytes_per_token", "ceiling_tok_s", "ratio", "prefill_ceiling_tok_s", "prefill_ratio")
SHORT = ("--device", "cpu", "--prompt-tokens", 24, "--decode-tokens", 4, "--runs", 2)


@pytest.fixture(autouse=True)
def small_reads(monkeypatch):
    monkeypatch.setattr(limits, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(limits, "TRIAL_S", 0.001)


@pytest.fixture(scope="module")
def bench(demo_pack):
    return ("bench", demo_pack(), *SHORT)


def test_every_figure_is_there_and_follows_from_the_others(krasis, bench, demo_pack):
    found = krasis(*bench, "--json").json
    others = {"hit_rate", "drafted", "accepted", "agreement", "status", "device", "config"}
    assert set(found) == {*SPREADS, *FIGURES, *others}
    assert (found["drafted"], found["accepted"], found["config"]["speculate"]) == (0, 0, "off")
    for name in SPREADS:
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
    assert all(found[name] > 0 for name in FIGURES)
    assert found["hit_rate"] is None
    assert found["prefill_tok_s"]["max"] == pytest.approx(24 / found["ttft_s"]["min"])
    assert found["ms_per_token"]["min"] == pytest.approx(1000 / found["decode_tok_s"]["max"])
    assert found["ceiling_tok_s"] == pytest.approx(found["read_gb_s"]["median"] * 1e9 / found["bytes_per_token"])
    assert found["ratio"] == pytest.approx(found["decode_tok_s"]["median"] / found["ceiling_tok_s"])
    assert found["prefill_ratio"] == pytest.approx(found["prefill_tok_s"]["median"] / found["prefill_ceiling_tok_s"])
    assert 0 < found["agreement"] <= found["config"]["agreement_limit"]
    assert (found["status"], found["device"]) == ("PASS", "cpu")
    expected = {"model_type": "qwen3_moe", "root_hash": Pack(demo_pack()).manifest.root, "load": "mapped", "kv": "bf16"}
    expected |= {"prompt": "krasis' source", "prompt_tokens": 24, "decode_tokens": 4, "runs": 2, "expert_bits": 4}
    assert expected.items() <= found["config"].items()


def test_drafts_are_made_where_told(krasis, bench):
    flags = ("--speculate", "auto", "--decode-tokens", 60, "--no-agreement", "--json")
    found = krasis(*bench, *flags).json
    assert found["config"]["speculate"] == "auto"
    assert 0 <= found["accepted"] <= found["drafted"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--threads", 1), {"threads": 1}),
        (("--layout", "marlin"), {"layouts": ["marlin", "plain"]}),
        (("--load", "copied"), {"load": "copied"}),
        (("--kv", "fp8"), {"kv": "fp8"}),
    ],
    ids=str,
)
def test_the_configuration_says_what_ran(flags, said, krasis, bench):
    found = krasis(*bench, *flags, "--no-agreement", "--json").json
    assert said.items() <= found["config"].items()
    assert (found["agreement"], found["status"]) == (None, "PASS")


def test_the_table_has_the_figures(krasis, bench):
    found = krasis(*bench)
    assert found.code == 0
    for word in (*SPREADS, "bytes a token", "agreement", "PASS", "krasis' source"):
        assert word in found.out


def test_a_pack_without_a_tokenizer_takes_random_ids(krasis, example, convert, tmp_path):
    source = shutil.copytree(example("qwen3_moe"), tmp_path / "model", ignore=lambda _, names: {"tokenizer.json"})
    pack = convert(source, tmp_path / "pack", layouts=("cpu",))
    assert krasis("bench", pack, *SHORT, "--no-agreement", "--json").json["config"]["prompt"] == "random ids"


def test_kernels_that_disagree_with_the_reference_fail(krasis, bench, monkeypatch):
    right = references.dequantize
    monkeypatch.setattr(references, "dequantize", lambda matrix: right(matrix).roll(1, 0))
    found = krasis(*bench)
    assert found.code == 1
    assert "FAIL" in found.out
    assert "nats from the reference" in found.error


def test_logits_that_are_no_numbers_fail(krasis, bench, monkeypatch):
    monkeypatch.setattr(engines.Engine, "logits", lambda self, hidden: torch.full((len(hidden), 8), float("nan")))
    found = krasis(*bench)
    assert found.code == 1
    assert "logits are not finite after 28 tokens" in found.error


@pytest.mark.parametrize("flag", ["--prompt-tokens", "--decode-tokens", "--runs", "--threads"])
def test_impossible_numbers_are_wrong_usage(flag, krasis, bench):
    found = krasis(*bench, flag, 0)
    assert found.code == 2
    assert f"{flag} is 0" in found.error


def test_the_reference_is_not_measured(krasis, bench):
    found = krasis(*bench, "--device", "reference")
    assert found.code == 2
    assert "auto or cpu" in found.error


def test_more_than_the_model_takes_is_refused(krasis, demo_pack):
    found = krasis("bench", demo_pack())
    assert found.code == 3
    assert "10064 tokens (--prompt-tokens, --decode-tokens): at most the model's 4096" in found.error


@pytest.mark.parametrize("module", [limits, engines], ids=["reading", "running"])
def test_what_does_not_fit_memory_is_refused(module, krasis, bench, monkeypatch):
    monkeypatch.setattr(module, "available_ram", lambda: 1 << 16)
    found = krasis(*bench)
    assert found.code == 4
    assert "are available" in found.error
