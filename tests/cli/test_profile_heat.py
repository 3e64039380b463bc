"""krasis profile-heat: phases, conversations, going on after a stop, merging."""

import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest
import zstandard

from krasis.heat import profile
from krasis.pack.disk import lock_folder
from krasis.pack.reader import Pack

USAGE, BAD_INPUT, INTERRUPTED = 2, 3, 130
SAVING_ALWAYS = "from krasis.heat import partial; partial.SAVED_EVERY_S = 0; from krasis.cli import main; main()"


@pytest.fixture
def heat(krasis, demo_pack, tmp_path):
    """(arguments) -> the profile of a run on the pack that will do for most, and its bytes."""

    def run(*arguments, pack=None, name="heat"):
        out = tmp_path / f"{name}.json.zst"
        found = krasis("profile-heat", pack or demo_pack(), *arguments, "--out", out, "--json").json
        assert [path.name for path in tmp_path.glob(f"{name}.json.zst*")] == [out.name]
        return found, out

    return run


def read(path, pack):
    return profile.read(path, Pack(pack).manifest)


def test_phases_are_apart(heat, demo_pack, texts):
    found, out = heat("--text", *texts, "--tokens", 1000, "--window", 200, "--decode-tokens", 20)
    stored = read(out, demo_pack())
    # Of the five windows of each text the fourth is held out.
    assert (found["tokens"], found["decode_tokens"], found["held_out_tokens"]) == (2400, 240, 600)
    assert (stored.tokens.prefill, stored.tokens.decode) == (2160, 240)
    assert [(text.tokens, text.held_out) for text in stored.corpus] == [(800, 200)] * 3
    assert {counts.sum() for counts in stored.routing("decode").counts.values()} == {240 * 4}
    assert stored.pack_root == Pack(demo_pack()).manifest.root
    none, _ = heat("--text", *texts, "--tokens", 1000, "--window", 200, "--decode-tokens", 0)
    assert (none["tokens"], none["decode_tokens"]) == (2400, 0)


def test_conversations(heat, demo_pack, tmp_path):
    path = tmp_path / "talk.jsonl"
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because it is. " * 20}]
    path.write_text(f"{json.dumps({'messages': turns})}\n" * 8)
    found, out = heat("--text", path, "--window", 64)
    assert found["held_out_tokens"] > 0
    (text,) = read(out, demo_pack()).corpus
    assert (text.name, text.tokens, text.held_out) == ("talk.jsonl", found["tokens"], found["held_out_tokens"])


def test_the_same_model_in_other_bits_is_accepted(heat, krasis, demo_pack, texts, tmp_path):
    _, out = heat("--text", texts[0], "--tokens", 2048)
    other = demo_pack(expert_bits=8, group_size=64)
    assert Pack(other).manifest.root != Pack(demo_pack()).manifest.root
    assert read(out, other).tokens.prefill > 0
    assert krasis("profile-heat", other, "--merge", out, "--out", tmp_path / "other.json.zst").code == 0


def test_merging_is_profiling_all_texts(heat, krasis, demo_pack, texts):
    parts = [heat("--text", text, "--tokens", 2048, name=text.stem)[1] for text in texts[:2]]
    _, whole = heat("--text", *texts[:2], "--tokens", 2048, name="whole")
    found, merged = heat("--merge", *parts, name="merged")
    assert merged.read_bytes() == whole.read_bytes()
    assert (found["tokens"], found["held_out_tokens"], found["coverage"]) == (3072, 1024, None)
    again = krasis("profile-heat", demo_pack(), "--merge", *parts, parts[0], "--out", merged)
    assert f"{texts[0].name} counts 2 times" in again.err


