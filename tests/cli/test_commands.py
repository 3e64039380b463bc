"""Every command from checkpoint to text, and the keys of its JSON as docs/cli.md lists them."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from krasis import __version__
from krasis.convert.compare import INT4_TOLERANCE
from krasis.pack.reader import Pack

CONVERT = {"pack", "root_hash", "bytes", "seconds"}
DRY_RUN = {"model_type", "source_bytes", "bytes", "padding_bytes", "files", "sizes", "matrices", "estimate"}
INSPECT = {
    "model_type",
    "format_version",
    "tool",
    "total_bytes",
    "padding_bytes",
    "expert_bits",
    "dense_bits",
    "group_size",
    "layouts",
    "settings",
    "layers",
    "experts",
    "heat",
    "root_hash",
    "sizes",
    "matrices",
    "source",
}
MATRIX = {
    "kind",
    "codec",
    "group_size",
    "shape",
    "padded_shape",
    "count",
    "bytes",
    "rel_rms_error",
    "worst_rel_rms_error",
    "weighted_rel_rms_error",
    "worst_weighted_rel_rms_error",
}
VERIFY = {"ok", "bytes", "broken", "root_hash", "seconds", "bytes_per_s"}
EVAL = {"nll", "tokens", "files", "path", "device"}
PROFILE_HEAT = {"tokens", "decode_tokens", "held_out_tokens", "layers", "coverage", "profile", "evaluation"}
PROFILE_HEAT |= {"imatrix", "plot", "report"}
RUN = {
    "text",
    "token_ids",
    "prompt_tokens",
    "finish_reason",
    "prefill_tok_s",
    "ttft_s",
    "decode_tok_s",
    "ms_per_token",
    "hit_rate",
    "drafted",
    "accepted",
    "seed",
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Where the first test converts to and the others read from."""
    return tmp_path_factory.mktemp("cli") / "pack"


@pytest.fixture
def converted(pack, krasis, demo):
    if not pack.exists():
        krasis("convert", demo, pack)
    return pack


def test_convert(krasis, demo, pack, demo_pack):
    found = krasis("convert", demo, pack, "--jobs", 2, "--json").json
    assert found.keys() == CONVERT
    assert found["root_hash"] == Pack(demo_pack(layouts=("marlin",))).manifest.root
    assert found["bytes"] == sum(path.stat().st_size for path in pack.glob("*.bin"))


def test_dry_run_writes_nothing(krasis, demo, converted, tmp_path):
    found = krasis("convert", demo, tmp_path / "pack", "--dry-run", "--json").json
    assert found.keys() == DRY_RUN
    assert all(matrix.keys() == MATRIX for matrix in found["matrices"])
    assert found["bytes"] == Pack(converted).manifest.weight_bytes
    inspected = krasis("inspect", converted, "--json").json
    for key in ("padding_bytes", "sizes"):
        assert found[key] == inspected[key]
    assert found["estimate"].keys() == {"jobs", "seconds", "memory_bytes", "rates"}
    assert found["estimate"]["seconds"] > 0
    assert not list(tmp_path.iterdir())


EXPERTS = {
    (): ("mxfp4", 32),
    ("--expert-bits", "4", "--group-size", "64"): ("mxfp4", 32),
    ("--expert-bits", "8"): ("int8", 32),
    ("--expert-codec", "int8"): ("int8", 32),
    ("--expert-codec", "int4"): ("int4", 128),
    ("--expert-codec", "int4", "--expert-bits", "4", "--group-size", "64"): ("int4", 64),
}


@pytest.mark.parametrize("options", EXPERTS, ids=" ".join)
def test_dry_run_shows_what_becomes_of_mxfp4_experts(options, krasis, example, tmp_path):
    found = krasis("convert", example("gpt_oss"), tmp_path / "pack", "--dry-run", "--json", *options).json
    experts = {(m["codec"], m["group_size"]) for m in found["matrices"] if m["kind"].startswith("experts.")}
    assert experts == {EXPERTS[options]}


def test_floats_become_mxfp4_where_asked(krasis, demo, tmp_path):
    found = krasis("convert", demo, tmp_path / "pack", "--dry-run", "--json", "--expert-codec", "mxfp4").json
    experts = {(m["codec"], m["group_size"]) for m in found["matrices"] if m["kind"].startswith("experts.")}
    assert experts == {("mxfp4", 32)}


