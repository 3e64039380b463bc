"""krasis run: deterministic, stopped where it was told, and saying what the model says."""

import io
import re
import sys

import pytest

from krasis.pack.reader import Pack
from krasis.runtime.tokenizer import Tokenizer


@pytest.fixture
def greedy(krasis, run_tokens):
    return krasis(*run_tokens, "--json").json


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--threads", 1),
        ("--threads", 2),
        ("--layout", "cpu"),
        ("--layout", "marlin"),
        ("--context", 100),
        ("--load", "copied"),
        ("--speculate", "off"),
        ("--speculate", "auto"),
    ],
    ids=str,
)
def test_greedy_tokens_depend_on_nothing(flags, krasis, run_tokens, greedy):
    found = krasis(*run_tokens, *flags, "--json").json
    assert (found["token_ids"], found["text"]) == (greedy["token_ids"], greedy["text"])


def test_the_text_is_that_of_the_tokens(greedy, demo_pack):
    assert greedy["text"] == Tokenizer(Pack(demo_pack())).decode(greedy["token_ids"])


def test_a_function_is_given_a_name_and_arguments(greedy):
    # The model has a few million weights: it has learned what follows "def ", not what functions do.
    assert re.match(r"[A-Za-z_]\w*\(", greedy["text"])


def test_the_text_is_streamed_to_stdout(krasis, run_tokens, greedy):
    found = krasis(*run_tokens)
    assert (found.code, found.out, found.err) == (0, greedy["text"] + "\n", "")


def test_stats_go_to_stderr(krasis, run_tokens, greedy):
    found = krasis(*run_tokens, "--stats")
    assert found.out == greedy["text"] + "\n"
    assert "tok/s" in found.err
    assert "backend cpu" in found.err


def test_a_seed_repeats_a_sample(krasis, run_tokens):
    sample = (*run_tokens, "--temperature", 1, "--json", "--seed")
    first, again, other = (krasis(*sample, seed).json for seed in (1, 1, 2))
    assert first["token_ids"] == again["token_ids"]
    assert first["token_ids"] != other["token_ids"]
    assert (first["seed"], other["seed"]) == (1, 2)


def test_a_drawn_seed_is_told_and_repeats_the_sample(krasis, run_tokens):
    drawn = krasis(*run_tokens, "--temperature", 1, "--json").json
    again = krasis(*run_tokens, "--temperature", 1, "--seed", drawn["seed"], "--json").json
    assert again["token_ids"] == drawn["token_ids"]


@pytest.mark.parametrize("filters", [("--top-k", 1), ("--top-p", 1e-6), ("--min-p", 1)], ids=str)
def test_the_narrowest_filters_are_greedy(filters, krasis, run_tokens, greedy):
    found = krasis(*run_tokens, "--temperature", 2, *filters, "--json").json
    assert found["token_ids"] == greedy["token_ids"]


def test_a_stop_text_ends_the_answer_before_it(krasis, run_tokens, greedy):
    stop = greedy["text"][9:12]
    found = krasis(*run_tokens, "--stop", "never said", "--stop", stop, "--json").json
    assert found["text"] == greedy["text"][: greedy["text"].index(stop)]
    assert found["finish_reason"] == "stop"
    assert found["token_ids"] == greedy["token_ids"][: len(found["token_ids"])]
    assert len(found["token_ids"]) < len(greedy["token_ids"])


def test_one_token_has_no_decode_speed(krasis, run_tokens, greedy):
    found = krasis(*run_tokens[:-1], 1, "--json").json
    assert found["token_ids"] == greedy["token_ids"][:1]
    assert (found["finish_reason"], found["decode_tok_s"], found["ms_per_token"]) == ("length", None, None)


def test_drafts_are_counted(krasis, run_tokens):
    prompt = "def f(x):\n    return x\n" * 8
    arguments = (*run_tokens[:6], prompt, "--max-tokens", 100, "--json")
    found, without = (krasis(*arguments, "--speculate", how).json for how in ("auto", "off"))
    assert found["token_ids"] == without["token_ids"]
    # How many depends on how long passes take.
    assert 0 <= found["accepted"] <= found["drafted"] > 0
    assert (without["accepted"], without["drafted"]) == (0, 0)


def test_the_prompt_may_come_from_stdin(krasis, run_tokens, greedy, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"def ")))
    found = krasis("run", run_tokens[1], "--raw", "--prompt", "-", "--max-tokens", 24, "--json").json
    assert found["token_ids"] == greedy["token_ids"]


def test_a_chat_template_surrounds_the_prompt(krasis, demo_pack):
    tokenizer = Tokenizer(Pack(demo_pack()))
    arguments = ("run", demo_pack(), "--prompt", "hello", "--max-tokens", 2, "--json")
    user = {"role": "user", "content": "hello"}
    assert krasis(*arguments).json["prompt_tokens"] == len(tokenizer.chat([user]))
    both = [{"role": "system", "content": "be brief"}, user]
    assert krasis(*arguments, "--system", "be brief").json["prompt_tokens"] == len(tokenizer.chat(both))


@pytest.mark.parametrize("kv", ["f32", "bf16", "fp8"])
def test_every_cache_precision_runs(kv, krasis, run_tokens):
    assert len(krasis(*run_tokens, "--kv", kv, "--json").json["token_ids"]) == 24


def test_the_reference_starts_as_the_kernels_do(krasis, run_tokens, greedy):
    # Rounded activations may part their ways later, where two tokens are all but equally likely.
    found = krasis(*run_tokens, "--device", "reference", "--json").json
    assert found["token_ids"][:4] == greedy["token_ids"][:4]


def test_flags_without_effect_on_the_cpu_say_so(krasis, run_tokens):
    found = krasis(*run_tokens, "--vram", "16GiB", "--json")
    assert found.json["token_ids"]
    assert found.err == "note: --vram has no effect on the CPU\n"