def test_profiles_of_other_models_are_not_merged(heat, krasis, pack_of, texts, tmp_path):
    _, out = heat("--text", texts[0], "--tokens", 2048)
    found = krasis("profile-heat", pack_of("gpt_oss"), "--merge", out, "--out", tmp_path / "no")
    assert (found.code, "the heat profile is of another model" in found.error) == (BAD_INPUT, True)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "one of --text and --merge"),
        (("--text", "x", "--merge", "y"), "one of --text and --merge"),
        (("--merge", "y", "--imatrix", "z"), "--imatrix"),
        (("--text", "x", "--decode-tokens", -1), "--decode-tokens"),
        (("--text", "x", "--window", 64, "--decode-tokens", 64), "--decode-tokens"),
        (("--text", "x", "--tokens", 1), "--tokens"),
        (("--text", "x", "--window", 1), "--window"),
        (("--text", "x", "--sequences", 0), "--sequences"),
        (("--text", "x", "--sequences", 65), "--sequences"),
    ],
)
def test_wrong_usage(flags, says, krasis, demo_pack, tmp_path):
    found = krasis("profile-heat", demo_pack(), *flags, "--out", tmp_path / "heat")
    assert (found.code, says in found.error) == (USAGE, True)
    assert not list(tmp_path.iterdir())


def windows_done(folder):
    try:
        saved = msgspec.msgpack.decode(zstandard.decompress((folder / "work").read_bytes()))
    except FileNotFoundError:
        return 0
    return sum(text["windows"] for text in saved["texts"])


@pytest.fixture
def stopped(demo_pack, tmp_path):
    """(signal, arguments) -> what a run to `out` says on stderr that gets the signal once something is saved."""

    def run(how, *arguments, out):
        work = out.with_name(out.name + ".partial")
        command = [sys.executable, "-c", SAVING_ALWAYS, "profile-heat", demo_pack(), *map(str, arguments), "--out", out]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while not windows_done(work):
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, how)
            errors = process.stderr.read().decode()
        assert process.returncode == (INTERRUPTED if how == signal.SIGINT else -how)
        assert ("goes on" in errors) == (how == signal.SIGINT)
        assert "Traceback" not in errors
        assert 0 < windows_done(work) < 3 * 12
        assert not out.exists()
        return errors

    return run


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on(how, heat, stopped, texts, tmp_path):
    arguments = ("--text", *texts, "--device", "cpu", "--threads", "1", "--tokens", 6144)
    _, unbroken = heat(*arguments, "--sequences", 1, name="unbroken")
    out = tmp_path / "heat.json.zst"
    stopped(how, *arguments, "--sequences", 3, out=out)
    heat(*arguments, "--sequences", 5)
    assert out.read_bytes() == unbroken.read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_importance_matrix_goes_on(how, krasis, demo_pack, stopped, texts, tmp_path):
    arguments = ("--text", *texts, "--device", "cpu", "--threads", "1", "--tokens", 6144, "--sequences", 3)
    found = []
    for name in ("unbroken", "stopped"):
        outputs = [tmp_path / name / file for file in ("heat.json.zst", "model.imatrix")]
        flags = (*arguments, "--imatrix", outputs[1])
        if name == "stopped":
            errors = stopped(how, *flags, out=outputs[0])
            assert (" s ago" in errors) == (how == signal.SIGINT)
        again = krasis("profile-heat", demo_pack(), *flags, "--out", outputs[0])
        assert (again.code, "starts over" in again.err) == (0, False)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["heat.json.zst", "model.imatrix"]
        found.append([path.read_bytes() for path in outputs])
    assert found[0] == found[1]


def test_sums_of_another_number_of_windows_at_once_start_over(krasis, demo_pack, stopped, texts, tmp_path):
    out = tmp_path / "heat.json.zst"
    arguments = ("--text", texts[0], "--tokens", 6144, "--device", "cpu", "--imatrix", tmp_path / "model.imatrix")
    stopped(signal.SIGKILL, *arguments, "--sequences", 2, out=out)
    found = krasis("profile-heat", demo_pack(), *arguments, "--sequences", 3, "--out", out)
    assert f"{out}.partial starts over: it differs in sequences" in found.err


def test_a_second_run_to_one_destination_is_refused(krasis, demo_pack, texts, tmp_path):
    out = tmp_path / "heat.json.zst"
    work = out.with_name(out.name + ".partial")
    work.mkdir()
    lock = lock_folder(work, "")
    try:
        found = krasis("profile-heat", demo_pack(), "--text", texts[0], "--tokens", 2048, "--out", out)
    finally:
        os.close(lock)
    assert (found.code, f"another profile-heat is measuring this profile ({work})" in found.error) == (USAGE, True)
    assert not out.exists()


