"""krasis plan: readable, exact, and refused where it does not fit."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from krasis.runtime.rates import REFERENCE

CONFIGS = Path(__file__).parents[1] / "models/configs"
NEXT = CONFIGS / "qwen3-coder-next.json"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No rates are known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def alone(demo_pack, tmp_path):
    """A folder that has the manifest of the bundled model's pack and nothing else."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(demo_pack() / "manifest.json", folder)
    return folder


def test_json_for_one_gpu(krasis):
    found = krasis("plan", "--config", NEXT, "--vram", "16GiB", "--kv", "fp8", "--skew", 0.9, "--json").json
    (device,) = found["vram"]
    assert found["fits"] is True
    assert (device["device"], device["budget"]) == ("cuda:0", 16 << 30)
    purposes = ("dense", "kv", "workspace", "experts", "free")
    assert sum(device[purpose] for purpose in purposes) == device["budget"]
    assert sum(device["workspace_parts"].values()) == device["workspace"]
    assert 0.7 < found["expected_hit_rate"] < 0.85
    assert found["resident_experts"] * 1_622_016 == device["experts"]
    assert found["limits"] == {"prefill": "pcie", "decode": "missed experts", "memory": "vram"}
    assert found["prompt_tokens"] / max(found["prefill_parts"].values()) == found["prefill_tok_s"]
    assert 1 / sum(found["decode_parts"].values()) == found["decode_tok_s"]
    assert found["load_s"] > 0
    assert len(found["layer_hit_rates"]) == 48
    assert found["rates"]["source"] == "assumed"


def test_two_gpus(krasis):
    found = krasis("plan", "--config", NEXT, "--vram", "16GiB,8GiB", "--json").json
    assert [(device["device"], device["budget"] >> 30) for device in found["vram"]] == [("cuda:0", 16), ("cuda:1", 8)]
    assert found["profiled"] is False


def test_options_of_the_pack_to_be_made_count(krasis):
    def experts(*flags):
        return krasis("plan", "--config", NEXT, "--vram", "80GiB", "--json", *flags).json["vram"][0]["experts"]

    assert experts() < experts("--group-size", 64) < experts("--expert-bits", 8)


def test_a_manifest_alone_will_do(alone, krasis):
    assert [path.name for path in alone.iterdir()] == ["manifest.json"]
    found = krasis("plan", alone, "--vram", "4GiB", "--json").json
    assert found["expected_hit_rate"] == 1
    assert found["limits"]["memory"] == "none"
    assert found["context"] == 4096
    on_cpu = krasis("plan", alone, "--json").json
    assert (on_cpu["vram"], on_cpu["expected_hit_rate"], on_cpu["resident_experts"]) == ([], None, 0)
    assert on_cpu["limits"] == {"prefill": "arithmetic", "decode": "host memory", "memory": "none"}
    assert sum(on_cpu["ram_parts"].values()) == on_cpu["ram"]


def test_a_profile_of_the_pack(alone, demo_pack, krasis, texts):
    profile = alone / "heat" / "mine.json.zst"
    text = ("--text", texts[0], "--tokens", 1024, "--window", 128)
    assert krasis("profile-heat", demo_pack(), *text, "--out", profile).code == 0
    (whole,) = krasis("plan", alone, "--vram", "4GiB", "--json").json["vram"]
    room = whole["budget"] - whole["free"] - whole["experts"] // 8
    even, hot = (krasis("plan", alone, "--vram", room, "--json", *heat).json for heat in ((), ("--heat", "mine")))
    assert (even["profiled"], hot["profiled"]) == (False, True)
    assert even["resident_experts"] == hot["resident_experts"] > 0
    assert even["expected_hit_rate"] < hot["expected_hit_rate"] < 1


