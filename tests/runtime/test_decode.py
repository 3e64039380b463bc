"""Tokens come as plain steps would give them, however far ahead the engine is, and wherever one stops."""

import functools
from contextlib import closing
from itertools import islice

import pytest
from cuda_devices import DEVICES
from hybrid_engines import hybrid_engine
from msgspec.structs import replace

from krasis.errors import FitError, KrasisError
from krasis.pack.reader import Pack
from krasis.runtime.decode import decode
from krasis.runtime.drafts import Drafter, Learnt, Planned
from krasis.runtime.generate import generate
from krasis.runtime.rates import REFERENCE
from krasis.runtime.sampler import Sampler, Sampling
from krasis.runtime.tokenizer import Tokenizer

CONTEXT, PROMPTED, MOST = 96, 8, 6
GREEDY, DRAWN = Sampling(), Sampling(temperature=0.8, top_k=50, top_p=0.9, seed=3)


@pytest.fixture(scope="module", params=["native", *DEVICES])
def opened(request, open_engine):
    """pack -> an engine: the CPU's, and those of a GPU, on which half of the experts lie. Each has one sequence."""
    engines = []

    @functools.cache
    def make(path, context=CONTEXT, **options):
        if request.param == "native":
            return open_engine(path, context=context)
        engines.append(hybrid_engine(path, request.param, 0.5, context, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def prompt(text_ids):
    return text_ids["dev-code.txt"][:PROMPTED]


def plain(engine, prompt, sampling, most=MOST):
    """One step after the other, each waited for."""
    state, choose = engine.new_state(), Sampler(sampling)
    found = [int(choose(engine.last_logits(prompt, state), len(prompt)))]
    while len(found) < most:
        found.append(int(choose(engine.last_logits(found[-1:], state), len(prompt) + len(found))))
    return found


def check_tokens(engine, prompt, sampling):
    expected, state = plain(engine, prompt, sampling), engine.new_state()
    assert list(decode(engine, prompt, state, Sampler(sampling), most=MOST)) == expected
    assert state.position == PROMPTED + MOST - 1
    assert list(decode(engine, prompt, engine.new_state(), Sampler(sampling), most=1)) == expected[:1]


def test_tokens_are_those_of_plain_steps(family, pack_of, opened, prompt):
    check_tokens(opened(pack_of(family)), prompt, GREEDY)


def test_so_are_tokens_that_are_drawn(demo_pack, opened, prompt):
    check_tokens(opened(demo_pack()), prompt, DRAWN)


def test_the_next_token_is_begun_before_one_is_asked_for(demo_pack, opened, prompt, monkeypatch):
    engine, steps = opened(demo_pack()), []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda ids, state: steps.append(ids) or step(ids, state))
    for given, _ in enumerate(decode(engine, prompt, engine.new_state(), Sampler(GREEDY), most=4)):
        # The first is given before anything follows, and after the last nothing does.
        assert len(steps) == (min(given + 1, 3) if given and engine.runs_ahead else given)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v2"])
def test_a_sequence_goes_on_where_it_was_left(family, pack_of, opened, prompt):
    engine = opened(pack_of(family))
    state, given = engine.new_state(), []
    with closing(decode(engine, prompt, state, Sampler(GREEDY), most=MOST)) as tokens:
        for token in tokens:
            given.append(token)
            if len(given) == 3:
                break
    assert state.position == PROMPTED + 2
    assert given + list(decode(engine, given[-1:], state, Sampler(GREEDY), most=2)) == plain(engine, prompt, GREEDY, 5)


def test_recurrent_layers_do_not_go_on_with_what_they_can_not_forget(pack_of, opened, prompt):
    engine = opened(pack_of("qwen3_next"))
    state = engine.new_state()
    tokens = decode(engine, prompt, state, Sampler(GREEDY), most=MOST)
    given = [next(tokens), next(tokens)]
    tokens.close()
    if engine.runs_ahead:
        with pytest.raises(KrasisError, match="recurrent layers remember"):
            engine.last_logits(given[-1:], state)
    else:
        engine.last_logits(given[-1:], state)
        assert state.position == PROMPTED + 2
    assert list(decode(engine, prompt, engine.new_state(), Sampler(GREEDY), most=2)) == given


def test_tokens_up_to_the_end_of_the_context_are_given(demo_pack, opened, prompt):
    engine = opened(demo_pack(), context=PROMPTED + 3)
    expected, tokens = (
        plain(engine, prompt, GREEDY, 4),
        decode(engine, prompt, engine.new_state(), Sampler(GREEDY), most=MOST),
    )
    assert [next(tokens) for _ in range(4)] == expected
    with pytest.raises(FitError, match=f"needs {PROMPTED + 4} positions"):
        next(tokens)


def test_a_cpu_that_does_not_answer_is_told_within_two_tokens(demo_pack, opened, prompt):
    engine = opened(demo_pack(), timeout=0.2, rates=replace(REFERENCE, pcie=1.0))
    if not engine.runs_ahead:
        pytest.skip("no GPU waits for it")
    tokens = decode(engine, prompt, engine.new_state(), Sampler(GREEDY), most=MOST)
    next(tokens)
    engine._colleague._server.freeze()
    with pytest.raises(KrasisError, match="no answer came in time"):
        list(islice(tokens, 2))
    engine._colleague._server.freeze(frozen=False)


class Scripted(Drafter):
    """Drafts `length` tokens of what is known to come, but for the one at `wrong`."""

    def __init__(self, coming, length, wrong):
        super().__init__(Learnt(0.0))
        self._coming, self._length, self._wrong, self._read = coming, length, wrong, 0

    def read(self, tokens):
        self._read += len(tokens)

    def draft(self, most):
        found = self._coming[self._read : self._read + min(most, self._length)]
        return [token + (i == self._wrong) for i, token in enumerate(found)]


def test_drafts_change_nothing(family, pack_of, opened, prompt):
    engine = opened(pack_of(family))
    coming, state = plain(engine, prompt, GREEDY, 9), engine.new_state()
    drafter = Scripted(coming, 3, 2)
    assert list(decode(engine, prompt, state, Sampler(GREEDY), most=9, drafter=drafter)) == coming
    assert state.position == PROMPTED + 8
    # Passes give 3 tokens; at the end no more is drafted than may still be given.
    assert (drafter.drafted, drafter.accepted) == (3 + 3 + 1, 2 + 2 + 1)


def test_drafts_of_what_is_drawn_change_nothing(demo_pack, opened, prompt):
    engine = opened(demo_pack())
    coming = plain(engine, prompt, DRAWN, 9)
    drafter = Scripted(coming, 3, 2)
    assert list(decode(engine, prompt, engine.new_state(), Sampler(DRAWN), most=9, drafter=drafter)) == coming
    assert drafter.accepted == 5


def test_a_sequence_goes_on_from_the_middle_of_a_draft(family, pack_of, opened, prompt):
    engine = opened(pack_of(family))
    coming, state = plain(engine, prompt, GREEDY, 7), engine.new_state()
    with closing(decode(engine, prompt, state, Sampler(GREEDY), most=9, drafter=Scripted(coming, 3, 9))) as tokens:
        given = list(islice(tokens, 3))
    assert state.position == PROMPTED + 2
    given += decode(engine, given[-1:], state, Sampler(GREEDY), most=4)
    assert given == coming


def test_windows_still_see_what_they_saw_before_a_draft(pack_of, opened, text_ids):
    """Of 64 tokens, the prompt being longer."""
    engine, prompt = opened(pack_of("gpt_oss")), text_ids["dev-code.txt"][:75]
    coming = plain(engine, prompt, GREEDY, 9)
    drafter = Scripted(coming, 7, 1)
    assert list(decode(engine, prompt, engine.new_state(), Sampler(GREEDY), most=9, drafter=drafter)) == coming


def test_no_more_is_drafted_than_the_context_holds(demo_pack, opened, prompt):
    engine = opened(demo_pack(), context=PROMPTED + 3)
    drafter = Scripted(plain(engine, prompt, GREEDY, 4) + [0] * 9, 7, 9)
    tokens = decode(engine, prompt, engine.new_state(), Sampler(GREEDY), most=MOST, drafter=drafter)
    assert list(islice(tokens, 4)) == plain(engine, prompt, GREEDY, 4)
    assert drafter.accepted == 2
    with pytest.raises(FitError, match=f"needs {PROMPTED + 4} positions"):
        next(tokens)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_what_a_text_repeats_is_drafted(family, sampling, pack_of, open_engine, text_ids):
    engine, prompt = open_engine(pack_of(family)), text_ids["dev-code.txt"][:40] * 3
    drafter = Drafter(Planned({1: 1.0, 2: 1.1, 4: 1.3, 8: 1.7}))
    found = list(decode(engine, prompt, engine.new_state(), Sampler(sampling), most=60, drafter=drafter))
    assert found == plain(engine, prompt, sampling, 60)
    assert drafter.accepted > 20 or sampling is DRAWN


def test_running_ahead_and_drafting_take_turns(demo_pack, opened, prompt):
    engine = opened(demo_pack())
    drafter, expected = Drafter(engine.costs), plain(engine, 3 * prompt, GREEDY, 12)
    assert list(decode(engine, 3 * prompt, engine.new_state(), Sampler(GREEDY), most=12, drafter=drafter)) == expected
    assert drafter.accepted <= drafter.drafted


@pytest.mark.parametrize("cut", [3, 4, 5])
def test_an_answer_stops_in_the_middle_of_a_draft(cut, demo_pack, open_engine, prompt):
    engine, tokenizer = open_engine(demo_pack()), Tokenizer(Pack(demo_pack()))
    coming = plain(engine, prompt, GREEDY, 12)
    given = (engine, tokenizer, prompt)
    whole = generate(*given, engine.new_state(), Sampler(GREEDY), max_tokens=12)
    stop = tokenizer.decode(coming[cut : cut + 2])
    without = generate(*given, engine.new_state(), Sampler(GREEDY), max_tokens=12, stops=[stop])
    drafter = Scripted(coming, 7, 9)
    found = generate(*given, engine.new_state(), Sampler(GREEDY), max_tokens=12, stops=[stop], drafter=drafter)
    assert (found.text, found.token_ids, found.finish_reason) == (without.text, without.token_ids, "stop")
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.drafted == 7
