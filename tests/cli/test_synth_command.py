"""krasis synth: a pack that every other command takes."""

import json

import pytest

from krasis.pack.reader import Pack


@pytest.fixture
def made(krasis, demo, tmp_path):
    """Flags -> what synth of the bundled model's configuration said."""
    return lambda *flags: krasis("synth", demo / "config.json", tmp_path / "pack", "--layers", 2, *flags)


def test_other_commands_take_the_pack(made, krasis, tmp_path, texts):
    assert made().code == 0
    pack = tmp_path / "pack"
    assert krasis("verify", pack, "--json").json["ok"]
    assert krasis("inspect", pack, "--json").json["layers"] == 2
    run = ("run", pack, "--device", "cpu", "--max-tokens", 8, "--json", "--prompt", "def f(x):")
    raw, chat = krasis(*run, "--raw").json, krasis(*run).json
    assert len(raw["token_ids"]) == len(chat["token_ids"]) == 8
    assert raw["prompt_tokens"] < len("def f(x):")
    heat = krasis("profile-heat", pack, "--text", texts[0], "--tokens", 1024, "--window", 128, "--json").json
    assert heat["layers"] == 2
    assert 0.2 < heat["coverage"]["20"] < 0.8


def test_json(made, tmp_path):
    found = made("--json").json
    manifest = Pack(tmp_path / "pack").manifest
    assert found.pop("seconds") > 0
    assert found == {"pack": str(tmp_path / "pack"), "root_hash": manifest.root, "bytes": manifest.weight_bytes}


def test_flags_reach_the_pack(made, tmp_path):
    flags = ("--expert-bits", 8, "--dense-bits", 16, "--group-size", 64, "--layouts", "cpu", "--vocab", 500)
    assert made(*flags, "--skew", 0.5, "--seed", 7, "--jobs", 1).code == 0
    manifest = Pack(tmp_path / "pack").manifest
    settings = manifest.settings
    assert (settings.expert_bits, settings.dense_bits, settings.group_size, settings.layouts) == (8, 16, 64, ("cpu",))
    assert manifest.model["vocab_size"] == 500
    assert "skew 0.5, seed 7" in manifest.tool


def test_the_same_command_makes_the_same_pack(made):
    first = made("--jobs", 1, "--json").json
    assert made("--jobs", 3, "--force", "--json").json["root_hash"] == first["root_hash"]


def test_a_folder_is_taken_for_its_configuration(krasis, example, tmp_path):
    found = krasis("synth", example("gpt_oss"), tmp_path / "pack", "--layers", 1, "--json")
    assert found.code == 0
    # Its configuration says that experts are MXFP4.
    matrices = krasis("inspect", tmp_path / "pack", "--json").json["matrices"]
    assert {m["codec"] for m in matrices if m["kind"].startswith("experts")} == {"mxfp4"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--skew", -1), "error: --skew is -1.0: 0, which is even, to 4"),
        (("--skew", "nan"), "error: --skew is nan: 0, which is even, to 4"),
        (("--layers", 5), "error: --layers is 5: 1 to 4"),
        (("--seed", -1), "error: --seed is -1: 0 or more, below 2^63"),
        (("--jobs", 0), "error: --jobs is 0: 1 to 1024"),
        (("--expert-codec", "int5"), "error: --expert-codec is int5: auto, int4, int8, mxfp4, bf16"),
    ],
    ids=str,
)
def test_wrong_usage(flags, expected, made, tmp_path):
    found = made(*flags)
    assert (found.code, found.error) == (2, expected)
    assert not list(tmp_path.iterdir())


def test_an_existing_pack_is_kept_without_force(made):
    assert made().code == 0
    found = made("--seed", 1)
    assert (found.code, "the destination exists" in found.error) == (2, True)


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"model_type": "llama"})])
def test_what_is_no_configuration_is_bad_input(text, krasis, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    found = krasis("synth", path, tmp_path / "pack")
    assert (found.code, found.out) == (3, "")
    assert found.error
    assert krasis("synth", tmp_path / "none.json", tmp_path / "pack").code == 3