def test_the_reference_runs_one_by_one_and_says_so(krasis, demo_pack, texts, tmp_path):
    arguments = ("--text", texts[0], "--tokens", 256, "--window", 64, "--decode-tokens", 2, "--device", "reference")
    found = krasis("profile-heat", demo_pack(), *arguments, "--out", tmp_path / "heat.json.zst")
    assert (found.code, "reference runs one sequence at a time" in found.err) == (0, True)


def test_another_text_starts_over_and_says_so(krasis, demo_pack, texts, tmp_path):
    out = tmp_path / "heat.json.zst"
    work = out.with_name(out.name + ".partial")
    work.mkdir()
    (work / "work").write_bytes(b"no work of ours")
    found = krasis("profile-heat", demo_pack(), "--text", texts[0], "--tokens", 2048, "--out", out)
    assert f"{work} starts over: it can't be read" in found.err
    assert not work.exists()


def test_a_profile_is_scored_drawn_and_reported(krasis, demo_pack, texts, tmp_path):
    plot, report = tmp_path / "heat.svg", tmp_path / "heat.html"
    outputs = ("--out", tmp_path / "heat.json.zst", "--plot", plot, "--report", report)
    found = krasis("profile-heat", demo_pack(), "--text", *texts, "--tokens", 2048, *outputs, "--json").json
    scored = found["evaluation"]
    assert (found["plot"], found["report"]) == (str(plot), str(report))
    assert plot.read_text().startswith("<?xml")
    assert all(text.name in report.read_text() for text in texts)
    assert not list(tmp_path.glob("*.partial*"))
    at = {share["share"]: share["policies"] for share in scored["together"]["shares"]}
    for policies in at.values():
        assert policies["uniform"]["pairs"] < policies["profile"]["pairs"] <= policies["oracle"]["pairs"]
    assert at[0.1]["profile"]["pairs"] == pytest.approx(found["coverage"]["10"])
    experts = Pack(demo_pack()).segment("layers.0.experts", "marlin")
    assert scored["slot_bytes"] == experts.record_bytes
    assert len(scored["transfers"]) == 9


def test_a_profile_covers_nearly_what_an_oracle_does(family, krasis, pack_of, texts, tmp_path):
    out = tmp_path / "heat.json.zst"
    flags = ("--tokens", 4096, "--out", out, "--evaluate", "--json")
    scored = krasis("profile-heat", pack_of(family), "--text", *texts, *flags).json["evaluation"]
    for share in scored["together"]["shares"]:
        assert share["policies"]["profile"]["pairs"] >= 0.99 * share["policies"]["oracle"]["pairs"]
    # A profile of code says little of scripture; a cache that it seeds recovers.
    (foreign,) = (t for t in scored["transfers"] if (t["profile"], t["text"]) == ("dev-code.txt", "dev-scripture.txt"))
    quarter = next(share["policies"] for share in foreign["shares"] if share["share"] == 0.25)
    assert quarter["profile"]["pairs"] < 0.75 * quarter["oracle"]["pairs"]
    assert quarter["seeded_lfu"]["pairs"] > 0.9 * quarter["oracle"]["pairs"]


def test_people_get_tables(krasis, demo_pack, texts, tmp_path):
    out = tmp_path / "heat.json.zst"
    said = krasis("profile-heat", demo_pack(), "--text", *texts[:2], "--tokens", 2048, "--out", out, "--evaluate").out
    for word in ("oracle", "seeded_lfu", "missed, bytes a token", "90% back"):
        assert word in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--plot", "heat.jpg"), "ends in .png or .svg"),
        (("--tokens", 1024, "--evaluate"), "too little text"),
        (("--merge", "a.json.zst", "--report", "a.html"), "--text"),
    ],
    ids=str,
)
def test_what_cannot_be_scored_is_refused_before_it_runs(flags, said, krasis, demo_pack, texts, tmp_path):
    text = () if "--merge" in flags else ("--text", *texts)
    found = krasis("profile-heat", demo_pack(), *text, "--out", tmp_path / "heat.json.zst", *flags)
    assert found.code in (USAGE, BAD_INPUT)
    assert said in found.error
    assert not list(tmp_path.iterdir())