def test_a_readable_table(krasis):
    found = krasis("plan", "--config", NEXT, "--vram", "16GiB,16GiB", "--skew", 0.9)
    assert found.code == 0
    for word in ("cuda:0", "cuda:1", "expert ring", "budget", "expected hit rate", "tok/s at most", "host memory"):
        assert word in found.out
    assert max(map(len, found.out.splitlines())) <= 100
    (note,) = (line for line in found.err.splitlines() if "assumed" in line)
    assert "measure this machine's with --measure" in note
    on_cpu = krasis("plan", "--config", CONFIGS / "deepseek-v2-lite.json")
    assert "limited by arithmetic" in on_cpu.out
    assert "cuda" not in on_cpu.out


def test_what_does_not_fit_is_refused_with_what_would(krasis):
    large = CONFIGS / "qwen3-235b-a22b.json"
    flags = ("plan", "--config", large, "--context", 40_000, "--json")
    found = krasis(*flags, "--vram", "3GiB")
    assert found.code == 4
    told = json.loads(found.out)
    assert told["fits"] is False
    assert told["error"] in found.error
    least, context = told["would_fit"]["vram"], told["would_fit"]["context"]
    assert krasis(*flags, "--vram", least).json["fits"]
    assert krasis(*flags, "--vram", least - 1).code == 4
    assert krasis(*flags, "--vram", "3GiB", "--context", context).json["fits"]
    assert krasis(*flags, "--vram", "3GiB", "--context", context + 1).code == 4
    short = krasis(*flags, "--vram", "16GiB", "--ram", "1GiB")
    assert short.code == 4
    assert krasis(*flags, "--vram", "16GiB", "--ram", json.loads(short.out)["would_fit"]["ram"]).json["fits"]
    assert krasis("plan", "--config", large, "--ram", "1MiB").code == 4


def test_measured_rates_are_kept_and_used(krasis, monkeypatch, cache):
    mine = msgspec.structs.replace(REFERENCE, source="measured on 2026-01-01", pcie=26e9)
    monkeypatch.setattr("krasis.runtime.measure.measure", lambda: mine)
    flags = ("plan", "--config", NEXT, "--vram", "16GiB", "--json")
    assumed = krasis(*flags).json
    assert not cache.exists()
    assert krasis("plan", "--measure", "--json").json["pcie"] == 26e9
    measured = krasis(*flags)
    assert measured.json["rates"]["source"] == "measured on 2026-01-01"
    assert measured.json["prefill_tok_s"] == pytest.approx(assumed["prefill_tok_s"] / 2)
    assert "assumed" not in measured.err
    (kept,) = (cache / "krasis").iterdir()
    assert krasis(*flags, "--rates", kept).json == measured.json
    assert "machine" in krasis("plan", "--measure").out


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        ((), 2, "nothing to plan for"),
        (("pack", "--config", NEXT), 2, "both a pack and --config"),
        (("--config", NEXT, "--heat", "x"), 2, "--heat goes with a pack"),
        (("--config", NEXT, "--skew", -1), 2, "--skew is -1.0"),
        (("--config", NEXT, "--vram", "lots"), 2, "'lots' is no size"),
        (("--config", NEXT, "--vram", "16GiB,"), 2, "'' is no size"),
        (("--config", NEXT, "--context", 0), 2, "--context is 0"),
        (("--config", NEXT, "--prompt-tokens", 0), 2, "--prompt-tokens is 0"),
        (("--config", NEXT, "--expert-bits", 5), 2, "--expert-bits is 5"),
        (("--config", NEXT, "--measure", "--rates", "x"), 2, "both --measure and --rates"),
        (("--config", NEXT, "--rates", "none.json"), 3, "can't read the rates"),
        (("--config", NEXT, "--vram", "16GiB", "--context", 999_999), 3, "a context of 999999 tokens"),
        (("--config", "none.json"), 3, "can't read the configuration"),
        (("none",), 3, "no such pack"),
    ],
    ids=str,
)
def test_wrong_usage_and_bad_input(flags, code, expected, krasis):
    found = krasis("plan", *flags)
    assert (found.code, found.out) == (code, "")
    assert expected in found.error
