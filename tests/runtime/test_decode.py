"""Tokens come as plain steps would give them, however far ahead the engine is, and wherever one stops."""

from contextlib import closing
from itertools import islice

import pytest
import torch
from cuda_devices import DEVICES
from msgspec.structs import replace

from krasis.errors import FitError, KrasisError
from krasis.pack.reader import Pack
from krasis.runtime.cuda.engine import PROMPT, CudaEngine
from krasis.runtime.decode import decode
from krasis.runtime.placement.outline import outline
from krasis.runtime.placement.plan import Wishes, plan, with_residents
from krasis.runtime.rates import REFERENCE
from krasis.runtime.sampler import Sampler, Sampling

ROOMY, CONTEXT, PROMPTED, MOST = 8 << 30, 96, 8, 6
GREEDY, DRAWN = Sampling(), Sampling(temperature=0.8, top_k=50, top_p=0.9, seed=3)


@pytest.fixture(params=["native", *DEVICES])
def opened(request, open_engine):
    """pack -> an engine: the CPU's, and those of a GPU, on which half of the experts lie."""
    engines = []

    def make(path, context=CONTEXT, **options):
        if request.param == "native":
            return open_engine(path, context=context)
        pack = Pack(path)
        found = outline(pack.manifest)
        placed = with_residents(plan(found, REFERENCE, None, Wishes((ROOMY,), context, "bf16", PROMPT)), found, 0.5)
        options = {"context": context, "vram": ROOMY, "threads": 1, "placement": placed, "rates": REFERENCE} | options
        engines.append(CudaEngine(pack, torch.device(request.param), **options))
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