def test_inspect(krasis, converted, demo):
    found = krasis("inspect", converted, "--json").json
    assert found.keys() == INSPECT
    assert all(matrix.keys() == MATRIX for matrix in found["matrices"])
    assert (found["model_type"], found["layers"], found["experts"]) == ("qwen3_moe", 4, 16)
    assert (found["expert_bits"], found["dense_bits"], found["group_size"]) == (4, 8, 128)
    assert found["layouts"] == ["marlin"]
    asked = {"expert_bits": 4, "dense_bits": 8, "group_size": 128, "layouts": ["marlin"], "preset": "fast"}
    assert found["settings"] == asked | dict.fromkeys(("w2_codec", "w2_group_size", "imatrix"))
    assert sum(found["sizes"].values()) == found["total_bytes"] > found["padding_bytes"] > 0
    sources = {entry["name"]: entry["sha256"] for entry in found["source"]}
    assert sources == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in demo.glob("*.safetensors")}
    kinds = {matrix["kind"]: matrix for matrix in found["matrices"]}
    assert {"experts.w13", "experts.w2", "dense.q", "head.lm_head"} <= kinds.keys()
    # Gate over up, 96 wide and padded to 128 each; INT4 loses about a tenth, INT8 under a hundredth.
    assert (kinds["experts.w13"]["shape"], kinds["experts.w13"]["padded_shape"]) == ([192, 256], [256, 256])
    assert 0.03 < kinds["experts.w13"]["rel_rms_error"] < 0.15
    assert 0 < kinds["dense.q"]["rel_rms_error"] < 0.01


def test_verify(krasis, converted):
    found = krasis("verify", converted, "--json").json
    assert found.keys() == VERIFY
    assert (found["ok"], found["broken"]) == (True, [])
    assert found["bytes"] == Pack(converted).manifest.total_bytes


@pytest.mark.parametrize("jobs", [(), ("--jobs", 3)], ids=str)
def test_verify_against_the_checkpoint(jobs, krasis, converted, demo):
    found = krasis("verify", converted, "--against", demo, *jobs, "--json").json
    assert found.keys() == VERIFY | {"against"}
    assert found["ok"]
    against = found["against"]
    assert against.keys() == {"tensors", "wrong", "changed_files", "worst"}
    assert (against["wrong"], against["changed_files"]) == ({}, [])
    stated = max(matrix["worst_rel_rms_error"] for matrix in krasis("inspect", converted, "--json").json["matrices"])
    assert against["worst"][0]["rel_rms_error"] == pytest.approx(stated, abs=INT4_TOLERANCE)


def test_eval(krasis, converted, texts):
    found = krasis("eval", converted, "--text", *texts, "--tokens", 600, "--window", 256, "--json").json
    assert found.keys() == EVAL
    assert found["files"].keys() == {path.name for path in texts}
    # Windows of 256, 256 and 88 tokens, each scored but for its first.
    assert {entry["tokens"] for entry in found["files"].values()} == {597}
    assert found["tokens"] == 3 * 597
    assert found["nll"] == pytest.approx(sum(entry["nll"] for entry in found["files"].values()) / 3)
    assert (found["path"], found["device"]) == ("prefill", "cpu")


def test_eval_on_the_reference_token_by_token(krasis, converted, texts):
    arguments = ("eval", converted, "--text", texts[0], "--tokens", 100, "--json")
    found = krasis(*arguments, "--device", "reference", "--path", "decode").json
    assert (found["path"], found["device"]) == ("decode", "reference")
    assert found["nll"] == pytest.approx(krasis(*arguments).json["nll"], abs=0.02)


def test_profile_heat(krasis, converted, texts):
    found = krasis("profile-heat", converted, "--text", *texts, "--tokens", 2048, "--name", "demo", "--json").json
    assert found.keys() == PROFILE_HEAT
    # One of the four windows of each text is held out.
    assert (found["tokens"], found["held_out_tokens"], found["layers"]) == (3 * 1536, 3 * 512, 4)
    coverage = [found["coverage"][share] for share in ("10", "20", "30")]
    assert found["coverage"].keys() == {"10", "20", "30"}
    assert coverage == sorted(coverage)
    assert all(share < mass <= 1 for share, mass in zip((0.1, 0.2, 0.3), coverage, strict=True))
    assert krasis("inspect", converted, "--json").json["heat"] == ["demo"]
    assert krasis("verify", converted).code == 0


