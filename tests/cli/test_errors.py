"""Every error is one line on stderr, without a traceback, and its exit code says which kind it is."""

import errno
import io
import json
import os
import shutil
import sys

import pytest

from krasis.errors import InputError
from krasis.pack import writer
from krasis.pack.reader import Pack
from krasis.runtime import engine

USAGE, BAD_INPUT, NO_FIT, FAILED = 2, 3, 4, 1


@pytest.fixture
def copied(demo_pack, tmp_path):
    """A pack to break."""
    return shutil.copytree(demo_pack(), tmp_path / "pack")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("run", "PACK", "--nope"), "--nope"),
        (("run", "PACK"), "no prompt"),
        (("run", "PACK", "--json"), "no prompt"),
        (("run",), "Missing argument"),
        (("run", "PACK", "--prompt"), "--prompt"),
        (("run", "PACK", "--prompt", "x", "--max-tokens", "many"), "--max-tokens"),
        (("run", "PACK", "--prompt", "x", "--max-tokens", "0"), "--max-tokens"),
        (("run", "PACK", "--prompt", "x", "--context", "0"), "--context"),
        (("run", "PACK", "--prompt", "x", "--context", "-5"), "--context"),
        (("run", "PACK", "--prompt", "x", "--threads", "0"), "--threads"),
        (("run", "PACK", "--prompt", "x", "--temperature", "-1"), "--temperature"),
        (("run", "PACK", "--prompt", "x", "--temperature", "nan"), "--temperature"),
        (("run", "PACK", "--prompt", "x", "--top-p", "0"), "--top-p"),
        (("run", "PACK", "--prompt", "x", "--seed", "-1"), "--seed"),
        (("run", "PACK", "--prompt", "x", "--seed", str(1 << 70)), "--seed"),
        (("run", "PACK", "--prompt", "x", "--vram", "16Gi"), "16Gi"),
        (("run", "PACK", "--prompt", "x", "--device", "tpu"), "--device"),
        (("run", "PACK", "--prompt", "x", "--raw", "--system", "y"), "--system"),
        (("eval", "PACK"), "--text"),
        (("eval", "PACK", "--text", "TEXT", "--window", "1"), "--window"),
        (("eval", "PACK", "--text", "TEXT", "--tokens", "1"), "--tokens"),
        (("eval", "PACK", "--text", "TEXT", "--path", "both"), "--path"),
        (("profile-heat", "PACK", "--text", "TEXT", "--name", "a", "--out", "b"), "--out"),
        (("convert", "HUB"), "Missing argument"),
        (("convert", "HUB", "new", "--expert-bits", "5"), "--expert-bits"),
        (("convert", "HUB", "new", "--expert-codec", "fp8"), "--expert-codec"),
        (("convert", "HUB", "new", "--expert-codec", "int8", "--expert-bits", "4"), "--expert-bits"),
        (("convert", "HUB", "new", "--group-size", "48"), "--group-size"),
        (("convert", "HUB", "new", "--layouts", "cpu,gpu"), "--layouts"),
        (("convert", "HUB", "new", "--jobs", "0"), "--jobs"),
        (("convert", "HUB", "new", "--preset", "worst"), "--preset"),
        (("convert", "HUB", "new", "--w2-codec", "mxfp4"), "--w2-codec"),
        (("convert", "HUB", "new", "--w2-group-size", "16"), "--w2-group-size"),
        (("convert", "HUB", "new", "--preset", "best", "--expert-bits", "8"), "--preset best is for INT4 experts"),
        (("convert", "HUB", "PACK"), "exists"),
        (("convert", "HUB", "new", "--discard-source"), "--discard-source"),
        (("verify", "PACK", "--jobs", "0"), "--jobs"),
        (("bake",), "bake"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage(arguments, names, krasis, demo, demo_pack, texts):
    known = {"PACK": demo_pack(), "HUB": demo, "TEXT": texts[0]}
    found = krasis(*(known.get(word, word) for word in arguments))
    assert found.code == USAGE
    assert found.out == ""
    assert names in found.error


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_no_such_pack(command, krasis, tmp_path):
    found = krasis(command, tmp_path / "none")
    assert (found.code, "no such pack" in found.error) == (BAD_INPUT, True)


@pytest.mark.parametrize("command", [("inspect",), ("verify",), ("run", "--prompt", "x")], ids=" ".join)
def test_a_truncated_layer_is_found_on_opening(command, krasis, copied):
    path = copied / "layer-001.bin"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    found = krasis(command[0], copied, *command[1:])
    assert found.code == BAD_INPUT
    assert "truncated" in found.error
    assert "layer-001.bin" in found.error


def test_a_flipped_bit_is_found_and_its_record_named(krasis, copied):
    file, segment = next((f, s) for f, s in Pack(copied).manifest.segments() if s.name == "layers.2.experts")
    content = bytearray((copied / file.name).read_bytes())
    content[segment.offset + 5 * segment.record_bytes + 17] ^= 1
    (copied / file.name).write_bytes(content)
    found = krasis("verify", copied)
    assert found.code == BAD_INPUT
    assert f"layers.2.experts[5]@{segment.layout} in layer-002.bin" in found.error
    assert "and " not in found.error.split(" in ")[1].split(":")[0]


def test_every_broken_record_is_named(krasis, copied):
    path = copied / "layer-003.bin"
    content = bytearray(path.read_bytes())
    segments = [segment for _, segment in Pack(copied).manifest.segments() if segment.name == "layers.3.experts"]
    for segment, index in zip(segments, (2, 9), strict=True):
        content[segment.offset + index * segment.record_bytes] ^= 1
    path.write_bytes(content)
    names = [f"{s.name}[{i}]@{s.layout} in layer-003.bin" for s, i in zip(segments, (2, 9), strict=True)]
    found = krasis("verify", copied)
    assert (found.code, found.out.splitlines()) == (BAD_INPUT, [f"broken: {name}" for name in names])
    assert "and 1 more" in found.error
    found = krasis("verify", copied, "--json")
    assert found.code == BAD_INPUT
    assert (json.loads(found.out)["ok"], json.loads(found.out)["broken"]) == (False, names)


def test_a_changed_checkpoint_is_named(krasis, demo, demo_pack, tmp_path):
    hub = shutil.copytree(demo, tmp_path / "hub")
    shard = hub / "model-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    found = krasis("verify", demo_pack(), "--against", hub)
    assert found.code == BAD_INPUT
    assert "what the checkpoint gives" in found.error
    assert "changed: model-00002-of-00002.safetensors" in found.out


def test_a_partial_pack_is_no_pack(krasis, copied):
    partial = copied.rename(copied.with_name("pack.partial"))
    found = krasis("run", partial, "--prompt", "x")
    assert (found.code, "unfinished pack" in found.error) == (BAD_INPUT, True)


def test_a_truncated_checkpoint(krasis, demo, tmp_path):
    hub = shutil.copytree(demo, tmp_path / "hub")
    shard = hub / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    found = krasis("convert", hub, tmp_path / "pack")
    assert (found.code, "not a safetensors file" in found.error) == (BAD_INPUT, True)
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_another_family(krasis, demo, tmp_path):
    hub = shutil.copytree(demo, tmp_path / "hub")
    config = (hub / "config.json").read_text().replace('"model_type": "qwen3_moe"', '"model_type": "llama"')
    (hub / "config.json").write_text(config)
    found = krasis("convert", hub, tmp_path / "pack")
    assert (found.code, "'llama'" in found.error, "qwen3_moe" in found.error) == (BAD_INPUT, True, True)


def test_a_source_that_is_nowhere(krasis, tmp_path):
    found = krasis("convert", tmp_path / "none", tmp_path / "pack")
    assert (found.code, "no such checkpoint" in found.error) == (BAD_INPUT, True)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "can't read the text"), (b"a\xffb", "not UTF-8 text: byte 1"), (b"", "too short")]
)
def test_texts_that_are_none(content, says, krasis, demo_pack, tmp_path):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    found = krasis("eval", demo_pack(), "--text", path)
    assert (found.code, says in found.error) == (BAD_INPUT, True)