def test_profile_heat_to_a_file_leaves_the_pack_alone(krasis, demo_pack, texts, tmp_path):
    out = tmp_path / "heat.json.zst"
    found = krasis("profile-heat", demo_pack(), "--text", texts[0], "--tokens", 2048, "--out", out, "--json").json
    assert found["profile"] == str(out)
    assert out.is_file()
    assert found["imatrix"] is None
    assert not (demo_pack() / "heat").exists()


def test_an_imatrix_of_one_pack_makes_another(krasis, demo, demo_pack, texts, tmp_path):
    imatrix, heat, pack = tmp_path / "demo.imatrix", tmp_path / "heat.json.zst", tmp_path / "pack"
    arguments = ("--text", *texts, "--tokens", 2048, "--out", heat, "--imatrix", imatrix, "--json")
    assert krasis("profile-heat", demo_pack(), *arguments).json["imatrix"] == str(imatrix)
    krasis("convert", demo, pack, "--imatrix", imatrix)
    settings = json.loads((pack / "manifest.json").read_bytes())["settings"]
    sha256 = hashlib.sha256(imatrix.read_bytes()).hexdigest()
    found = {key: settings[key] for key in ("preset", "w2_codec", "w2_group_size", "imatrix")}
    assert found == {"preset": "balanced", "w2_codec": None, "w2_group_size": 32, "imatrix": sha256}


@pytest.mark.parametrize(
    ("flags", "w2"),
    [
        ((), ("int4", 128)),
        (("--preset", "balanced"), ("int4", 32)),
        (("--preset", "best"), ("int8", 128)),
        (("--preset", "best", "--w2-group-size", 32), ("int8", 32)),
        (("--preset", "balanced", "--w2-codec", "int8", "--group-size", 64), ("int8", 32)),
        (("--w2-codec", "int8", "--group-size", 64), ("int8", 64)),
    ],
)
def test_flags_of_w2_override_the_preset(krasis, demo, tmp_path, flags, w2):
    matrices = krasis("convert", demo, tmp_path / "pack", *flags, "--dry-run", "--json").json["matrices"]
    assert [(m["codec"], m["group_size"]) for m in matrices if m["kind"] == "experts.w2"] == [w2]


def test_run(krasis, run_tokens):
    found = krasis(*run_tokens, "--json").json
    assert found.keys() == RUN
    assert (len(found["token_ids"]), found["finish_reason"], found["hit_rate"]) == (24, "length", None)
    assert found["ttft_s"] > 0
    assert found["ms_per_token"] == pytest.approx(1000 / found["decode_tok_s"])
    assert found["prefill_tok_s"] == pytest.approx(found["prompt_tokens"] / found["ttft_s"])


def test_without_json_people_can_read_it(krasis, converted, demo, texts, tmp_path):
    inspected = krasis("inspect", converted).out
    assert "experts.w13" in inspected
    assert max(map(len, inspected.splitlines())) <= 100
    assert "root" in krasis("verify", converted).out
    assert "nats/token over 99 tokens" in krasis("eval", converted, "--text", texts[0], "--tokens", 100).out
    planned = krasis("convert", demo, tmp_path / "pack", "--dry-run").out
    assert "experts.w13" in planned
    assert "about" in planned
    assert max(map(len, planned.splitlines())) <= 100
    assert "as far from the checkpoint as stated" in krasis("verify", converted, "--against", demo).out


def test_version_and_help(krasis):
    assert krasis("--version").out == f"krasis {__version__}\n"
    helped = krasis("--help")
    assert helped.code == 0
    for command in ("convert", "inspect", "verify", "eval", "profile-heat", "run"):
        assert command in helped.out


def test_the_real_process_does_the_same(converted, run_tokens, krasis):
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "krasis", "run", converted, *map(str, run_tokens[2:]), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["token_ids"] == krasis(*run_tokens, "--json").json["token_ids"]