def test_too_little_text_for_heat(krasis, demo_pack, texts, tmp_path):
    found = krasis("profile-heat", demo_pack(), "--text", texts[0], "--tokens", 1000, "--out", tmp_path / "heat")
    assert (found.code, "too little text" in found.error) == (BAD_INPUT, True)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--prompt", "", "--raw"), "the prompt is empty"),
        (("--prompt", "a\udcff"), "not Unicode"),
        (("--prompt", "x", "--context", "3"), "the conversation takes"),
        (("--prompt", "x", "--max-tokens", "5000"), "at most the model's 4096"),
        (("--prompt", "x", "--layout", "gpu"), "gpu"),
        (("--prompt", "x", "--heat", "none"), "no heat profile 'none'"),
        (("--prompt", "x", "--heat", "../x"), "heat profile name"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_met(flags, says, krasis, demo_pack):
    found = krasis("run", demo_pack(), *flags)
    assert (found.code, found.out) == (BAD_INPUT, "")
    assert says in found.error


def test_a_prompt_on_stdin_that_is_no_text(krasis, demo_pack, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    found = krasis("run", demo_pack(), "--prompt", "-")
    assert (found.code, "not UTF-8: byte 2" in found.error) == (BAD_INPUT, True)


def test_too_little_disk(krasis, demo, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage)
    found = krasis("convert", demo, tmp_path / "pack")
    assert (found.code, "1000 are free" in found.error) == (NO_FIT, True)
    assert not (tmp_path / "pack").exists()


def test_too_little_memory(krasis, demo_pack, monkeypatch):
    monkeypatch.setattr(engine, "available_ram", lambda: 8 << 20)
    found = krasis("run", demo_pack(), "--prompt", "x", "--context", 4000)
    assert (found.code, "tokens would fit" in found.error) == (NO_FIT, True)


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, NO_FIT), (errno.EIO, FAILED)])
def test_a_disk_that_fails_while_writing(number, code, krasis, demo, tmp_path, monkeypatch):
    def fail(file):
        raise OSError(number, "the disk says no")

    monkeypatch.setattr(os, "fsync", fail)
    found = krasis("convert", demo, tmp_path / "pack")
    assert found.code == code
    assert "the disk" in found.error
    assert not (tmp_path / "pack").exists()


def test_a_profile_that_cannot_be_written(krasis, demo_pack, texts, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file/heat.json.zst"
    found = krasis("profile-heat", demo_pack(), "--text", texts[0], "--tokens", 2048, "--out", out)
    assert (found.code, str(out) in found.error) == (USAGE, True)


def test_debugging_shows_the_traceback(krasis, tmp_path, monkeypatch):
    monkeypatch.setenv("KRASIS_DEBUG", "1")
    with pytest.raises(InputError, match="no such pack"):
        krasis("inspect", tmp_path / "none")


def test_control_characters_of_a_pack_do_not_reach_the_terminal(krasis, copied):
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text().replace("{", '{"\\u001b[31mred": 1,', 1))
    result = krasis("inspect", copied)
    assert result.code == BAD_INPUT
    assert "[31mred" in result.error
    assert "\x1b" not in result.err
